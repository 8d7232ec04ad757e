# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send verified sets elsewhere: each target in its own thread.

    list → for each verified set that is not known to be whole there: hold it, look at it once more → data files → read back
      → JSON manifest → read back → remember → what `keep` lets go (sync_keep.py)

A push runs beside backups: it holds no lock that these want, but a second name (hard link) of each set that it is just
sending, so that retention takes nothing away from under it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import audit, backup_set, clock, copies, history, hooks, manifest, process, sync_keep, verify, watch
from .backup_set import BackupSet
from .crew import Crew
from .errors import BackupError, Cancelled, VerificationError
from .manifest import human_size
from .offsite import kinds
from .offsite import record as records
from .offsite.base import Remote
from .offsite.record import Record
from .process import guarded
from .progress import Reporter
from .settings import Settings
from .targets import Target


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
    wanted, place, begun = copies.chosen(settings, names), copies.place_of(settings), time.monotonic()
    facts = {"verb": "sync", "backup_dir": directory, "targets": ",".join(one.name for one in wanted)}
    with copies.hold(directory, settings):
        record = Record(directory)
        try:
            hooks.run(settings, "before", reporter, facts)
            ready, stay = copies.candidates(directory, record, place)
            run = _Push(settings, reporter, directory, record, ready)
            with run.held, Crew([target.name for target in wanted]) as crew:
                by_name = {target.name: target for target in wanted}
                outcomes = crew.each(lambda name: run.to(kinds.reach(settings, by_name[name], place)))
            pushed = Pushed(str(place), [outcomes[target.name] for target in wanted], stay)
        except BaseException as error:
            process.resume()
            copies.failed(directory, settings, reporter, facts, str(error) or type(error).__name__)
            raise
        if not ready:
            pushed.faults.append(f"there is no verified set in {directory}, so nothing could be sent: agentmem-backup create")
        pushed.duration_s = time.monotonic() - begun
        for one in pushed.outcomes:
            result = "failed" if one.faults else "done"
            told = {key: value for key, value in vars(one).items() if key in ("where", "sent", "read_back", "removed", "faults")}
            audit.append(directory, "sync", result, target=one.target, **told)
        if pushed.problems:
            copies.failed(directory, settings, reporter, facts, "; ".join(pushed.problems), record=False)
        else:
            hooks.run(settings, "after", reporter, facts)
        return pushed


def plan(settings: Settings, reporter: Reporter, names: Iterable[str] = ()) -> Pushed:
    """What a push would send, by what the targets list; sends and removes nothing."""
    directory = backup_set.directory(settings.backup_dir, write=False)
    wanted, place = copies.chosen(settings, names), copies.place_of(settings)
    record = Record(directory)
    ready, stay = copies.candidates(directory, record, place)

    def look(target: Target) -> Outcome:
        remote = kinds.reach(settings, target, place)
        outcome = Outcome(target.name, remote.where)
        with _told(outcome):
            present = remote.listing()
            rule = sync_keep.Keep(record, remote, ready)
            for one in ready:
                if rule.leaves_out(one, present, outcome.sent + outcome.read_back):
                    outcome.left_out.append(one.id)
                    continue
                damaged = record.damaged(remote.where, one.id)
                missing = {name: size for name, size in copies.sizes(one).items() if present.get(name) != size or name in damaged}
                if missing:
                    outcome.sent.append(one.id)
                    outcome.sent_bytes += sum(missing.values())
                elif not record.was_read_back(remote.where, copies.manifest_of(one)):
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


class _Held:
    """Sets that are just being sent, each held by second names of its files and looked at once more. A context manager."""

    def __init__(self, directory: Path, settings: Settings, reporter: Reporter):
        self._root = directory / backup_set.STATE / copies.SCRATCH / "sending"
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
        names = copies.digests(one)
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
        copies.clear(self._root)
        return self

    def __exit__(self, *__: object) -> None:
        copies.clear(self._root)


