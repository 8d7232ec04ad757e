# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of the benchmark: what is run, against what, and what must come out. Each takes a Stand and gives Results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from agentmem_backup import clock, history, manifest
from agentmem_backup.manifest import Manifest

from tests.bench import peers
from tests.bench.memory import Peak, measure
from tests.bench.stand import HOURS, BenchError, Contender, Sample, Stand, size_of, take_turns
from tests.support import command

FASTER, SMALLER = 6.0, 1.25
CONTENT_MOST = 2.5
DUMP_NOISE, DUMP_SIZE = 1.05, 1.10
RESTORE_FASTER = 1.2
BY_ALIAS = ("--set", "qdrant.restore_method=alias")
LOST = "after everything was lost"
VERIFY_MOST = 1.5
MEMORY_MOST, MEMORY_FLAT = 150_000_000, 1.05
MEMORY_SHARES = (0.1, 1, 2)
"""Of the PostgreSQL that everything else is measured on."""
VERSION_MOST, LIST_MOST, SETS = 0.3, 0.5, 5000


@dataclass(frozen=True)
class Result:
    """One line of the table. `ratio` is what the must speaks of; None where it speaks of seconds."""

    work: str
    ours: Sample
    peer_name: str
    peer: Sample | None
    ratio: float | None
    must: str
    met: bool


@dataclass(frozen=True)
class MemoryResult:
    """Peak memory of one verb at each size of PostgreSQL, the smallest first; the last is twice the one before."""

    work: str
    peaks: list[Peak]

    @property
    def flat(self) -> float:
        """How many times more twice the data took. With the least of it the stores are not all dumped at once."""
        return self.peaks[-1].pss / self.peaks[-2].pss

    @property
    def met(self) -> bool:
        """Whether it is small and flat."""
        return all(one.pss <= MEMORY_MOST for one in self.peaks) and self.flat <= MEMORY_FLAT


class _Sets:
    """Directories that a contender writes to; only the newest is kept."""

    def __init__(self, stand: Stand, label: str):
        self._stand = stand
        self._label = label
        self.path: Path | None = None

    def renew(self) -> None:
        self.drop()
        self.path = self._stand.fresh(self._label)

    def drop(self) -> None:
        if self.path is not None:
            self._stand.discard(self.path)
            self.path = None

    @property
    def current(self) -> Path:
        if self.path is None:
            self.renew()
        assert self.path is not None
        return self.path


def _creating(stand: Stand, name: str, sets: _Sets, fingerprint: str) -> Contender:
    return Contender(name, lambda: _discard_answer(stand.ours(sets.current, "create", "--fingerprint", fingerprint)), sets.renew)


def _discard_answer(__: object) -> None:
    """A contender that gives no Sample of its own is timed from outside."""


def create(stand: Stand) -> list[Result]:
    """All four stores with counts fingerprint and final verify, against the guide's backup.sh."""
    ours, guide = _Sets(stand, "ours"), _Sets(stand, "guide")
    found = take_turns(
        [
            _creating(stand, "ours", ours, "counts"),
            Contender("guide", lambda: stand.peer(peers.GUIDE_CREATE, guide.current), guide.renew),
        ],
        stand.tell,
    )
    mine = replace(found["ours"], bytes=size_of(ours.current))
    theirs = replace(found["guide"], bytes=size_of(guide.current))
    ours.drop()
    guide.drop()
    faster, larger = theirs.seconds / mine.seconds, mine.bytes / theirs.bytes
    must = f"≥ {FASTER:g} × faster, size ≤ {SMALLER:g} × (is {larger:.2f} ×)"
    met = faster >= FASTER and larger <= SMALLER
    return [Result("create of all four, counts, verified", mine, "the guide's way", theirs, faster, must, met)]


def content(stand: Stand) -> list[Result]:
    """create with the content fingerprint, against create with counts."""
    counts, full = _Sets(stand, "counts"), _Sets(stand, "content")
    found = take_turns([_creating(stand, "counts", counts, "counts"), _creating(stand, "content", full, "content")], stand.tell)
    mine = replace(found["content"], bytes=size_of(full.current))
    theirs = replace(found["counts"], bytes=size_of(counts.current))
    counts.drop()
    full.drop()
    ratio = mine.seconds / theirs.seconds
    must = f"≤ {CONTENT_MOST:g} × create with counts"
    return [Result("create with content fingerprint", mine, "our create with counts", theirs, ratio, must, ratio <= CONTENT_MOST)]


