# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets on the disk: their names, how one comes into being, how one is found, how one goes.

A set is made under `.staging/<ID>/` with a journal that names each of its files. Once all are written, flushed,
checked and described, the journal says `publish`, and the files move to their places, the JSON manifest last. Whatever
instant a run is killed at, the next one finishes or removes exactly what a journal names (`recover`), and nothing else.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import clock, journal, manifest
from .errors import BackupError, UsageError, VerificationError
from .manifest import Manifest
from .process import guarded, os_sentence

COMPONENT_OF = dict(zip(("db", "redis", "qdrant", "config"), manifest.COMPONENTS, strict=True))
"""First part of a file's name → component, in the guide's order."""
_NAME = re.compile(
    r"(?:(?P<prefix>db|redis|qdrant|config)_(?P<id>\d{8}_\d{6})(?:\.dump|\.rdb|\.tar)(?:\.gz|\.zst)?"
    r"|manifest_(?P<manifest>\d{8}_\d{6})\.(?P<kind>json|txt))"
)
STAGING, STATE, HISTORY = ".staging", ".state", ".history"


def directory(path_text: str, *, write: bool = True) -> Path:
    """The backup directory, checked. Raises UsageError where it is missing, a link, no directory or not writable."""
    path = Path(path_text)
    if path.is_symlink():
        raise UsageError(f"the backup directory {path} is a symbolic link: name what it points to (BACKUP_DIR={path.resolve()})")
    if not path.exists():
        raise UsageError(
            f"the backup directory {path} does not exist: mount its disk, name another (BACKUP_DIR), "
            f"or make it with: install -d -m 700 {path}"
        )
    if not path.is_dir():
        raise UsageError(f"the backup directory {path} is not a directory: name another (BACKUP_DIR)")
    if write and os.statvfs(path).f_flag & os.ST_RDONLY:  # before access(2), which says no to root there, too
        raise UsageError(
            f"the backup directory {path} lies on a read-only file system: remount it, or name another (BACKUP_DIR), to which "
            "the files of a set may be copied"
        )
    if not os.access(path, os.R_OK | os.X_OK | (os.W_OK if write else 0)):
        needed = "written" if write else "read"
        raise UsageError(f"the backup directory {path} cannot be {needed}: run as the backup user or root")
    return path


@dataclass(frozen=True)
class BackupSet:
    """One set as it lies on the disk. `names` maps component → name of its file, in the guide's order."""

    id: str
    directory: Path
    names: dict[str, str]
    has_manifest: bool

    @cached_property
    def files(self) -> dict[str, Path]:
        """Component → path of the file that bears the set's ID."""
        return {component: self.directory / name for component, name in self.names.items()}

    @property
    def legacy(self) -> bool:
        """Whether the guide's own scripts made it: there is no JSON manifest."""
        return not self.has_manifest

    @property
    def manifest_path(self) -> Path:
        """Where its JSON manifest lies, or would."""
        return self.directory / f"manifest_{self.id}.json"

    @property
    def text_path(self) -> Path:
        """Where its text manifest lies."""
        return self.directory / f"manifest_{self.id}.txt"

    @cached_property
    def manifest(self) -> Manifest | None:
        """Its manifest; None for a legacy set. Raises VerificationError where it is damaged."""
        return None if self.legacy else manifest.read(self.manifest_path)

    @cached_property
    def holds(self) -> dict[str, Path]:
        """Component → its file as the manifest names it, whether it is still there or not; of a legacy set, what is there."""
        if self.manifest is None:
            return self.files
        return {name: self.directory / str(entry["file"]) for name, entry in self.manifest.components.items()}

    def entry(self, component: str) -> dict[str, Any] | None:
        """What the manifest records of a component."""
        return self.manifest.components.get(component) if self.manifest else None

    def size(self) -> int:
        """Bytes on the disk of its components' files, as the file system says now."""
        return sum(path.stat().st_size for path in self.files.values())


