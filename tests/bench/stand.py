# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand: four throwaway stores with seeded data, a clock, and the turn-taking of ours and the peers."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from psycopg import sql

from tests.support import command, data
from tests.support.data import Scale
from tests.support.servers import Stores, empty_directory

TIMES = 3
HOURS = 3600
COLLECTIONS = ("memories", "agents")


class BenchError(RuntimeError):
    """A measurement could not be made; the message says which and why."""


@dataclass(frozen=True)
class Sample:
    """One run, or the median of several: wall-clock seconds, bytes of what was written where that matters; and from the
    shortest to the longest of the runs, which tells how much the machine was disturbed."""

    seconds: float
    bytes: int = 0
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Contender:
    """One side of a comparison. `run` is timed (or gives its own Sample); `before` and `after` are not."""

    name: str
    run: Callable[[], Sample | None]
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None


def take_turns(contenders: list[Contender], tell: Callable[[str], None]) -> dict[str, Sample]:
    """Run all in turn, TIMES times over, so that drift hits each alike; returns each one's median run."""
    samples: dict[str, list[Sample]] = {one.name: [] for one in contenders}
    for __ in range(TIMES):
        for one in contenders:
            one.before()
            os.sync()  # what another one left dirty must not slow this one down, nor what the disk still does about it
            _await_quiet_disks()
            begun, used = time.perf_counter(), _processor_seconds()
            own = one.run()
            seconds, used = time.perf_counter() - begun, _processor_seconds() - used
            samples[one.name].append(own or Sample(seconds))
            one.after()
            tell(f"    {one.name}: {samples[one.name][-1].seconds:.2f} s ({used:.2f} s of processor)")
    return {name: _median(runs) for name, runs in samples.items()}


def _await_quiet_disks() -> None:
    """Wait until no disk has done anything for half a second, a minute at most: a file system that is mounted with `discard`
    tells the disk of the gigabytes that were deleted after sync(2) has come back."""
    deadline = time.monotonic() + 60
    before = None
    while before != (now := Path("/proc/diskstats").read_text()) and time.monotonic() < deadline:
        before = now
        time.sleep(0.5)