class _Push:
    """One run of push, whatever the target."""

    def __init__(self, settings: Settings, reporter: Reporter, directory: Path, record: Record, ready: list[BackupSet]):
        self.settings = settings
        self.reporter = reporter
        self.record = record
        self.ready = ready
        self.held = _Held(directory, settings, reporter)
        self.scratch = directory / backup_set.STATE / copies.SCRATCH

    def to(self, remote: Remote) -> Outcome:
        """Send what is missing to one target, then remove what `keep` lets go."""
        outcome = Outcome(remote.target.name, remote.where)
        with _told(outcome):
            present = remote.listing()
            outcome.notes += remote.remarks
            for remark in remote.remarks:
                self.reporter.warn(f"target {outcome.target}: {remark}")
            rule = sync_keep.Keep(self.record, remote, self.ready)
            for one in self.ready:
                try:
                    if rule.leaves_out(one, present):
                        outcome.left_out.append(one.id)
                    else:
                        self._set(remote, outcome, one, present)
                except VerificationError as error:  # a matter of this set alone
                    outcome.faults.append(str(error))
            if not outcome.faults:
                here = len(self.ready)
                sync_keep.Retention(self.settings, self.reporter, self.record, remote, here, outcome.removed, outcome.notes).run(
                    present
                )
        for fault in outcome.faults:
            self.reporter.warn(f"target {outcome.target}: {fault}")
        return outcome

    def _set(self, remote: Remote, outcome: Outcome, one: BackupSet, present: dict[str, int]) -> None:
        sizes = copies.sizes(one)
        absent = [name for name, size in sizes.items() if present.get(name) != size]
        if not absent and self.record.was_read_back(remote.where, copies.manifest_of(one)):
            outcome.whole.append(one.id)
            return
        begun, held = time.monotonic(), self.held.get(one)
        files = copies.digests(held)
        json_name = one.manifest_path.name
        if json_name in present and not self._same_manifest(remote, held):
            absent.append(json_name)
        data = [name for name in absent if name != json_name]
        self._replace(remote, [name for name in absent if name in present], one.id, "is not whole")
        already = outcome.sent_bytes
        for name in data:
            remote.send(held.directory, [name])
            present[name] = files[name][0]
            outcome.sent_bytes += files[name][0]
            self.reporter.advance(outcome.target, outcome.sent_bytes, None)
        again = self._read_back(remote, held, {name: files[name][1] for name in files if name != json_name}, fresh=data)
        if json_name in absent:
            remote.send(held.directory, [json_name])
            present[json_name] = files[json_name][0]
        again += self._read_back(remote, held, {json_name: files[json_name][1]}, fresh=absent)
        sent = [*absent, *again]
        outcome.sent_bytes = already + sum(files[name][0] for name in sent)
        self.record.read_back(remote.where, copies.manifest_of(one))
        outcome.read_back.append(one.id)
        outcome.whole.append(one.id)
        if sent:
            outcome.sent.append(one.id)
            size = human_size(outcome.sent_bytes - already)
            self.reporter.step(
                f"target {outcome.target}: set {one.id}: sent {len(sent)} files, {size}, "
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
        copies.clear(path.parent)
        guarded(lambda: path.parent.mkdir(mode=0o700, parents=True), f"making {path.parent}")
        try:
            remote.fetch(ours.name, path)
            if path.read_bytes() == ours.read_bytes():
                return True
            with contextlib.suppress(VerificationError):
                other = manifest.read(path)
                if other.digest() != copies.manifest_of(held).digest():
                    raise BackupError(
                        f"{remote.where} has another set {held.id}, of host {other.data.get('host')}: two hosts bear one name "
                        "there; set offsite.host for one of them"
                    )
            return False
        finally:
            copies.clear(path.parent)

    def _read_back(self, remote: Remote, held: BackupSet, digests: dict[str, str], fresh: list[str]) -> list[str]:
        """Have every byte read at the far end; what was damaged before this run is sent again, once. Gives these files."""
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
        return stale
