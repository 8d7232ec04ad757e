# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of verified sets elsewhere: send them there, see what is where, bring one back.

    push: each target in its own thread → list → for each verified set that is not known to be whole there:
          hold it, look at it once more → data files → read back → JSON manifest → remember → what `keep` lets go
    pull: manifest → files → verify fully → publish, under its own ID or not at all

A push runs beside backups: it holds no lock that these want, but a second name (hard link) of each set that it is just
sending, so that retention takes nothing away from under it. Nothing here depends on what is missing locally: a set goes
at a target only where `keep` says so and this host itself has read it back there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import audit, backup_set, clock, history, hooks, lock, manifest, pipeline, process, targets, verify, watch
from .backup_set import BackupSet, Staging
from .crew import Crew
from .errors import BackupError, Cancelled, UsageError, VerificationError
from .manifest import Manifest, human_size
from .offsite import kinds
from .offsite import record as records
from .offsite.base import Place, Remote
from .offsite.record import Record, base_of
from .process import guarded, os_sentence
from .progress import Reporter
from .settings import Settings
from .targets import Target

WHOLE, INCOMPLETE, MISSING, DAMAGED, LEFT_OUT = "whole", "incomplete", "missing", "damaged", "left out"
_HERE = "offsite"  # in .state/: what is just being sent, and what is just being fetched