def dump(stand: Stand) -> list[Result]:
    """The PostgreSQL dump alone, against pg_dump piped through the fast compressors."""
    outs = {name: _Sets(stand, "dump") for name in ("ours", *peers.DUMPS)}

    def engine() -> Sample:
        target = outs["ours"].current / "db.dump.gz"
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.dump_alone", str(target)],
            env=command.environment(stand.stores),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"our dump ended with {done.returncode}: {done.stderr}")
        return Sample(**json.loads(done.stdout))

    def peer(name: str) -> Callable[[], None]:
        return lambda: stand.peer(peers.DUMPS[name], outs[name].current)

    found = take_turns(
        [Contender("ours", engine, outs["ours"].renew), *(Contender(name, peer(name), outs[name].renew) for name in peers.DUMPS)],
        stand.tell,
    )
    sized = {name: replace(found[name], bytes=size_of(outs[name].current)) for name in outs}
    for one in outs.values():
        one.drop()
    mine = sized.pop("ours")
    best = min(sized.values(), key=lambda sample: sample.seconds)
    results = []
    for name, theirs in sized.items():
        ratio, larger = mine.seconds / theirs.seconds, mine.bytes / theirs.bytes
        if theirs is best:
            must = f"as fast as the best of them (≤ {DUMP_NOISE:g} ×), size ≤ {DUMP_SIZE:g} × (is {larger:.2f} ×)"
            met = ratio <= DUMP_NOISE and larger <= DUMP_SIZE
        else:
            must, met = "not the best of them", True
        results.append(Result("PostgreSQL dump alone", mine, name, theirs, ratio, must, met))
    return results


def restore(stand: Stand) -> list[Result]:
    """All four stores, compared by counts, against the guide's restore.sh: over live data, as it is set unasked and with Qdrant
    restored beside, and after everything was lost.
    """
    if stand.stores.qdrant.kind == "url":
        raise BenchError("the guide's way stops Qdrant and replaces its files: not possible with QDRANT_TEST_URL")
    ours, guide, copy = _Sets(stand, "ours"), _Sets(stand, "guide"), _Sets(stand, "copy")
    stand.ours(ours.current, "create")
    stand.peer(peers.GUIDE_CREATE, guide.current)
    _trust_the_guide(stand, guide.current)

    def link_set() -> None:
        """The same files under a directory of their own, so that what one run leaves there does not help the next."""
        copy.renew()
        for path in ours.current.iterdir():
            if path.is_file():
                os.link(path, copy.current / path.name)

    def lose_everything() -> None:
        link_set()
        stand.stores.destroy()

    def engine(*more: str) -> None:
        _equal(stand.ours(copy.current, "restore", "latest", "--yes", *more))

    def afterwards() -> None:
        stand.require_all()
        stand.tidy()

    found = take_turns(
        [
            Contender("over live data", engine, link_set, afterwards),
            # The guide's way comes right behind it and puts the collections back under their own names.
            Contender("over live data, Qdrant by alias", lambda: engine(*BY_ALIAS), link_set, afterwards),
            Contender("guide", lambda: _guide_restore(stand, guide.current), after=afterwards),
            Contender(LOST, engine, lose_everything, afterwards),
        ],
        stand.tell,
    )
    for one in (ours, guide, copy):
        one.drop()
    theirs = found.pop("guide")
    results = []
    for state, mine in found.items():
        faster, work = theirs.seconds / mine.seconds, f"restore of all four {state}, verified first, compared by counts"
        # Over live data ours saves a copy of it first; the guide's way drops what is there.
        must = f"≥ {RESTORE_FASTER:g} × faster" if state == LOST else ""
        results.append(Result(work, mine, "the guide's way", theirs, faster, must, faster >= RESTORE_FASTER))
    return results


def _trust_the_guide(stand: Stand, out: Path) -> None:
    """The guide copies dump.rdb two seconds after BGSAVE, finished or not; its restore is measured on a whole one."""
    stand.save_redis()
    (out / "redis.rdb").write_bytes(stand.stores.redis.rdb.read_bytes())


def _equal(answer: dict[str, object]) -> None:
    if not answer["equal"]:
        raise BenchError(f"our restore is not equal: {json.dumps(answer)}")


def _guide_restore(stand: Stand, out: Path) -> None:
    stores = stand.stores
    stand.peer(peers.GUIDE_RESTORE_DB, out)
    stores.redis.stop()
    stand.peer(peers.GUIDE_RESTORE_REDIS, out)
    stores.redis.start()
    stores.qdrant.stop()
    stand.peer(peers.GUIDE_RESTORE_QDRANT, out)
    stores.qdrant.start()
    stand.peer(peers.GUIDE_RESTORE_CONFIG, out)