def sets(backup_dir: Path) -> list[BackupSet]:
    """All sets in a backup directory, oldest first."""
    files: dict[str, dict[str, str]] = {}
    described: set[str] = set()
    try:
        with os.scandir(backup_dir) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match is None:
                    continue
                if match["manifest"]:
                    files.setdefault(match["manifest"], {})
                    if match["kind"] == "json":
                        described.add(match["manifest"])
                else:
                    files.setdefault(match["id"], {})[COMPONENT_OF[match["prefix"]]] = entry.name
    except OSError as error:
        raise BackupError(os_sentence(error, f"reading {backup_dir}")) from error
    order = list(COMPONENT_OF.values())
    hidden = _in_motion(backup_dir)
    return [
        BackupSet(one, backup_dir, {name: files[one][name] for name in order if name in files[one]}, one in described)
        for one in sorted(files)
        if clock.is_set_id(one) and one not in hidden and (files[one] or one in described)
    ]


def _in_motion(backup_dir: Path) -> set[str]:
    """IDs of sets that are just being published or removed, or were when a run was killed: neither there nor gone."""
    staging = backup_dir / STAGING
    moving: set[str] = set()
    for path in staging.iterdir() if staging.is_dir() else []:
        moving.add(path.name)
        for step in journal.read(path / "journal"):
            if step["step"] == "remove":
                moving |= {match["id"] or match["manifest"] for name in step["files"] if (match := _NAME.fullmatch(name))}
    return moving


def extra_files(one: BackupSet) -> list[str]:
    """Names of files that bear the set's ID although its manifest does not name them."""
    if one.manifest is None:
        return []
    named = {entry["file"] for entry in one.manifest.components.values()}
    named |= {one.manifest_path.name, one.text_path.name}
    return sorted(path.name for path in one.directory.glob(f"*_{one.id}*") if path.name not in named)


def find(backup_dir: Path, which: str, components: Iterable[str] = ()) -> BackupSet:
    """The set that `which` names: an ID, or `latest`, the newest that has files of `components`.

    Raises UsageError that says which sets there are.
    """
    present, wanted = sets(backup_dir), list(components)
    if which == "latest":
        past = (one for one in reversed(present) if clock.id_time(one.id) <= clock.now())
        for one in past:
            if meant_to_hold(one, wanted):
                return one
        holding = f" that holds {', '.join(wanted)}" if wanted and present else ""
        raise UsageError(f"there is no set{holding} in {backup_dir}: make one with agentmem-backup create")
    clock.id_time(which)
    for one in present:
        if one.id == which:
            return one
    newest = f"the newest is {present[-1].id}" if present else "there is none at all"
    raise UsageError(f"there is no set {which} in {backup_dir}: {newest} (see: agentmem-backup list)")


def meant_to_hold(one: BackupSet, components: Iterable[str]) -> bool:
    """Whether a set has these components, or had: one whose file has vanished or whose manifest is damaged must be
    refused by whoever reads it, and not passed over for an older one."""
    try:
        return one.holds.keys() >= {*components}
    except VerificationError:
        return True


def demand(one: BackupSet, components: Iterable[str]) -> None:
    """Raise UsageError unless a set has all of `components`; it says which it has."""
    absent = [name for name in components if name not in one.holds]
    if absent:
        raise UsageError(f"set {one.id} has no {', '.join(absent)}: it holds {', '.join(one.holds) or 'nothing'}")


def component_of_file(path: Path) -> str | None:
    """The component whose file this is, by its name."""
    match = _NAME.fullmatch(path.name)
    prefix = match["prefix"] if match else path.name.split("_")[0]
    return COMPONENT_OF.get(prefix or "")


def set_of_file(path: Path) -> BackupSet | None:
    """The set that a file lies in, by its name and its neighbours."""
    match = _NAME.fullmatch(path.name)
    if match is None or not match["id"]:
        return None
    return next((one for one in sets(path.absolute().parent) if one.id == match["id"]), None)


