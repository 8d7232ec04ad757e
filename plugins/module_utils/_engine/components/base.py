# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a store must be able to do: the contract between the verbs and `components/`.

A verb never knows which store it works on. It asks a `Component` to probe, to open a cut and dump it, to examine what
lies in a file, to plan and prepare a restore; it holds the `Cut` and the `Restoration` in between. Each component has
one thread of its own for the whole run, because the kernel ties a child program's life to the thread that started it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from .. import clock
from ..pipeline import Growing, Reader, Writer
from ..progress import Reporter
from ..settings import Settings

COUNTS, CONTENT = "counts", "content"
"""The two levels of a fingerprint: how much there is, and what it is."""


def named(program: Any) -> str:
    """A server or tool as the manifest has it ({"name": …, "version": …}), for a sentence: PostgreSQL 15.14."""
    return f"{program['name']} {program['version']}" if isinstance(program, dict) else str(program)


def make_private(path: Path) -> None:
    """Make a directory and what is missing above it, each for us alone: `parents` of Path.mkdir follows the umask. OSError."""
    for one in (*reversed(path.parents), path):
        if not one.is_dir():
            one.mkdir(mode=0o700, exist_ok=True)


@dataclass
class Probe:
    """What a store answered before a run: nothing was touched yet.

    `problems` are sentences that forbid the run, all of them and not only the first; `raw_bytes` is about how much a
    dump will write before compression (None where it cannot be known); `facts` are versions for the manifest.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    raw_bytes: int | None = None


class Cut(ABC):
    """A store held at one moment, until it is dumped. Use `close` in every case."""

    moment: datetime
    """When the cut was made, in UTC."""
    sealed: ClassVar[bool] = False
    """Whether the file holds digests of all that is in it, as the store told them, and `examine` compares them where the entry
    has none of the whole file: what is read back from the disk is then held against the store, not against what we wrote."""
    walks: ClassVar[bool] = False
    """Whether `dump` itself walks through all that it writes, and takes the fingerprint from there: what is read back from the
    disk then only has to be the same bytes, and walking through them once more would find the same."""

    @abstractmethod
    def dump(self, out: Writer) -> None:
        """Write everything that the cut holds to `out` and take the fingerprint. Raises BackupError."""

    @abstractmethod
    def entry(self) -> dict[str, Any]:
        """After `dump`: what the manifest records of this component (JSON types only).

        Always `server` ({"name": …, "version": …}), `tool` (what made the file, likewise), `fingerprint`
        ({"level": counts or content, …}), `method` (how, in words), `requires` (what a restore needs: roles, extensions,
        …) and `warnings` (sentences); plus what the component needs for its own restore.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of locks, server-side copies and temporary files. Never raises for what is already gone."""


@dataclass(frozen=True)
class Source:
    """One component's file, to be examined, restored or extracted from.

    `entry` is the component's part of the manifest; None for a legacy set or a file without its set. `walked` are the
    facts that `examine` found in this very file, where the verb has just verified it: they need not be found again.
    `keep` is a private directory in which `examine` may leave the decompressed content, where a restore follows that
    needs it in a file. `past_cache` and `growing` are the reader's: what is being written must be read
    from the disk, and `entry` is only complete when the pieces have ended.
    """

    path: Path
    compression: str
    entry: dict[str, Any] | None = None
    walked: dict[str, Any] = field(default_factory=dict)
    keep: Path | None = None
    past_cache: bool = False
    growing: Growing | None = None

    def reader(self, advance: Callable[[int], None] | None = None) -> Reader:
        """A reader of the decompressed content, which hashes what lies on the disk."""
        return Reader(self.path, compression=self.compression, advance=advance, past_cache=self.past_cache, growing=self.growing)

    def pieces(self) -> Iterator[bytes]:
        """The decompressed content, for whoever compares what is in it: no digest is taken of the file."""
        return Reader(self.path, compression=self.compression, hashing=False).pieces()


@dataclass
class Examination:
    """What a walk through a file's content found. `line` is what verify prints with a ✓ when there are no faults."""

    line: str
    faults: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Comparison:
    """Two fingerprints held against each other. Equal means: something was compared, and nothing differs.

    `compared` counts the things that were looked at on both sides; `not_compared` says what was not and why, and is
    never counted as equal.
    """

    compared: int = 0
    differences: list[str] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether there is positive proof of equality."""
        return self.compared > 0 and not self.differences


@dataclass
class RestoreOptions:
    """How a restore differs from bringing everything back as it was."""

    only_tables: list[str] = field(default_factory=list)
    only_collections: list[str] = field(default_factory=list)
    collection_prefix: str = ""
    accept: frozenset[str] = frozenset()
    """Risks that the operator has accepted by name, such as `maxmemory`: a problem that can be accepted names its word."""


@dataclass
class RestorePlan:
    """What a restore will do to a store: `lines` are shown before the question, `problems` forbid it."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Restoration(ABC):
    """A restore of one store, prepared beside the live data. The verb calls, in this order:

    `prepare` (slow; the live data is untouched), `check` (what was prepared against the manifest's fingerprint),
    `commit` (the switch), `complete` (makes the switch final; PostgreSQL commits here, after all other stores),
    `compare` (the live store against the fingerprint; alone, without the others before it, it only looks). `abort` at
    any point before `complete` takes everything back that it can; `close` always comes last.
    """

    @abstractmethod
    def prepare(self) -> None:
        """Build what will be switched to. Raises BackupError; whatever was made is removed by `abort`."""

    @abstractmethod
    def check(self) -> Comparison:
        """What was prepared, against the fingerprint. Where nothing can be prepared beside the live data, says so in
        `not_compared` (`compared` 0 is then no fault)."""

    @abstractmethod
    def commit(self) -> None:
        """Switch to the new data (PostgreSQL: both renames, in a transaction that stays open)."""

    @abstractmethod
    def complete(self) -> None:
        """Make the switch final."""

    @abstractmethod
    def compare(self) -> Comparison:
        """The live store against the fingerprint, looked at anew."""

    @abstractmethod
    def abort(self) -> None:
        """Take back what was done so far. Raises BackupError where that is not possible."""

    @abstractmethod
    def state(self) -> str:
        """One sentence for the operator: what is live now (old or new data), and where the old data lies."""

    @abstractmethod
    def close(self) -> None:
        """Remove what is no longer needed: throwaway servers, uploads, temporary files. The old data stays."""