@dataclass
class Outcome:
    """What a push did at one target. `faults` are what went wrong there, a sentence each."""

    target: str
    where: str
    sent: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    read_back: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything was sent or removed."""
        return bool(self.sent or self.removed)


@dataclass
class Pushed:
    """What a push did. `skipped` has for each set that stayed here why it did."""

    place: str
    outcomes: list[Outcome]
    skipped: dict[str, str]
    faults: list[str] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def problems(self) -> list[str]:
        """Everything that went wrong, each with its target's name."""
        return self.faults + [f"{one.target}: {fault}" for one in self.outcomes for fault in one.faults]

    @property
    def changed(self) -> bool:
        """Whether anything was sent or removed anywhere."""
        return any(one.changed for one in self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        """For --json and for modules."""
        return {
            "host": self.place,
            "targets": {
                one.target: {key: value for key, value in vars(one).items() if key != "target"} | {"ok": not one.faults}
                for one in self.outcomes
            },
            "skipped": self.skipped,
            "problems": self.problems,
            "changed": self.changed,
            "duration_s": round(self.duration_s, 3),
        }


@dataclass
class Checked:
    """What is where. `sets` has for each ID the verdict here and, for each target that was reached, its state there."""

    place: str
    sets: dict[str, dict[str, Any]]
    unreached: dict[str, str]

    @property
    def problems(self) -> list[str]:
        """What is missing or damaged, and which targets could not be asked."""
        found = [f"{name}: {sentence}" for name, sentence in self.unreached.items()]
        for set_id, row in self.sets.items():
            for name, one in row["targets"].items():
                if one["state"] == DAMAGED:
                    found.append(f"{name}: set {set_id} is damaged there: {one['remark']}")
                elif one["state"] in (MISSING, INCOMPLETE) and row["wanted"]:
                    found.append(f"{name}: set {set_id} is {one['state']} there (agentmem-backup sync push)")
        return found

    @property
    def damaged(self) -> bool:
        """Whether a copy is not what its manifest says."""
        return any(one["state"] == DAMAGED for row in self.sets.values() for one in row["targets"].values())

    def as_dict(self) -> dict[str, Any]:
        """For --json and for modules."""
        return {"host": self.place, "sets": self.sets, "unreached": self.unreached, "problems": self.problems}


@dataclass
class Pulled:
    """What was brought back: the set, and those that it needs."""

    id: str
    directory: Path
    where: str
    ids: list[str]
    fetched_bytes: int
    duration_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For --json and for modules."""
        return {
            "id": self.id,
            "directory": str(self.directory),
            "where": self.where,
            "pulled": self.ids,
            "bytes": self.fetched_bytes,
            "duration_s": round(self.duration_s, 3),
        }


# --- what all three share


def place_of(settings: Settings, named: str = "") -> Place:
    """Whose folder: this host's and instance's, or `named` (HOST or HOST/INSTANCE). Raises UsageError."""
    if named:
        host, __, instance = named.partition("/")
        if not all(targets.fit_for_path(one) for one in (host, instance or "default")):
            raise UsageError(f"{named!r} names no host: give its name at the targets, as HOST or HOST/INSTANCE")
        return Place(host, instance or "default")
    host = settings.offsite.host or socket.gethostname()
    if not targets.fit_for_path(host) or host.split(".")[0] == "localhost":
        raise UsageError(
            f"this host is called {host!r}, which tells it from no other: "
            "set offsite.host to the name it shall have at the targets"
        )
    if not targets.fit_for_path(settings.instance):
        raise UsageError(f"the instance's name {settings.instance!r} cannot be a folder's at a target: letters, digits and . _ -")
    return Place(host, settings.instance)


def chosen(settings: Settings, names: Iterable[str] = ()) -> list[Target]:
    """The targets of a run: all, or the named ones. Raises UsageError."""
    known, wanted = settings.offsite.targets, list(names)
    if not known:
        raise UsageError("no target is configured: name one under offsite.targets in the configuration (see docs/operations.md)")
    for name in wanted:
        if name not in known:
            raise UsageError(f"there is no target {name!r}: there are {', '.join(known)}")
    return [target for name, target in known.items() if not wanted or name in wanted]


def _candidates(directory: Path, record: Record, place: Place) -> tuple[list[BackupSet], dict[str, str]]:
    """The sets that may leave, newest first but none before its base; and for each other why it stays."""
    verdicts, stay = history.newest(directory), {}
    ready: dict[str, BackupSet] = {}
    for one in reversed(backup_set.sets(directory)):
        verdict = verdicts.get(one.id)
        came_from = record.pulled_for(one.id)
        if one.legacy:
            stay[one.id] = "it has no JSON manifest, without which nobody there could tell whether it is whole"
        elif not history.is_verified(verdict):
            stay[one.id] = f"it is {verdict['verdict'] if verdict else 'never verified'}, and only verified sets leave"
        elif came_from and came_from != str(place):
            stay[one.id] = f"it was brought here from {came_from}"
        else:
            ready[one.id] = one
    ordered: dict[str, BackupSet] = {}
    for one in ready.values():
        with contextlib.suppress(VerificationError):  # told when it is looked at
            base = base_of(one.manifest) if one.manifest else ""
            if base in ready:
                ordered.setdefault(base, ready[base])
        ordered.setdefault(one.id, one)
    return list(ordered.values()), stay


def _digests(one: BackupSet) -> dict[str, tuple[int, str]]:
    """Name → (bytes, SHA-256) of every file of a set, the JSON manifest last. Raises VerificationError, BackupError."""
    described = _manifest(one)
    files = {str(entry["file"]): (int(entry["bytes"]), str(entry["sha256"])) for entry in described.components.values()}
    for path in (one.text_path, one.manifest_path):
        files[path.name] = pipeline.hash_file(path)
    return files


def _sizes(one: BackupSet) -> dict[str, int]:
    described = _manifest(one)
    sizes = {str(entry["file"]): int(entry["bytes"]) for entry in described.components.values()}
    for path, content in ((one.text_path, described.to_text().encode()), (one.manifest_path, described.to_json())):
        sizes[path.name] = len(content)
    return sizes


def _manifest(one: BackupSet) -> Manifest:
    if one.manifest is None:
        raise VerificationError(f"set {one.id} has no JSON manifest")
    return one.manifest


def _lock(directory: Path, settings: Settings) -> contextlib.AbstractContextManager[None]:
    """One push or pull at a time. It is not the lock of backups: these go on meanwhile."""
    (directory / backup_set.STATE).mkdir(mode=0o700, exist_ok=True)
    return lock.hold(directory / backup_set.STATE / "offsite.lock", "sync", settings.lock_wait_s)


# --- push


def push(settings: Settings, reporter: Reporter, names: Iterable[str] = ()) -> Pushed:
    """Send what is missing to every target (or those named). What fails at one is in its outcome and stops no other.

    Raises UsageError and LockedError before anything is sent.
    """
    with watch.watch(settings, reporter, "sync") as run:
        run.look = "sync check"
        pushed = _push(settings, reporter, names)
        run.fault = "; ".join(pushed.problems)
        if not pushed.faults:
            run.facts["pushed"] = {one.target: clock.iso(clock.now()) for one in pushed.outcomes if not one.faults}
        run.summary = "; ".join(f"{one.target}: {len(one.sent)} sent, {len(one.whole)} sets there" for one in pushed.outcomes)
        return pushed


def _push(settings: Settings, reporter: Reporter, names: Iterable[str]) -> Pushed:
    directory = backup_set.directory(settings.backup_dir)
    wanted, place, begun = chosen(settings, names), place_of(settings), time.monotonic()
    facts = {"verb": "sync", "backup_dir": directory, "targets": ",".join(one.name for one in wanted)}
    with _lock(directory, settings):
        record = Record(directory)
        try:
            hooks.run(settings, "before", reporter, facts)
            ready, stay = _candidates(directory, record, place)
            run = _Push(settings, reporter, directory, record, ready)
            with run.held, Crew([target.name for target in wanted]) as crew:
                by_name = {target.name: target for target in wanted}
                outcomes = crew.each(lambda name: run.to(kinds.reach(settings, by_name[name], place)))
            pushed = Pushed(str(place), [outcomes[target.name] for target in wanted], stay)
        except BaseException as error:
            process.resume()
            _failed(directory, settings, reporter, facts, str(error) or type(error).__name__)
            raise
        if not ready:
            pushed.faults.append(f"there is no verified set in {directory}, so nothing could be sent: agentmem-backup create")
        pushed.duration_s = time.monotonic() - begun
        for one in pushed.outcomes:
            result = "failed" if one.faults else "done"
            told = {key: value for key, value in vars(one).items() if key in ("where", "sent", "read_back", "removed", "faults")}
            audit.append(directory, "sync", result, target=one.target, **told)
        if pushed.problems:
            _failed(directory, settings, reporter, facts, "; ".join(pushed.problems), record=False)
        else:
            hooks.run(settings, "after", reporter, facts)
        return pushed


def plan(settings: Settings, reporter: Reporter, names: Iterable[str] = ()) -> Pushed:
    """What a push would send, by what the targets list; sends and removes nothing."""
    directory = backup_set.directory(settings.backup_dir, write=False)
    wanted, place = chosen(settings, names), place_of(settings)
    record = Record(directory)
    ready, stay = _candidates(directory, record, place)

    def look(target: Target) -> Outcome:
        remote = kinds.reach(settings, target, place)
        outcome = Outcome(target.name, remote.where)
        with _told(outcome):
            present = remote.listing()
            rule = _Keep(record, remote, ready)
            for one in ready:
                if rule.leaves_out(one, present, outcome.sent + outcome.read_back):
                    outcome.left_out.append(one.id)
                    continue
                missing = {name: size for name, size in _sizes(one).items() if present.get(name) != size}
                if missing:
                    outcome.sent.append(one.id)
                    outcome.sent_bytes += sum(missing.values())
                elif not record.was_read_back(remote.where, _manifest(one)):
                    outcome.read_back.append(one.id)
                else:
                    outcome.whole.append(one.id)
        return outcome

    with Crew([target.name for target in wanted]) as crew:
        by_name = {target.name: target for target in wanted}
        outcomes = crew.each(lambda name: look(by_name[name]))
    return Pushed(str(place), [outcomes[target.name] for target in wanted], stay)


@contextlib.contextmanager
def _told(outcome: Outcome) -> Iterator[None]:
    """What fails at one target is its own matter: it is told there, and the others go on."""
    try:
        yield
    except Cancelled:
        raise
    except BackupError as error:
        outcome.faults.append(str(error))


def _failed(
    directory: Path, settings: Settings, reporter: Reporter, facts: dict[str, Any], sentence: str, *, record: bool = True
) -> None:
    """Record a failed run and call the error hook; what fails here must not hide why the run failed."""
    try:
        if record:
            audit.append(directory, "sync", "failed", error=sentence)
        hooks.run(settings, "error", reporter, {**facts, "error": sentence})
    except OSError as trouble:
        reporter.warn(os_sentence(trouble, "writing the audit log"))
    except BackupError as trouble:
        reporter.warn(str(trouble))


class _Held:
    """Sets that are just being sent, each held by second names of its files and looked at once more. A context manager."""

    def __init__(self, directory: Path, settings: Settings, reporter: Reporter):
        self._root = directory / backup_set.STATE / _HERE / "sending"
        self._directory = directory
        self._settings = settings
        self._reporter = reporter
        self._guard = threading.Lock()
        self._known: dict[str, BackupSet | BackupError] = {}

    def get(self, one: BackupSet) -> BackupSet:
        """The set under names that retention does not know. Raises VerificationError where it is not what its manifest says."""
        with self._guard:
            if one.id not in self._known:
                try:
                    self._known[one.id] = self._hold(one)
                except Cancelled:
                    raise
                except BackupError as error:
                    self._known[one.id] = error
            known = self._known[one.id]
        if isinstance(known, BackupError):
            raise known
        return known

    def _hold(self, one: BackupSet) -> BackupSet:
        linked = self._link(one)
        report = verify.examine_set(self._settings, Reporter(), linked, depth=verify.QUICK)
        if report.faults:
            faults = [fault.replace(str(linked.directory), str(one.directory)) for fault in report.faults]
            history.append(
                self._directory, one.id, history.FAILED, "sync", depth=verify.QUICK, faults=faults, alarms=report.alarms
            )
            raise VerificationError(f"set {one.id} does not verify any more and was not sent: {'; '.join(faults)}")
        return linked

    def _link(self, one: BackupSet) -> BackupSet:
        names = _digests(one)
        path = self._root / one.id
        guarded(lambda: path.mkdir(mode=0o700, parents=True), f"making {path}")
        try:
            for name in names:
                os.link(one.directory / name, path / name)
        except FileNotFoundError:
            raise BackupError(f"set {one.id} was removed, or lost a file, while it was to be sent") from None
        except OSError:
            return one  # a file system without hard links: it is read where it lies
        return BackupSet(one.id, path, one.names, True)

    def __enter__(self) -> _Held:
        _clear(self._root)
        return self

    def __exit__(self, *__: object) -> None:
        _clear(self._root)


def _clear(path: Path) -> None:
    """Remove our own scratch."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)


class _Push:
    """One run of push, whatever the target."""

    def __init__(self, settings: Settings, reporter: Reporter, directory: Path, record: Record, ready: list[BackupSet]):
        self.settings = settings
        self.reporter = reporter
        self.record = record
        self.ready = ready
        self.held = _Held(directory, settings, reporter)
        self.scratch = directory / backup_set.STATE / _HERE

    def to(self, remote: Remote) -> Outcome:
        """Send what is missing to one target, then remove what `keep` lets go."""
        outcome = Outcome(remote.target.name, remote.where)
        with _told(outcome):
            present = remote.listing()
            rule = _Keep(self.record, remote, self.ready)
            for one in self.ready:
                try:
                    if rule.leaves_out(one, present):
                        outcome.left_out.append(one.id)
                    else:
                        self._set(remote, outcome, one, present)
                except VerificationError as error:  # a matter of this set alone
                    outcome.faults.append(str(error))
            if not outcome.faults:
                _Retention(self, remote, outcome).run(present)
        for fault in outcome.faults:
            self.reporter.warn(f"target {outcome.target}: {fault}")
        return outcome

    def _set(self, remote: Remote, outcome: Outcome, one: BackupSet, present: dict[str, int]) -> None:
        sizes = _sizes(one)
        absent = [name for name, size in sizes.items() if present.get(name) != size]
        if not absent and self.record.was_read_back(remote.where, _manifest(one)):
            outcome.whole.append(one.id)
            return
        begun, held = time.monotonic(), self.held.get(one)
        files = _digests(held)
        json_name = one.manifest_path.name
        if json_name in present and not self._same_manifest(remote, held):
            absent.append(json_name)
        data = [name for name in absent if name != json_name]
        self._replace(remote, [name for name in absent if name in present], one.id, "is not whole")
        total = sum(files[name][0] for name in absent)
        for name in data:
            remote.send(held.directory, [name])
            present[name] = files[name][0]
            outcome.sent_bytes += files[name][0]
            self.reporter.advance(outcome.target, outcome.sent_bytes, None)
        self._read_back(remote, held, {name: files[name][1] for name in files if name != json_name}, fresh=data)
        if json_name in absent:
            remote.send(held.directory, [json_name])
            present[json_name] = files[json_name][0]
            outcome.sent_bytes += files[json_name][0]
        self._read_back(remote, held, {json_name: files[json_name][1]}, fresh=absent)
        self.record.read_back(remote.where, _manifest(one))
        outcome.read_back.append(one.id)
        outcome.whole.append(one.id)
        if absent:
            outcome.sent.append(one.id)
            self.reporter.step(
                f"target {outcome.target}: set {one.id}: sent {len(absent)} files, {human_size(total)}, "
                f"in {time.monotonic() - begun:.1f} s, and read back"
            )
        else:
            self.reporter.step(f"target {outcome.target}: set {one.id}: was there, and read back")

    def _replace(self, remote: Remote, names: list[str], set_id: str, how: str) -> None:
        """Something lies there under a name that is to be sent, and is not what it must be."""
        if names and remote.target.locked:
            raise VerificationError(
                f"set {set_id} is damaged at {remote.where} ({', '.join(names)}), and what is there is locked (object_lock): "
                "it stays so until its retention ends; send the set to another target"
            )
        for name in names:
            self.reporter.warn(f"target {remote.target.name}: {name} {how} there, and is sent again")

    def _same_manifest(self, remote: Remote, held: BackupSet) -> bool:
        """Whether the manifest there is ours; False where it is damaged. Another set's of the same ID is never touched."""
        ours = held.manifest_path
        path = self.scratch / f"compare-{remote.target.name}" / ours.name
        _clear(path.parent)
        guarded(lambda: path.parent.mkdir(mode=0o700, parents=True), f"making {path.parent}")
        try:
            remote.fetch(ours.name, path)
            if path.read_bytes() == ours.read_bytes():
                return True
            with contextlib.suppress(VerificationError):
                other = manifest.read(path)
                if other.digest() != _manifest(held).digest():
                    raise BackupError(
                        f"{remote.where} has another set {held.id}, of host {other.data.get('host')}: two hosts bear one name "
                        "there; set offsite.host for one of them"
                    )
            return False
        finally:
            _clear(path.parent)

    def _read_back(self, remote: Remote, held: BackupSet, digests: dict[str, str], fresh: list[str]) -> None:
        """Have every byte read at the far end; what was damaged before this run is sent again, once."""
        wrong = remote.differing(held.directory, digests)
        stale = [name for name in wrong if name not in fresh]
        if stale:
            self.record.note(records.DAMAGED, remote.where, held.id, files=stale)
            self._replace(remote, stale, held.id, "was damaged")
            remote.send(held.directory, stale)
            wrong = [name for name in wrong if name not in stale]
            wrong += remote.differing(held.directory, {name: digests[name] for name in stale})
        if wrong:
            self.record.note(records.DAMAGED, remote.where, held.id, files=wrong)
            raise VerificationError(
                f"set {held.id} does not read back from {remote.where} as it was sent ({', '.join(wrong)}): "
                "the store or the way to it is damaged; the copy does not count"
            )


class _Keep:
    """What `keep` of a target means for a set that is not there: so many newer ones are, each with all that it holds."""

    def __init__(self, record: Record, remote: Remote, ready: list[BackupSet]):
        self._record = record
        self._remote = remote
        self._keep = int(remote.target["keep"])
        self._here = {one.id: one for one in ready}

    def leaves_out(self, one: BackupSet, present: dict[str, int], coming: Iterable[str] = ()) -> bool:
        """Whether a set need not be sent. `coming` are those that a plan has sent already. Raises VerificationError."""
        if not self._keep or one.manifest_path.name in present:
            return False
        newer = [entry for set_id, entry in known_there(self._record, self._remote, present).items() if set_id > one.id]
        newer += [records.facts_of(_manifest(self._here[set_id])) for set_id in coming if set_id > one.id]
        mine = records.facts_of(_manifest(one))
        needed = {base_of(_manifest(other)) for other in self._here.values() if other.id > one.id}
        return one.id not in needed and sum(_covers(entry, mine) for entry in newer) >= self._keep


def known_there(record: Record, remote: Remote, present: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The sets that this host has read back at a target, not dated in the future, with what it wrote down of each."""
    at = clock.now()
    return {
        one: entry
        for one in _ids(present)
        if f"manifest_{one}.json" in present
        and (entry := record.of(remote.where, one)).get("event") == records.READ_BACK
        and clock.id_time(one) <= at
    }


@dataclass
class _Retention:
    """Which sets go at a target: only where `keep` says so, only what this host has read back there, only a few at a time."""

    push: _Push
    remote: Remote
    outcome: Outcome

    def run(self, present: dict[str, int]) -> None:
        """Remove what goes. Raises BackupError where a guard forbids it."""
        keep, where = self.remote.target["keep"], self.remote.where
        if not keep:
            return
        begun = [one for one in _ids(present) if self.push.record.of(where, one).get("event") == records.REMOVING]
        doomed = self._doomed(present, keep)
        if doomed and self.remote.target.locked:
            self.outcome.notes.append(
                f"{len(doomed)} sets are more than keep ({keep}) and stay: what is there is locked (object_lock), "
                "and the store's own rules remove it"
            )
            self.push.reporter.step(f"target {self.outcome.target}: {self.outcome.notes[-1]}")
            return
        if doomed:
            self._guard(len(doomed))
        for set_id in [*begun, *doomed]:
            self._remove(set_id, present)

    def _doomed(self, present: dict[str, int], keep: int) -> list[str]:
        """A set goes when `keep` newer ones that were read back there each hold all that it holds, and none needs it."""
        known = known_there(self.push.record, self.remote, present)
        kept: list[dict[str, Any]] = []
        doomed = []
        for one, entry in sorted(known.items(), reverse=True):
            if sum(_covers(newer, entry) for newer in kept) < keep:
                kept.append(entry)
            else:
                doomed.append(one)
        needed = {entry["base"] for entry in kept}
        return sorted(one for one in doomed if one not in needed)

    def _guard(self, number: int) -> None:
        offsite, here = self.push.settings.offsite, len(self.push.ready)
        if here < offsite.min_local_sets:
            raise BackupError(
                f"nothing is removed at {self.remote.where}: only {here} verified sets lie here, and offsite.min_local_sets "
                f"wants {offsite.min_local_sets} before any of the {number} that are more than keep goes"
            )
        if number > offsite.max_removals:
            raise BackupError(
                f"nothing is removed at {self.remote.where}: {number} sets are more than keep, and offsite.max_removals lets "
                f"{offsite.max_removals} go in one run; if that is meant: sync push --set offsite.max_removals={number}"
            )

    def _remove(self, set_id: str, present: dict[str, int]) -> None:
        """The manifest first: from then on nobody takes for whole what is left."""
        self.push.record.note(records.REMOVING, self.remote.where, set_id)
        names = sorted((name for name in present if f"_{set_id}." in name), key=lambda name: not name.endswith(".json"))
        self.remote.remove(names)
        for name in names:
            del present[name]
        self.push.record.note(records.REMOVED, self.remote.where, set_id)
        self.outcome.removed.append(set_id)
        self.push.reporter.step(f"target {self.outcome.target}: removed set {set_id}: more than keep")


def _covers(newer: dict[str, Any], older: dict[str, Any]) -> bool:
    """Whether a newer set holds all that an older one does: a part of a store replaces the same part only."""
    return {*newer["components"]} >= {*older["components"]} and all(
        newer["filters"].get(name) in (None, older["filters"].get(name)) for name in older["components"]
    )


def _ids(present: Iterable[str]) -> list[str]:
    """The IDs of the sets that the files of a folder belong to."""
    found = {match[1] for name in present if (match := re.fullmatch(r"[a-z]+_(\d{8}_\d{6})\..+", name))}
    return sorted(one for one in found if clock.is_set_id(one))


# --- check


def check(
    settings: Settings, reporter: Reporter, names: Iterable[str] = (), *, host: str = "", read_back: bool = False
) -> Checked:
    """What is where, and what is missing. With `read_back` every byte of every copy is read at the far end."""
    directory = backup_set.directory(settings.backup_dir, write=read_back)
    wanted, place = chosen(settings, names), place_of(settings, host)
    own = place == place_of(settings) if settings.offsite.host or not host else False
    record = Record(directory)
    ready, __ = _candidates(directory, record, place) if own else ([], {})
    verdicts = history.newest(directory)
    local = {one.id: one for one in backup_set.sets(directory)} if own else {}
    unreached: dict[str, str] = {}

    def look(target: Target) -> dict[str, dict[str, str]]:
        remote = kinds.reach(settings, target, place)
        try:
            return _states(remote, record, {one.id: one for one in ready}, directory, read_back)
        except Cancelled:
            raise
        except BackupError as error:
            unreached[target.name] = str(error)
            return {}

    with Crew([target.name for target in wanted]) as crew:
        by_name = {target.name: target for target in wanted}
        found = crew.each(lambda name: look(by_name[name]))
    leaving = {one.id for one in ready}
    sets = {}
    for one in sorted({*local, *(set_id for states in found.values() for set_id in states)}):
        sets[one] = {
            "here": verdicts.get(one, {}).get("verdict", "never verified") if one in local else "",
            "wanted": one in leaving,
            "targets": {
                target.name: found[target.name].get(one, {"state": MISSING, "read_back": "", "remark": ""})
                for target in wanted
                if target.name not in unreached
            },
        }
    return Checked(str(place), sets, unreached)


def _states(
    remote: Remote, record: Record, ready: dict[str, BackupSet], directory: Path, read_back: bool
) -> dict[str, dict[str, str]]:
    """Set → what it is at one target, for all of which at least a file is there."""
    present = remote.listing()
    scratch = directory / backup_set.STATE / _HERE / f"check-{remote.target.name}"
    states = {}
    try:
        for one in _ids(present):
            states[one] = _state(remote, record, one, present, ready.get(one), scratch, read_back)
        rule = _Keep(record, remote, [*ready.values()])
        for one, here in ready.items():
            with contextlib.suppress(VerificationError):
                if one not in states and rule.leaves_out(here, present):
                    states[one] = {"state": LEFT_OUT, "read_back": "", "remark": "keep wants newer ones only"}
    finally:
        _clear(scratch)
    return states


def _state(
    remote: Remote, record: Record, set_id: str, present: dict[str, int], here: BackupSet | None, scratch: Path, read_back: bool
) -> dict[str, str]:
    if f"manifest_{set_id}.json" not in present:
        return {"state": INCOMPLETE, "read_back": "", "remark": "no manifest: the sending was stopped, or the removing"}
    try:
        described = _manifest(here) if here else _manifest_there(remote, set_id, scratch)
        text_name = f"manifest_{set_id}.txt"
        sizes = {str(entry["file"]): int(entry["bytes"]) for entry in described.components.values()}
        sizes[text_name] = len(described.to_text().encode())
        wrong = [f"{name} is missing" for name in sizes if name not in present]
        wrong += [
            f"{name} has {present[name]} bytes, not {size}" for name, size in sizes.items() if present.get(name, size) != size
        ]
        if not wrong and read_back:
            wrong = _read_back_again(remote, record, described, here, scratch)
    except VerificationError as error:
        wrong = [str(error)]
    if wrong:
        return {"state": DAMAGED, "read_back": "", "remark": "; ".join(wrong)}
    return {"state": WHOLE, "read_back": record.was_read_back(remote.where, described), "remark": ""}


def _manifest_there(remote: Remote, set_id: str, scratch: Path) -> Manifest:
    guarded(lambda: scratch.mkdir(mode=0o700, parents=True, exist_ok=True), f"making {scratch}")
    path = scratch / f"manifest_{set_id}.json"
    remote.fetch(path.name, path)
    return manifest.read(path)


def _read_back_again(remote: Remote, record: Record, described: Manifest, here: BackupSet | None, scratch: Path) -> list[str]:
    import hashlib

    digests = {str(entry["file"]): str(entry["sha256"]) for entry in described.components.values()}
    own = ((f"manifest_{described.id}.txt", described.to_text().encode()), (f"manifest_{described.id}.json", described.to_json()))
    digests |= {name: hashlib.sha256(content).hexdigest() for name, content in own}
    # What lies here counts as right only where it is: a copy must not be held against a file that has rotted meanwhile.
    sound = here if here and all(pipeline.hash_file(here.directory / name)[1] == digests[name] for name in digests) else None
    wrong = remote.differing(sound.directory if sound else scratch, digests)
    if wrong:
        record.note(records.DAMAGED, remote.where, described.id, files=wrong)
        return [f"{name} has other content than was sent" for name in wrong]
    record.read_back(remote.where, described)
    return []


# --- pull


def pull(settings: Settings, reporter: Reporter, which: str, names: Iterable[str] = (), *, host: str = "") -> Pulled:
    """Bring a set (an ID, or `latest`) back into the backup directory, with the one it needs; never over anything there.

    The first target that has it whole serves; one that is not reached is passed over with a warning. Raises UsageError,
    VerificationError, BackupError; then nothing appeared, and what was fetched already is not fetched again next time.
    """
    directory = backup_set.directory(settings.backup_dir)
    wanted, place, begun = chosen(settings, names), place_of(settings, host), time.monotonic()
    if which != "latest":
        clock.id_time(which)
        _demand_absent(directory, which)
    with _lock(directory, settings):
        pulling = _Pull(settings, reporter, directory, place)
        facts = {"verb": "sync", "backup_dir": directory, "id": which, "targets": ",".join(one.name for one in wanted)}
        try:
            remote, set_id, present = _find(settings, reporter, which, wanted, place)
            _demand_absent(directory, set_id)
            pulling.one(remote, set_id, present)
        except BaseException as error:
            process.resume()
            _failed(directory, settings, reporter, facts, str(error) or type(error).__name__)
            raise
        pulled = Pulled(set_id, directory, remote.where, pulling.ids, pulling.bytes, time.monotonic() - begun)
        audit.append(directory, "sync", "done", target=remote.target.name, where=remote.where, pulled=pulled.ids)
        return pulled


@dataclass(frozen=True)
class Found:
    """The set that a pull would bring back, and where it is; `here` where it lies in the backup directory already."""

    id: str
    where: str
    here: bool


def find(settings: Settings, reporter: Reporter, which: str, names: Iterable[str] = (), *, host: str = "") -> Found:
    """What a pull would bring back; brings nothing. Raises UsageError, BackupError."""
    directory = backup_set.directory(settings.backup_dir, write=False)
    wanted, place = chosen(settings, names), place_of(settings, host)
    if which != "latest":
        clock.id_time(which)
        if _is_here(directory, which):
            return Found(which, str(directory), True)
    remote, set_id, __ = _find(settings, reporter, which, wanted, place)
    return Found(set_id, remote.where, _is_here(directory, set_id))


def _is_here(directory: Path, set_id: str) -> bool:
    return any(directory.glob(f"*_{set_id}.*"))


def _demand_absent(directory: Path, set_id: str) -> None:
    if _is_here(directory, set_id):
        raise UsageError(
            f"there is a set {set_id} in {directory} already, and it stays as it is: pull into another directory (--backup-dir)"
        )


def _find(
    settings: Settings, reporter: Reporter, which: str, wanted: list[Target], place: Place
) -> tuple[Remote, str, dict[str, int]]:
    """The first target that has the set whole, its ID, and what is there. Raises BackupError that says what there is."""
    found, troubles = [], []
    for target in wanted:
        remote = kinds.reach(settings, target, place)
        try:
            present = remote.listing()
        except Cancelled:
            raise
        except BackupError as error:
            troubles.append(f"{target.name}: {error}")
            reporter.warn(f"target {target.name} is passed over: {error}")
            continue
        whole = [one for one in _ids(present) if f"manifest_{one}.json" in present]
        set_id = max(whole, default="") if which == "latest" else which
        if set_id in whole:
            found.append((remote, set_id, present))
            if which != "latest":
                break
        else:
            troubles.append(f"{remote.where} has {_what_there_is(remote, present, whole, which)}")
    if not found:
        raise BackupError(f"no target has a whole set {which} of {place}: " + "; ".join(troubles))
    return max(found, key=lambda one: one[1])


def _what_there_is(remote: Remote, present: dict[str, int], whole: list[str], which: str) -> str:
    if which in _ids(present):
        return f"only a part of {which}"
    if whole:
        return f"the sets {', '.join(whole[-5:])}" if len(whole) <= 5 else f"{len(whole)} sets up to {whole[-1]}"
    try:
        others = remote.hosts()
    except BackupError:
        others = []
    return "no set" + (f", but sets of {', '.join(others)} (--host NAME)" if others else "")


class _Pull:
    """Brings sets into the backup directory: fetched beside it, verified fully, then published under the lock of backups."""

    def __init__(self, settings: Settings, reporter: Reporter, directory: Path, place: Place):
        self.settings = settings
        self.reporter = reporter
        self.directory = directory
        self.place = place
        self.ids: list[str] = []
        self.bytes = 0

    def one(self, remote: Remote, set_id: str, present: dict[str, int]) -> None:
        """One set; first the one that it needs, where that is not here."""
        scratch = self.directory / backup_set.STATE / _HERE / f"fetched-{str(self.place).replace('/', '-')}-{set_id}"
        guarded(lambda: scratch.mkdir(mode=0o700, parents=True, exist_ok=True), f"making {scratch}")
        described = self._manifest(remote, set_id, scratch)
        base = base_of(described)
        if base and not any(one.id == base for one in backup_set.sets(self.directory)):
            if f"manifest_{base}.json" not in present:
                raise BackupError(f"set {set_id} needs set {base}, which {remote.where} does not have whole")
            self.one(remote, base, present)
        names = self._fetch(remote, described, present, scratch)
        fetched = BackupSet(set_id, scratch, {name: str(entry["file"]) for name, entry in described.components.items()}, True)
        report = verify.examine_set(self.settings, self.reporter, fetched)
        if report.faults:
            faults = [fault.replace(str(scratch), remote.where) for fault in report.faults]
            _clear(scratch)
            raise VerificationError(f"set {set_id} from {remote.where} does not verify and was not taken: {'; '.join(faults)}")
        self._publish(remote, described, names, scratch)
        self.reporter.step(f"set {set_id}: brought back from {remote.where}, {human_size(described.size)}, verified")
        self.ids.append(set_id)
        self._warn_of_age(set_id)

    def _manifest(self, remote: Remote, set_id: str, scratch: Path) -> Manifest:
        path = scratch / f"manifest_{set_id}.json"
        path.unlink(missing_ok=True)
        remote.fetch(path.name, path)
        try:
            return manifest.read(path)
        except VerificationError as error:
            raise VerificationError(f"set {set_id} at {remote.where} is damaged: {error}") from error

    def _fetch(self, remote: Remote, described: Manifest, present: dict[str, int], scratch: Path) -> list[str]:
        """Every file of the set, those that an earlier run has fetched whole left out. Gives the names, the manifest last."""
        entries = {str(entry["file"]): entry for entry in described.components.values()}
        names = [*entries, f"manifest_{described.id}.txt"]
        if absent := [name for name in names if name not in present]:
            raise VerificationError(f"set {described.id} at {remote.where} is damaged: {', '.join(absent)} is missing there")
        need = sum(int(entry["bytes"]) for name, entry in entries.items() if not (scratch / name).exists())
        free = shutil.disk_usage(scratch).free
        if need > free:
            raise BackupError(
                f"set {described.id} needs {human_size(need)} and {human_size(free)} are free in {self.directory}: "
                "make room, or pull into another directory (--backup-dir)"
            )
        for name in names:
            path = scratch / name
            if name in entries and path.exists() and pipeline.hash_file(path)[1] == entries[name]["sha256"]:
                continue
            path.unlink(missing_ok=True)
            remote.fetch(name, path)
            path.chmod(0o600)
            self.bytes += path.stat().st_size
            self.reporter.advance(remote.target.name, self.bytes, None)
        return [*names, f"manifest_{described.id}.json"]

    def _publish(self, remote: Remote, described: Manifest, names: list[str], scratch: Path) -> None:
        with lock.hold(self.directory / backup_set.STATE / "lock", "sync", self.settings.lock_wait_s):
            staging = Staging(self.directory, described.id)
            try:
                for name in names:
                    path = staging.new_file(name)
                    _settle(scratch / name, path)
                alarms = list(described.data.get("alarms", []))
                verdict = history.ACKNOWLEDGED if alarms else history.VERIFIED  # what was not acknowledged never left
                history.append(
                    self.directory, described.id, verdict, "sync", depth=verify.FULL, alarms=alarms, faults=[],
                    summary=described.summary(),
                )  # fmt: skip
                Record(self.directory).note(records.PULLED, remote.where, described.id, place=str(self.place))
                staging.publish(names)
            except BaseException:
                process.resume()
                staging.discard()
                raise
        _clear(scratch)

    def _warn_of_age(self, set_id: str) -> None:
        age = clock.now() - clock.id_time(set_id)
        if age.days >= self.settings.retention_days:
            self.reporter.warn(
                f"set {set_id} is {age.days} days old, and the next backup removes what is older than retention_days "
                f"({self.settings.retention_days}): restore it before that, or raise retention_days"
            )


def _settle(source: Path, path: Path) -> None:
    """Move a fetched file into the staging, on the disk for good. Raises BackupError."""

    def settle() -> None:
        source.chmod(0o600)
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        source.rename(path)

    guarded(settle, f"writing {path}")
