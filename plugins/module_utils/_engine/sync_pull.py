# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a set back from elsewhere: manifest → files → verify fully → publish, under its own ID or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import audit, backup_set, clock, copies, history, lock, manifest, pipeline, process, verify
from .backup_set import BackupSet, Staging
from .errors import BackupError, Cancelled, UsageError, VerificationError
from .manifest import Manifest, human_size
from .offsite import kinds
from .offsite import record as records
from .offsite.base import Place, Remote
from .offsite.record import Record, base_of
from .process import guarded
from .progress import Reporter
from .settings import Settings
from .targets import Target


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


@dataclass(frozen=True)
class Found:
    """The set that a pull would bring back, and where it is; `here` where it lies in the backup directory already."""

    id: str
    where: str
    here: bool


def pull(settings: Settings, reporter: Reporter, which: str, names: Iterable[str] = (), *, host: str = "") -> Pulled:
    """Bring a set (an ID, or `latest`) back into the backup directory, with the one it needs; never over anything there.

    The first target that has it whole serves; one that is not reached is passed over with a warning. Raises UsageError,
    VerificationError, BackupError; then nothing appeared, and what was fetched already is not fetched again next time.
    """
    directory = backup_set.directory(settings.backup_dir)
    wanted, place, begun = copies.chosen(settings, names), copies.place_of(settings, host), time.monotonic()
    if which != "latest":
        clock.id_time(which)
        _demand_absent(directory, which)
    with copies.hold(directory, settings):
        pulling = _Pull(settings, reporter, directory, place)
        facts = {"verb": "sync", "backup_dir": directory, "id": which, "targets": ",".join(one.name for one in wanted)}
        try:
            remote, set_id, present = _find(settings, reporter, which, wanted, place)
            _demand_absent(directory, set_id)
            pulling.one(remote, set_id, present)
        except BaseException as error:
            process.resume()
            copies.failed(directory, settings, reporter, facts, str(error) or type(error).__name__)
            raise
        pulled = Pulled(set_id, directory, remote.where, pulling.ids, pulling.bytes, time.monotonic() - begun)
        audit.append(directory, "sync", "done", target=remote.target.name, where=remote.where, pulled=pulled.ids)
        return pulled


def find(settings: Settings, reporter: Reporter, which: str, names: Iterable[str] = (), *, host: str = "") -> Found:
    """What a pull would bring back; brings nothing. Raises UsageError, BackupError."""
    directory = backup_set.directory(settings.backup_dir, write=False)
    wanted, place = copies.chosen(settings, names), copies.place_of(settings, host)
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
        whole = [one for one in copies.ids(present) if f"manifest_{one}.json" in present]
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
    if which in copies.ids(present):
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
        scratch = self.directory / backup_set.STATE / copies.SCRATCH / f"fetched-{str(self.place).replace('/', '-')}-{set_id}"
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
            copies.clear(scratch)
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
            described = manifest.read(path)
        except VerificationError as error:
            raise VerificationError(f"set {set_id} at {remote.where} is damaged: {error}") from error
        self._demand_theirs(remote, described)
        return described

    def _demand_theirs(self, remote: Remote, described: Manifest) -> None:
        """Where a key opens one folder, whatever host is named, it must not be our own folder that is taken for another's."""
        with contextlib.suppress(UsageError):  # a host without a name has sent nothing
            ours = copies.place_of(self.settings)
            if not remote.target.own_folder or ours == self.place:
                return
            where = kinds.reach(self.settings, remote.target, ours).where
            if Record(self.directory).was_read_back(where, described):
                raise BackupError(
                    f"key_file of target {remote.target.name} opens the folder of {ours}, not that of {self.place}: "
                    f"let it into the folder of {self.place} on the receiving host first"
                )

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
        copies.clear(scratch)

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