def _processor_seconds() -> float:
    """Of all children that have ended, the stores' own left out as long as they live: what other work disturbs least."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _median(runs: list[Sample]) -> Sample:
    seconds = [run.seconds for run in runs]
    return Sample(statistics.median(seconds), int(statistics.median(run.bytes for run in runs)), (min(seconds), max(seconds)))


def size_of(directory: Path, pattern: str = "*") -> int:
    """Bytes of the files in a directory, manifests left out."""
    return sum(path.stat().st_size for path in directory.glob(pattern) if path.is_file() and not path.name.startswith("manifest"))


class Stand:
    """Stores filled at one scale. As a context manager it starts and fills them, and removes everything at the end."""

    def __init__(self, scale: Scale, tell: Callable[[str], None]) -> None:
        self.scale = scale
        self.tell = tell
        self.stores = Stores()
        self._numbers = itertools.count(1)

    def __enter__(self) -> Stand:
        begun = time.perf_counter()
        self.stores.__enter__()
        try:
            data.fill(self.stores, scale=self.scale)
            self.save_redis()  # the guide copies whatever dump.rdb is there; there must be one
            self.settle()
        except BaseException:
            self.stores.close()
            raise
        self.tell(f"  filled in {time.perf_counter() - begun:.0f} s")
        self.expected = self.counts()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stores.close()

    def save_redis(self) -> None:
        """Have Redis write its dump.rdb, once the one is whole that it began by itself: filling it reaches its save points."""
        deadline = time.monotonic() + HOURS
        with self.stores.redis.client() as client:
            while True:
                try:
                    client.save()
                    return
                except redis.ResponseError as error:
                    if "in progress" not in str(error) or time.monotonic() > deadline:
                        raise BenchError(f"Redis does not write its dump.rdb: {error}") from error
                    time.sleep(0.1)

    def settle(self) -> None:
        """Have PostgreSQL vacuum what came in, and wait until Qdrant has optimized it.

        Autovacuum and the optimizer would slow whoever comes first, and whoever first reads rows that were never vacuumed writes
        every page anew (PostgreSQL's wiki, Hint Bits). A store that has run for a day has that behind it.
        """
        with self.stores.postgres.connect(self.stores.postgres.dbname) as connection:
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")
        deadline = time.monotonic() + HOURS
        with self.stores.qdrant.client() as client:
            for name in COLLECTIONS:
                while client.get(f"/collections/{name}").json()["result"]["status"] != "green":
                    if time.monotonic() > deadline:
                        raise BenchError(f"Qdrant still optimizes the collection {name}")
                    time.sleep(0.1)

    def counts(self) -> dict[str, int]:
        """How much there is in each store: a run that brought back less has not restored anything."""
        with self.stores.postgres.connect_application() as connection:
            memories = connection.execute("SELECT (SELECT count(*) FROM memories) + (SELECT count(*) FROM messages)").fetchone()
        with self.stores.redis.client() as client:
            keys = sum(entry["keys"] for entry in client.info("keyspace").values())
        with self.stores.qdrant.client() as client:
            points = sum(
                client.post(f"/collections/{one}/points/count", json={}).json()["result"]["count"] for one in COLLECTIONS
            )
        files = sum(len(names) for __, __, names in os.walk(self.stores.config_dir))
        return {"rows": memories[0] if memories else 0, "keys": keys, "points": points, "files": files}

    def require_all(self) -> None:
        """Raises BenchError unless every store holds as much as it was filled with."""
        found = self.counts()
        if found != self.expected:
            raise BenchError(f"after a restore the stores hold {found} instead of {self.expected}")

    def fresh(self, label: str) -> Path:
        """A new empty directory of mode 0700 for a set."""
        path = self.stores.directory / f"{label}-{next(self._numbers)}"
        path.mkdir(mode=0o700)
        return path

    def ours(self, backup_dir: Path, *arguments: str) -> dict[str, Any]:
        """Run `agentmem-backup … --json` on a backup directory; BenchError unless it ends with 0."""
        words = (*arguments, "--json", *command.QUIET)
        done = command.run(self.stores, *words, program=command.COLD, env={"BACKUP_DIR": str(backup_dir)}, timeout=HOURS)
        if done.returncode:
            raise BenchError(f"agentmem-backup {' '.join(arguments)} ended with {done.returncode}: {done.stderr}{done.stdout}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def peer(self, script: str, out: Path) -> None:
        """Run one of the peers' scripts; BenchError unless it ends with 0."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=self.peer_environment(out),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"the peer ended with {done.returncode}: {script}\n{done.stderr}{done.stdout}")

    def peer_environment(self, out: Path) -> Mapping[str, str]:
        """What the peers' scripts expect."""
        stores = self.stores
        return {
            **os.environ,
            "PATH": f"{stores.postgres.bindir}:{os.environ['PATH']}",
            **stores.postgres.libpq_environment(),
            "REDISCLI_AUTH": stores.redis.password,
            "REDIS_HOST": stores.redis.host,
            "REDIS_PORT": str(stores.redis.port),
            "REDIS_DATA_DIR": str(stores.redis.dir),
            "QDRANT_DATA_DIR": str(stores.qdrant.storage),
            "CONFIG_DIR": str(stores.config_dir),
            "OUT": str(out),
        }

    def tidy(self) -> None:
        """After a restore: remove what either way keeps of the old data or does not bring back, so that all runs begin alike."""
        self._tidy_databases()
        with self.stores.qdrant.client() as client:
            present = [one["name"] for one in client.get("/collections").json()["result"]["collections"]]
            aliases = client.get("/aliases").json()["result"]["aliases"]
            used = {*COLLECTIONS, *(one["collection_name"] for one in aliases)}
            for name in present:
                if name not in used:
                    client.delete(f"/collections/{name}").raise_for_status()
        for beside in self.stores.directory.glob(f"{self.stores.config_dir.name}.*"):
            shutil.rmtree(beside)
        self.settle()

    def _tidy_databases(self) -> None:
        postgres = self.stores.postgres
        with postgres.connect() as connection:
            others = "SELECT datname FROM pg_database WHERE datname LIKE %s"
            for (name,) in connection.execute(others, [f"{postgres.dbname}\\_\\_%"]).fetchall():
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        data.describe_database(postgres)  # the guide's dropdb loses the database's own settings and grants

    def discard(self, directory: Path) -> None:
        """Remove a directory made by `fresh`."""
        empty_directory(directory)
        directory.rmdir()