def new_id(backup_dir: Path) -> str:
    """The ID of a set that begins now. Where a set began in this second, it waits for the next."""
    deadline = time.monotonic() + 2
    while _taken(backup_dir, found := clock.set_id(clock.now())) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _taken(backup_dir: Path, name: str) -> bool:
    return (backup_dir / STAGING / name).exists() or any(backup_dir.glob(f"*_{name}.*"))


class Staging:
    """Work in progress under `.staging/<name>/`: a set in the making (its name is the ID), or a restore."""

    def __init__(self, backup_dir: Path, name: str):
        """Begin. Raises UsageError where a set of that ID exists: two sets in one second never overwrite each other."""
        self.backup_dir = backup_dir
        self.id = name
        self.path = backup_dir / STAGING / name
        if _taken(backup_dir, name):
            raise UsageError(f"there is a set {name} in {backup_dir} already: wait a second and run again")
        guarded(lambda: _make_private(self.path), f"making {self.path}")
        guarded(lambda: journal.sync_directory(self.path.parent), f"making {self.path}")
        self._publishing: list[str] = []
        self._kept = False
        self.journal = guarded(lambda: journal.Journal(self.path / "journal"), f"writing {self.path / 'journal'}")
        try:
            self.note("begin", id=name)
        except BaseException:  # stopped or out of disk before anybody holds what must be discarded
            self.discard()
            raise

    def note(self, step: str, **facts: Any) -> None:
        """Write a step to the journal and return once it is on the disk. Raises BackupError."""
        guarded(lambda: self.journal.append(step, **facts), f"writing {self.journal.path}")

    @property
    def work(self) -> Path:
        """A private scratch directory for the components, removed with the staging."""
        path = self.path / "work"
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def new_file(self, name: str) -> Path:
        """A path for the set's file `name`, written down before it exists."""
        self.note("file", name=name)
        return self.path / name

    def write(self, name: str, content: bytes) -> None:
        """Write a small file whole and flush it."""
        path = self.new_file(name)

        def save() -> None:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        guarded(save, f"writing {path}")

    def publish(self, names: list[str]) -> None:
        """Move the named files to their places, in that order (the JSON manifest last), and end the staging."""
        guarded(lambda: journal.sync_directory(self.path), f"writing {self.path}")
        self.note("publish", files=names)
        self._publishing = names
        _move(self.path, self.backup_dir, names, self.note)
        self.note("published")
        self._publishing = []
        self.journal.close()
        _remove_staging(self.path)

    def discard(self) -> None:
        """Give the set up and remove what was made for it; one that is just being published is whole, and is finished.

        Where that is not possible now (a full disk), it is left to the next run, which the journal tells.
        """
        if self._publishing:
            try:
                _move(self.path, self.backup_dir, self._publishing, self.note)
            except BackupError:
                self._kept = True
        self.journal.close()
        if not self._kept:
            _remove_staging(self.path)

    def keep(self) -> None:
        """Something could not be taken back: `discard` leaves the journal, so that the next run tries again."""
        self._kept = True


def _make_private(path: Path) -> None:
    """Make a staging directory and, the first time, its parent: for us alone (mkdir's `parents` would follow the umask)."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700)


def _move(staged: Path, backup_dir: Path, names: list[str], note: Callable[..., None]) -> None:
    for name in names:
        source, target = staged / name, backup_dir / name
        if not source.exists():
            if target.exists():
                continue  # a run that was killed had moved it
            raise BackupError(f"{source} has vanished: the set is incomplete and was not published")
        if target.exists():
            raise BackupError(f"{target} exists already and is left as it is: move it away and run again")
        note("move", name=name)
        try:
            source.rename(target)
            journal.sync_directory(backup_dir)
        except OSError as error:
            raise BackupError(os_sentence(error, f"moving {name} into {backup_dir}")) from error


def _remove_staging(path: Path) -> None:
    """Remove a staging directory: the files that its journal names, its scratch, the journal last."""
    named = [str(step["name"]) for step in journal.read(path / "journal") if step["step"] == "file"]
    for name in named:
        (path / Path(name).name).unlink(missing_ok=True)
    _remove_tree(path / "work")
    left = [entry for entry in path.iterdir() if entry.name != "journal"] if path.exists() else []
    if left:
        return  # somebody else's: not ours to remove
    (path / "journal").unlink(missing_ok=True)
    if path.exists():
        path.rmdir()


def _remove_tree(path: Path) -> None:
    """Remove our own scratch directory (never following a link)."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)