@dataclass
class Context:
    """What a component works with in one run."""

    settings: Settings
    reporter: Reporter
    workdir: Path
    """A private directory (0700) on the backup disk that the verb makes and removes; `Component.scratch` uses it."""
    journal: Callable[..., None]
    """`journal(step, **facts)`: written to the disk before it returns. Names everything that must be cleaned up after a kill
    (scratch databases, server-side snapshots, staged directories) before it is made."""
    stamp: str = field(default_factory=lambda: clock.set_id(clock.now()))
    """The run's time, in the names of whatever is kept or made beside: what the plan says is what is made."""


class Component(ABC):
    """One store. Subclasses are cheap to make and connect only when asked to do something."""

    name: ClassVar[str]
    """As in --component and in the manifest: postgresql, redis, qdrant, config."""
    prefix: ClassVar[str]
    """The first part of its file's name: db, redis, qdrant, config."""
    extension: ClassVar[str]
    """The rest of its file's name without compression: .dump, .rdb, .tar."""
    label: ClassVar[str]
    """What verify calls its file: Database, Redis, Qdrant, Config."""
    title: ClassVar[str]
    """The heading in verify's text: Database Backup, …"""
    compressible: ClassVar[bool] = True
    """Whether its file is compressed in the pipeline (a Redis dump is not)."""

    def __init__(self, context: Context):
        self.context = context
        self.settings = context.settings
        self.reporter = context.reporter

    @abstractmethod
    def probe(self) -> Probe:
        """Ready to be backed up? Reachable, rights, tools and their versions. Never raises for what it finds."""

    @abstractmethod
    def open_cut(self, ready: Callable[[], None], level: str) -> Cut:
        """Do everything that can be done before, call `ready()` (returns when all stores are), and make the cut at once.

        `level` is the fingerprint's: COUNTS or CONTENT. Raises BackupError.
        """

    @abstractmethod
    def examine(self, source: Source, pieces: Iterator[bytes]) -> Examination:
        """Walk through the whole decompressed content, which must be read to its end, and hold it against the manifest.

        Works without the store and without its server. Raises VerificationError only where the walk cannot go on.
        """

    @abstractmethod
    def plan_restore(self, source: Source, options: RestoreOptions) -> RestorePlan:
        """What a restore would do, and everything that forbids it. Touches nothing (a scratch database apart)."""

    @abstractmethod
    def restoration(self, source: Source, options: RestoreOptions) -> Restoration:
        """The restore itself, not yet begun."""

    @abstractmethod
    def extract(self, source: Source, what: str, target: Path, form: str) -> str:
        """Take one thing out of a file without touching a store; returns a sentence on what was written to `target`.

        `what` is a table, key pattern, collection or path; `form` is csv, sql, jsonl, snapshot or file (empty: its own).
        """

    @abstractmethod
    def clean_up(self, step: dict[str, Any]) -> None:
        """Remove what a killed run left behind, as told by a line of its journal that this component wrote. Idempotent."""

    def settle(self) -> None:
        """Remove what earlier runs left and could not remove then; at the begin and the end of a run. Never raises."""
        return

    def look(self) -> str:
        """The guide's look at the live store after a restore: what was asked and answered, in a few words. Raises BackupError.

        PostgreSQL counts the memories, Redis answers PING; the guide has none for the others.
        """
        return "nothing to ask"