def verify(stand: Stand) -> list[Result]:
    """The full verify, against one pass of openssl over the files and one decompression by ISA-L of the compressed ones."""
    sets = _Sets(stand, "ours")
    stand.ours(sets.current, "create")
    for path in sets.current.glob("*_*"):  # both read what the page cache holds
        path.read_bytes()
    found = take_turns(
        [
            Contender("ours", lambda: _discard_answer(stand.ours(sets.current, "verify", "latest"))),
            Contender("peer", lambda: stand.peer(peers.VERIFY, sets.current)),
        ],
        stand.tell,
    )
    size = size_of(sets.current)
    sets.drop()
    mine, theirs = replace(found["ours"], bytes=size), replace(found["peer"], bytes=size)
    ratio = mine.seconds / theirs.seconds
    must = f"≤ {VERIFY_MOST:g} ×"
    return [Result("full verify", mine, "openssl dgst -sha256, then igzip -d", theirs, ratio, must, ratio <= VERIFY_MOST)]


def startup(stand: Stand) -> list[Result]:
    """`--version`, and `list` of 5,000 sets: copies of a real set's manifest with tiny files."""
    sets = _Sets(stand, "ours")
    stand.ours(sets.current, "create")
    multiply(sets.current, SETS)

    def run(*arguments: str) -> Callable[[], None]:
        def go() -> None:
            there = {"BACKUP_DIR": str(sets.current)}
            done = command.good(stand.stores, *arguments, program=command.COLD, env=there, timeout=HOURS)
            if arguments[0] == "list" and done.stdout.count("  verified  ") != SETS:
                raise BenchError(f"list does not show {SETS} verified sets: {done.stdout[:500]}")

        return go

    found = take_turns([Contender("version", run("--version")), Contender(f"list of {SETS}", run("list"))], stand.tell)
    sets.drop()
    results = []
    for work, name, most in (("--version", "version", VERSION_MOST), (f"list of {SETS:,} sets", f"list of {SETS}", LIST_MOST)):
        results.append(Result(work, found[name], "", None, None, f"≤ {most:g} s", found[name].seconds <= most))
    return results


def multiply(backup_dir: Path, number: int) -> None:
    """Make `number` sets out of the one in a backup directory: its manifest with new IDs, tiny files, a verdict each."""
    original = next(backup_dir.glob("manifest_*.json"))
    described = manifest.read(original)
    newest = datetime.now(timezone.utc) - timedelta(hours=1)
    for path in backup_dir.glob(f"*_{described.id}*"):
        path.unlink()
    history.path(backup_dir).unlink()
    for age in range(number):
        set_id = clock.set_id(newest - timedelta(hours=age))
        entries = {
            name: {**entry, "file": entry["file"].replace(described.id, set_id)} for name, entry in described.components.items()
        }
        copy = Manifest({**described.data, "id": set_id, "components": entries})
        for entry in entries.values():
            (backup_dir / entry["file"]).write_bytes(b"tiny")
        (backup_dir / f"manifest_{set_id}.json").write_bytes(copy.to_json())
        (backup_dir / f"manifest_{set_id}.txt").write_text(copy.to_text())
    verdicts = [
        {
            "id": clock.set_id(newest - timedelta(hours=age)),
            "verdict": history.VERIFIED,
            "by": "create",
            "time": "",
            "depth": "full",
            "summary": described.summary(),
        }
        for age in range(number)
    ]
    history.path(backup_dir).write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts))


VERBS = {
    "create": ("create",),
    "verify": ("verify", "latest"),
    "restore": ("restore", "latest", "--yes"),
}


def peaks(stand: Stand) -> dict[str, Peak]:
    """Verb → peak memory of one run of it on these stores."""
    found: dict[str, Peak] = {}
    sets = _Sets(stand, "memory")
    environment = command.environment(stand.stores, {"BACKUP_DIR": str(sets.current)})
    for verb, arguments in VERBS.items():
        peak, done = measure([str(command.BIN / "agentmem-backup"), *arguments, "--json", *command.QUIET], environment)
        if done.returncode:
            raise BenchError(f"agentmem-backup {verb} ended with {done.returncode}: {done.stderr}{done.stdout}")
        found[verb] = peak
        parts = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in peak.parts.items())
        stand.tell(
            f"    {verb}: PSS {peak.pss / 1e6:.0f} MB ({parts}), anonymous {peak.anonymous / 1e6:.0f} MB, {peak.samples} samples"
        )
    stand.require_all()
    stand.tidy()
    sets.drop()
    return found


ROWS: dict[str, Callable[[Stand], list[Result]]] = {
    "create": create,
    "content": content,
    "dump": dump,
    "restore": restore,
    "verify": verify,
    "startup": startup,
}