def recover(backup_dir: Path, clean_up: Callable[[dict[str, Any]], None]) -> list[str]:
    """Finish or remove what killed runs left behind; call it under the lock. Returns a sentence for each.

    `clean_up` is handed every journal line that a component wrote (it has the key `component`), newest first. Where it
    raises BackupError, the journal stays and the next run tries again.
    """
    told: list[str] = []
    root = backup_dir / STAGING
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if path.is_symlink() or not path.is_dir():
            told.append(f"left {path} as it is: it is none of ours; look at it and remove it by hand")
            continue
        steps = journal.read(path / "journal")
        troubles = []
        for step in reversed(steps):
            if "component" in step:
                try:
                    clean_up(step)
                except BackupError as error:
                    troubles.append(str(error))
        kinds = {step["step"]: step for step in steps}
        if "remove" in kinds:
            _remove_files(backup_dir, kinds["remove"]["files"])
            told.append(f"finished removing old sets, which a run that was stopped had begun ({path.name})")
        elif "publish" in kinds:
            log = journal.Journal(path / "journal")
            _move(path, backup_dir, list(kinds["publish"]["files"]), log.append)
            log.close()
            told.append(f"finished publishing set {path.name}, which a run that was stopped had completed")
        elif troubles:
            told.append(f"could not clean up after a stopped run; the next one tries again ({path}): {'; '.join(troubles)}")
            continue
        elif steps:
            told.append(f"removed the unfinished {path.name}, which a run that was stopped had left")
        _remove_staging(path)
        if path.exists():
            told.append(f"left {path} as it is: it holds files that no journal names; look at them and remove it by hand")
    return told


def remove(backup_dir: Path, doomed: list[BackupSet]) -> None:
    """Remove sets: first written down, then manifests, then files, so that a half-removed set is never taken for whole."""
    if not doomed:
        return
    names = [name for one in doomed for name in _names(one)]
    path = backup_dir / STAGING / f"remove-{clock.set_id(clock.now())}"
    # A disk that is full has no room for the note either, and removing sets is what helps there. So their own files make
    # the room, one by one, the manifest's text first, which says no more than its JSON.
    spare = [one.text_path for one in doomed] + [file for one in doomed for file in one.files.values()]
    while True:
        try:
            _write_down(path, names)
            break
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not spare:
                raise BackupError(os_sentence(error, f"writing {path / 'journal'}")) from error
            _remove_files(backup_dir, [spare.pop(0).name])
    _remove_files(backup_dir, names)
    _remove_staging(path)


def _write_down(path: Path, names: list[str]) -> None:
    """Write a journal that names what will be removed. Raises OSError; then nothing of it stays."""
    _make_private(path)
    log = None
    try:
        log = journal.Journal(path / "journal")
        log.append("remove", files=names)
    except OSError:
        _remove_staging(path)
        raise
    finally:
        if log is not None:
            log.close()


def _names(one: BackupSet) -> list[str]:
    return [one.manifest_path.name, one.text_path.name, *(path.name for path in one.files.values())]


def _remove_files(backup_dir: Path, names: list[str]) -> None:
    for name in names:
        if _NAME.fullmatch(name):
            try:
                (backup_dir / name).unlink(missing_ok=True)
            except OSError as error:
                raise BackupError(os_sentence(error, f"removing {backup_dir / name}")) from error
    journal.sync_directory(backup_dir)


def with_manifests(present: list[BackupSet]) -> Iterator[tuple[BackupSet, Manifest | None, str]]:
    """Each set with its manifest and, where that is damaged, the sentence that says so."""
    for one in present:
        try:
            yield one, one.manifest, ""
        except VerificationError as error:
            yield one, None, str(error)
