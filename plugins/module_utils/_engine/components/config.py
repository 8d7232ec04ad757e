# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH112, PTH116, PTH118, PTH120, PTH123
"""The configuration: its directory and further paths, as one tar archive (see `formats/filetree.py`).

A restore builds the new tree in a private directory beside the old one and holds it against the archive's list. Then a
directory is renamed aside and the new one renamed into its place. Where that cannot work, because the directory or
something in it is a mount point or is mounted into a container, files are replaced one by one, and the old ones are
kept as an archive of the same form in the backup directory.
"""

# Paths are bytes in this file: a configuration may have names that are no text, and pathlib knows text only.

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .. import clock
from ..errors import BackupError, UsageError, VerificationError
from ..formats import filetree
from ..formats.filetree import Entry, Listing, Root, raw, shown, telling, text
from ..journal import sync_directory
from ..pipeline import Reader, Writer
from ..process import os_sentence
from ..settings import walk as walk_settings
from .base import (
    CONTENT,
    Comparison,
    Component,
    Cut,
    Examination,
    Probe,
    Restoration,
    RestoreOptions,
    RestorePlan,
    Source,
    make_private,
)

_NAMED_AT_MOST = 20
_ENV_FILE_BYTES = 256 * 1024
_STORES = ("DB_", "REDIS_", "QDRANT_")


def _path(text_path: str) -> bytes:
    """A setting's path as the kernel takes it, links in it resolved: what is read and replaced is what it leads to."""
    return os.path.realpath(os.fsencode(text_path))


def _member_name(path: str) -> str:
    return text(os.fsencode(os.path.normpath(path))).lstrip("/")


_SYSTEM = re.compile(
    rb"/(bin|boot|dev|etc|home|lib|lib64|media|mnt|opt|proc|root|run|sbin|srv|sys|tmp|usr|usr/local|var|var/lib|var/log)?"
)
"""Directories that are never AgentMem's own (FHS 3.0)."""


class ConfigComponent(Component):
    """The configuration store."""

    name = "config"
    prefix = "config"
    extension = ".tar"
    label = "Config"
    title = "Configuration Backup"

    # --- backing up

    def roots(self) -> list[Root]:
        """What is backed up: the directory and the further paths, each with its name in the archive; none inside another.

        Raises UsageError for a path that is not absolute, or is the whole machine.
        """
        roots: list[Root] = []
        for number, path in enumerate([self.settings.config.directory, *self.settings.config.extra_paths]):
            setting = "config.extra_paths" if number else "config.directory"
            if not path.startswith("/") or os.path.normpath(path).strip("/") == "":
                raise UsageError(
                    f"{setting} must name a directory or file by its absolute path, not {shown(os.fsencode(path))!r}"
                )
            roots.append(Root(_member_name(path), _path(path), main=not number))
        return [
            root
            for root in roots
            if root.main
            or not any(
                root.name.startswith(f"{other.name}/") or (other.name == root.name and other is not root) for other in roots
            )
        ]

    def _avoided(self) -> set[tuple[int, int]]:
        """The backup directory, should it lie within the configuration."""
        with contextlib.suppress(OSError):
            status = Path(self.settings.backup_dir).stat()
            return {(status.st_dev, status.st_ino)}
        return set()

    def probe(self) -> Probe:
        probe = Probe(facts={"server": _server(), "tool": _tool()})
        try:
            roots = self.roots()
        except UsageError as error:
            probe.problems.append(str(error))
            return probe
        unreadable: list[str] = []
        size = 0
        for root in roots:
            if problem := self._root_problem(root):
                probe.problems.append(problem)
                continue
            for __, path, status in filetree.walk(
                root, self._avoided(), lambda error, path: unreadable.append(_unreadable(error, path))
            ):
                size += 1024 + (status.st_size if stat.S_ISREG(status.st_mode) else 0)
                if refused := _refused(path, status):
                    unreadable.append(refused)
                elif not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                    probe.warnings.append(f"{shown(path)} is a socket, pipe or device and is not backed up")
        probe.problems += unreadable[:_NAMED_AT_MOST]
        if len(unreadable) > _NAMED_AT_MOST:
            probe.problems.append(f"{len(unreadable) - _NAMED_AT_MOST} more files of the configuration cannot be read")
        probe.raw_bytes = size
        return probe

    def _root_problem(self, root: Root) -> str:
        setting = "CONFIG_DIR (config.directory)" if root.main else "config.extra_paths"
        what = "configuration directory" if root.main else "further path"
        shown_path = "/" + shown(root.name)
        try:
            status = os.stat(root.path)
        except FileNotFoundError:
            return f"the {what} {shown_path} does not exist: correct {setting}, or leave the component config out"
        except OSError as error:
            return os_sentence(error, f"reading the {what} {shown_path}")
        if root.main and not stat.S_ISDIR(status.st_mode):
            return f"the configuration directory {shown_path} is not a directory: name its directory in {setting}"
        return ""

    def open_cut(self, ready: Callable[[], None], level: str) -> ConfigCut:
        """The tree is read in `dump`, which the verb calls at once: it is small, and `ready` has returned by then."""
        roots = self.roots()
        for root in roots:
            if problem := self._root_problem(root):
                raise BackupError(problem)
        ready()
        return ConfigCut(self, roots, self._avoided())

    # --- examining

    def examine(self, source: Source, pieces: Iterator[bytes]) -> Examination:
        return self._examined(source, filetree.walk_archive(pieces, str(source.path)))

    def _examined(self, source: Source, listing: Listing) -> Examination:
        layout = self._layout(listing)
        faults = list(listing.faults)
        fingerprint = (source.entry or {}).get("fingerprint") or {}
        if recorded := fingerprint.get("sha256"):
            if not listing.sha256:
                faults.append(f"its own list {filetree.LIST_NAME} is missing")
            elif recorded != listing.sha256:
                faults.append(f"its own list {filetree.LIST_NAME} is not the one that the manifest knows")
        if not listing.sha256:
            for entry in filetree.links_out(listing.entries, layout[0].name, self.settings.config.directory):
                faults.append(f"{shown(entry.name)} is a link that leads out of the configuration, to {shown(entry.link)}")
        facts = {"files": listing.members, "legacy": not listing.sha256}
        return Examination(f"Config backup tar integrity OK ({listing.members} files)", faults, facts)

    def _layout(self, listing: Listing) -> list[Root]:
        """The roots in an archive: those of its own list, or where the guide's script put the one directory."""
        if listing.sha256:
            return listing.roots
        names = [entry.name for entry in listing.entries]
        if not listing.dotted and names:
            directory = _member_name(self.settings.config.directory)
            if all(_below(name, directory) for name in names):
                return [Root(directory, b"", main=True)]
            tops = {name.split("/")[0] for name in names}
            if len(tops) == 1 and tops <= {"config", directory.rsplit("/", 1)[-1]}:
                return [Root(tops.pop(), b"", main=True)]
        return [Root("", b"", main=True)]

    # --- restoring

    def placements(self, listing: Listing, stamp: str) -> tuple[list[Placement], list[str]]:
        """Where each root of an archive goes, and the names of those that go nowhere.

        The recorded directory becomes the one of the settings. Where that is another one, this is another environment:
        further paths then come back only where the settings name them too.
        """
        layout = self._layout(listing)
        directory = self.settings.config.directory
        main = next((root.name for root in layout if root.main), None)
        moved = main != _member_name(directory)
        named = {_member_name(path) for path in self.settings.config.extra_paths}
        placed, left = [], []
        for number, root in enumerate(layout):
            if root.main or not moved or root.name in named:
                path = _path(directory) if root.main else _path(os.fsdecode(b"/" + raw(root.name)))
                placed.append(Placement.plan(root, path, number, stamp, Path(self.settings.backup_dir)))
            else:
                left.append(root.name)
        return placed, left

    def plan_restore(self, source: Source, options: RestoreOptions) -> RestorePlan:
        plan = RestorePlan()
        variables = _EnvFiles()
        try:
            listing = filetree.walk_archive(source.pieces(), str(source.path), variables.take)
        except BackupError as error:
            plan.problems.append(str(error))
            return plan
        plan.problems += [f"{source.path}: {fault}" for fault in self._examined(source, listing).faults]
        if plan.problems:
            return plan
        placed, left = self.placements(listing, self.context.stamp)
        for placement in placed:
            self._plan_placement(plan, placement, listing)
        plan.warnings += [
            f"/{shown(name)} is in the archive and not among config.extra_paths here: it is not restored" for name in left
        ]
        if os.geteuid() != 0 and any(entry.uid != os.geteuid() for entry in listing.entries):
            plan.warnings.append("only root can give files back to their owners: all will belong to the user who restores")
        if changed := self._changed_variables(placed, variables):
            plan.warnings.append(
                "the configuration that comes back has other values than the present one in "
                f"{', '.join(changed)}: make sure that it still opens the stores"
            )
        return plan

    def _plan_placement(self, plan: RestorePlan, placement: Placement, listing: Listing) -> None:
        target, entries = shown(placement.target), placement.entries(listing)
        if _SYSTEM.fullmatch(os.path.realpath(placement.target)):
            plan.problems.append(
                f"{target} is a directory of the whole system, and a restore leaves nothing in it but what was backed up: "
                "set CONFIG_DIR to AgentMem's own directory"
            )
            return
        count = f"{len(entries)} file{'s' * (len(entries) != 1)}"
        if not os.path.lexists(placement.target):
            plan.lines.append(f"{target} is made anew with {count}")
        elif placement.file_by_file(entries):
            plan.lines.append(
                f"{target} becomes {count} of the backup, file by file ({placement.why(entries)}); "
                f"the old files are kept in {shown(placement.saved)}"
            )
        else:
            plan.lines.append(f"{target} is replaced by {count}; the old one is kept as {shown(placement.previous)}")
        backups = os.path.realpath(os.fsencode(self.settings.backup_dir))
        if f"{text(backups)}/".startswith(f"{text(os.path.realpath(placement.target))}/"):
            plan.problems.append(
                f"the backup directory {shown(backups)} lies inside {target}, which is to be replaced, and would go with it: "
                "move it elsewhere (BACKUP_DIR), and restore from there"
            )
        above = _existing(os.path.dirname(placement.target))
        if not os.access(above, os.W_OK | os.X_OK):
            plan.problems.append(f"{shown(above)} cannot be written to: run the restore as root")
            return
        if os.geteuid() == 0 or placement.file_by_file(entries):
            plan.problems += [
                f"{shown(path)} cannot be changed: mount it writable, or take its attribute away (lsattr -d, chattr -i)"
                for path in sorted({placement.target, *placement.pinned()})
                if os.path.lexists(path) and not Path(os.fsdecode(path)).is_symlink() and not os.access(path, os.W_OK)
            ]
        needed = sum(entry.size + 4096 for entry in entries)
        free = shutil.disk_usage(above).free
        if free < needed:
            plan.problems.append(f"{shown(above)} has room for {free} bytes and the configuration needs {needed}: make room")

    def restoration(self, source: Source, options: RestoreOptions) -> ConfigRestoration:
        return ConfigRestoration(self, source)

    def stores_named(self, source: Source) -> dict[str, str]:
        """The settings of the stores (DB_…, REDIS_…, QDRANT_…) in the archive's .env files, by name.

        The values are secrets: compare them, never show them.
        """
        variables = _EnvFiles()
        filetree.walk_archive(source.pieces(), str(source.path), variables.take)
        return {name: value for values in variables.found.values() for name, value in values.items()}

    def _changed_variables(self, placed: list[Placement], archived: _EnvFiles) -> list[str]:
        """Names of the stores' variables whose archived value differs from the live file's, or else from the settings'."""
        current = {
            option.metadata["env"]: str(value)
            for name, option, value in walk_settings(self.settings)
            if option.metadata["env"] and name in self.settings.sources
        }
        changed = set()
        for member, values in archived.found.items():
            placement = next((one for one in placed if _below(member, one.root.name)), None)
            if placement is None:
                continue
            live = _live_variables(placement.live_path(member))
            for name, value in values.items():
                present = live.get(name, current.get(name))
                if present is not None and present != value:
                    changed.add(name)
        return sorted(changed)

    # --- taking one file out

    def extract(self, source: Source, what: str, target: Path, form: str) -> str:
        if form not in ("", "file"):
            raise UsageError(f"a file of the configuration is extracted as it is: {form!r} is no form for it")
        listing = filetree.walk_archive(source.pieces(), str(source.path))
        entry = self._wanted(listing, what)
        if os.path.lexists(target):
            raise UsageError(f"{shown(os.fsencode(target))} exists already: name another target")
        extracted = _Extracted(entry, target)
        try:
            filetree.walk_archive(source.pieces(), str(source.path), extracted.take)
            extracted.finish()
        except BaseException:
            extracted.abandon()
            raise
        return f"{shown(entry.name)} was written to {shown(os.fsencode(target))} ({entry.size} bytes)"

    def _wanted(self, listing: Listing, what: str) -> Entry:
        name = text(os.fsencode(what)).strip("/")
        main = next((root.name for root in self._layout(listing) if root.main), "")
        known = {entry.name: entry for entry in listing.entries}
        for candidate in (name, f"{main}/{name}", _renamed(name, _member_name(self.settings.config.directory), main)):
            entry = known.get(candidate)
            if entry is None:
                continue
            if entry.kind == filetree.LINK:
                raise UsageError(f"{shown(name)} is a link to {shown(entry.link)}: extract that")
            if entry.kind == filetree.DIRECTORY:
                raise UsageError(f"{shown(name)} is a directory: name one file in it")
            return known[entry.link] if entry.kind == filetree.HARD_LINK else entry
        files = [entry.name.removeprefix(f"{main}/") for entry in listing.entries if entry.kind == filetree.FILE]
        near = difflib.get_close_matches(name, files, 3, 0.3) or files[:3]
        raise UsageError(
            f"there is no file {shown(name)!r} in the archive: name it by its path, as it was when it was backed up, such as "
            f"{', '.join(map(shown, near)) or 'none: it is empty'}"
        )

    # --- after a kill

    def clean_up(self, step: dict[str, Any]) -> None:
        if step.get("step") == "config_stage":
            Placement.from_step(step).clean_up(self.context.workdir)


def _server() -> dict[str, str]:
    return {"name": platform.system(), "version": platform.release()}


def _tool() -> dict[str, str]:
    return {"name": "agentmem-backup tar (PAX)", "version": platform.python_version()}


def _unreadable(error: OSError, path: bytes) -> str:
    return os_sentence(error, f"reading {shown(path)}")


def _refused(path: bytes, status: os.stat_result) -> str:
    """A sentence where a file or directory cannot be read by us; empty where it can."""
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return ""
    wanted = os.R_OK | (os.X_OK if stat.S_ISDIR(status.st_mode) else 0)
    if os.access(path, wanted, effective_ids=True):
        return ""
    return f"{shown(path)} cannot be read: run the backup as root, or let the backup user read it"


def _below(name: str, directory: str) -> bool:
    return directory == "" or name == directory or name.startswith(directory + "/")


def _relative(name: str, directory: str) -> str:
    return name[len(directory) :].lstrip("/")


def _renamed(name: str, old: str, new: str) -> str:
    return f"{new}/{_relative(name, old)}".strip("/") if _below(name, old) else name


def _existing(path: bytes) -> bytes:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


# --- variables of .env files ---------------------------------------------------------------------------------------


def _is_env_file(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return base.startswith(".env") or base.endswith(".env")


def _variables(content: bytes) -> dict[str, str]:
    """The stores' variables that the text of an .env file sets; the last one wins, as in a shell."""
    found = {}
    for line in content.decode("utf-8", "replace").splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if equals and name.startswith(_STORES):
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            found[name] = value
    return found


def _live_variables(path: bytes) -> dict[str, str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    with open(descriptor, "rb") as file:
        return _variables(file.read(_ENV_FILE_BYTES)) if stat.S_ISREG(os.fstat(descriptor).st_mode) else {}


class _EnvFiles:
    """Gathers the stores' variables from an archive's .env files: member name → variable → value."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def take(self, info: tarfile.TarInfo, name: str, content: Iterator[bytes | memoryview]) -> None:
        if info.isreg() and info.size <= _ENV_FILE_BYTES and _is_env_file(name) and (values := _variables(b"".join(content))):
            self.found[name] = values


class _Extracted:
    """One file on its way out of an archive, under a temporary name until its content has been proved."""

    def __init__(self, entry: Entry, target: Path):
        self._entry, self._target = entry, target
        self._temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        self._digest = hashlib.sha256()

    def take(self, __: tarfile.TarInfo, name: str, content: Iterator[bytes | memoryview]) -> None:
        if name != self._entry.name:
            return
        with telling(f"writing {shown(os.fsencode(self._target))}"):
            descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                for piece in content:
                    self._digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fchmod(descriptor, self._entry.mode & 0o777)
                os.fsync(descriptor)

    def finish(self) -> None:
        if self._digest.hexdigest() != self._entry.sha256:
            raise VerificationError(f"{shown(self._entry.name)} in the archive is not what its list says: use another set")
        with telling(f"writing {shown(os.fsencode(self._target))}"):
            os.link(self._temporary, self._target)  # fails where the name was taken meanwhile
            self._temporary.unlink()

    def abandon(self) -> None:
        self._temporary.unlink(missing_ok=True)


# --- the cut -------------------------------------------------------------------------------------------------------


class ConfigCut(Cut):
    """The configuration from the moment when all stores were ready."""

    def __init__(self, component: ConfigComponent, roots: list[Root], avoid: set[tuple[int, int]]):
        self.moment: datetime = clock.now()
        self._component = component
        self._roots = roots
        self._avoid = avoid
        self._listing: Listing | None = None
        self._warnings: list[str] = []

    def dump(self, out: Writer) -> None:
        self._listing = filetree.write_archive(
            out, self._roots, scratch=self._component.context.workdir, avoid=self._avoid, warn=self._warnings.append
        )

    def entry(self) -> dict[str, Any]:
        listing = self._listing
        if listing is None:
            raise BackupError("the configuration was not dumped yet")
        return {
            "server": _server(),
            "tool": _tool(),
            "method": "every file read at the cut, and again where it changed meanwhile",
            "requires": {"root": any(entry.uid != os.geteuid() for entry in listing.entries)},
            "warnings": self._warnings,
            "roots": ["/" + root.name for root in listing.roots],
            "fingerprint": {
                "level": CONTENT,  # digests are cheap here: there is no lesser level
                "sha256": listing.sha256,
                "files": listing.count(filetree.FILE, filetree.HARD_LINK),
                "directories": listing.count(filetree.DIRECTORY),
                "links": listing.count(filetree.LINK),
                "bytes": sum(entry.size for entry in listing.entries if entry.kind == filetree.FILE),
            },
        }

    def close(self) -> None:
        """Nothing is held: the files that change while they are read are found by reading them again."""


# --- the restoration -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placement:
    """One root of an archive on its way to its place. Everything that a clean-up needs is named before anything is made."""

    root: Root
    target: bytes
    stage: bytes
    """Private directory on the target's own file system. While it exists beside `saved`, a replacement is half done."""
    previous: bytes
    """What the old directory is renamed to."""
    saved: bytes
    """Archive of the old files, where the directory cannot be renamed."""

    @classmethod
    def plan(cls, root: Root, target: bytes, number: int, stamp: str, backup_dir: Path) -> Placement:
        """Names for everything; nothing is made."""
        above, name = os.path.split(target)
        mounted = os.path.ismount(target) and os.path.isdir(target)
        stage_above = target if mounted else above
        saved = Path(backup_dir) / ".state" / "previous" / f"config_{stamp}" / f"{number}.tar"
        return cls(
            root=root,
            target=target,
            stage=os.path.join(stage_above, filetree.STAGE_PREFIX + name[:100] + b"-" + secrets.token_hex(4).encode()),
            previous=_free_name(target + f".before_{stamp}".encode()),
            saved=_free_name(os.fsencode(saved)),
        )

    def step(self) -> dict[str, Any]:
        """The facts of the journal's line."""
        paths = {"target": self.target, "stage": self.stage, "previous": self.previous, "saved": self.saved}
        return {"root": self.root.name, **{name: text(path) for name, path in paths.items()}}

    @classmethod
    def from_step(cls, step: dict[str, Any]) -> Placement:
        """The inverse of `step`."""
        paths = {name: raw(str(step[name])) for name in ("target", "stage", "previous", "saved")}
        return cls(root=Root(str(step["root"]), paths["target"]), **paths)

    def entries(self, listing: Listing) -> list[Entry]:
        """The archive's entries that belong here."""
        return [entry for entry in listing.entries if _below(entry.name, self.root.name)]

    def live_path(self, member: str) -> bytes:
        """Where a member of the archive comes to lie."""
        relative = _relative(member, self.root.name)
        return self.target + b"/" + raw(relative) if relative else self.target

    def is_file(self, entries: list[Entry]) -> bool:
        """Whether the root is a single file or link."""
        return any(entry.name == self.root.name and entry.kind != filetree.DIRECTORY for entry in entries)

    def pinned(self) -> set[bytes]:
        """What at or below the target must not be renamed."""
        return filetree.pinned_paths(self.target)

    def file_by_file(self, entries: list[Entry]) -> bool:
        """Whether the target is replaced file by file and not by renaming it."""
        return os.path.lexists(self.target) and (self.is_file(entries) or bool(self.pinned()))

    def why(self, entries: list[Entry]) -> str:
        """Why it is replaced file by file."""
        pinned = sorted(self.pinned())
        if self.target in pinned:
            return "it is mounted"
        return f"{shown(pinned[0])} is mounted" if pinned else "it is a single file" if self.is_file(entries) else ""

    def settle(self, staged: bytes) -> None:
        """Replace file by file."""
        filetree.settle(staged, self.target, self.pinned())

    def save(self, scratch: Path) -> None:
        """Write the old files into `saved`, durably and under its name only when it is whole."""
        saved = Path(os.fsdecode(self.saved))
        partial = saved.with_name(saved.name + ".partial")
        with telling(f"making {saved.parent}"):
            make_private(saved.parent)
            partial.unlink(missing_ok=True)
        out = Writer(partial)
        try:
            filetree.write_archive(out, [self.root._replace(path=self.target)], scratch=scratch)
        except BaseException:
            out.abandon()
            raise
        out.close()
        with telling(f"writing {saved}"):
            partial.rename(saved)
            sync_directory(saved.parent)
            sync_directory(saved.parent.parent)

    def put_back(self) -> None:
        """Make the target again what `saved` holds."""
        stage_path = self.stage + b"-undo"
        filetree.remove_tree(stage_path)
        stage = filetree.Stage(stage_path)
        saved = Path(os.fsdecode(self.saved))
        filetree.walk_archive(Reader(saved).pieces(), str(saved), self.taker(stage))
        stage.finish()
        self.settle(stage.tree)
        filetree.remove_tree(stage_path)

    def taker(self, stage: filetree.Stage) -> filetree.Take:
        """Hands the members of an archive that belong here to a stage."""

        def take(info: tarfile.TarInfo, name: str, content: Iterator[bytes | memoryview]) -> None:
            if _below(name, self.root.name):
                link = _relative(info.linkname.removeprefix("./"), self.root.name) if info.islnk() else ""
                stage.take(info, _relative(name, self.root.name), link, content)

        return take

    def clean_up(self, scratch: Path) -> None:
        """After a kill: undo what was half done, and remove what was staged. Idempotent."""
        if os.path.lexists(self.stage) and os.path.lexists(self.saved):
            self.put_back()
        elif not os.path.lexists(self.target) and os.path.lexists(self.previous):
            with telling(f"renaming {shown(self.previous)} back to {shown(self.target)}"):
                _rename(self.previous, self.target)
        filetree.remove_tree(self.stage + b"-undo")
        filetree.remove_tree(self.stage)
        filetree.remove_tree(self.saved + b".partial")


def _free_name(path: bytes) -> bytes:
    number, name = 1, path
    while os.path.lexists(name):
        number, name = number + 1, path + b"_%d" % (number + 1)
    return name


def _rename(old: bytes, new: bytes) -> None:
    os.rename(old, new)
    sync_directory(Path(os.fsdecode(os.path.dirname(new))))


class ConfigRestoration(Restoration):
    """The restore of one archive: each of its roots is staged, then put into place one after the other."""

    def __init__(self, component: ConfigComponent, source: Source):
        self._component = component
        self._source = source
        self._listing = Listing()
        self._placements: list[Placement] = []
        self._stages: dict[Placement, filetree.Stage] = {}
        self._unfinished: list[Placement] = []
        self._renamed: list[Placement] = []
        self._made: list[Placement] = []
        self._settled: list[Placement] = []
        self._refused: set[str] = set()
        self._final = False

    def _read(self) -> Listing:
        """What the archive holds, and where it goes."""
        listing = filetree.walk_archive(self._source.pieces(), str(self._source.path))
        if faults := self._component._examined(self._source, listing).faults:
            raise VerificationError(f"{self._source.path} is not restored: {faults[0]}")
        if not listing.sha256:
            listing.entries = filetree.canonical(listing.entries)
        self._listing = listing
        self._placements, __ = self._component.placements(listing, self._component.context.stamp)
        return listing

    def prepare(self) -> None:
        listing = self._read()
        for placement in self._placements:
            self._make_parent(placement)
            self._component.context.journal("config_stage", component=self._component.name, **placement.step())
            self._stages[placement] = filetree.Stage(placement.stage)
        takers = [placement.taker(self._stages[placement]) for placement in self._placements]

        def take(info: tarfile.TarInfo, name: str, content: Iterator[bytes | memoryview]) -> None:
            for one in takers:
                one(info, name, content)

        again = filetree.walk_archive(self._source.pieces(), str(self._source.path), take)
        if (again.sha256, again.members) != (listing.sha256, listing.members):
            raise VerificationError(f"{self._source.path} changed while it was being restored: verify it and start again")
        for placement, stage in self._stages.items():
            stage.finish()
            self._adopt_mode(placement, stage)
            self._refused |= stage.refused

    def _make_parent(self, placement: Placement) -> None:
        above = os.path.dirname(placement.target)
        if not os.path.isdir(above):
            with telling(f"making {shown(above)}"):
                os.makedirs(above, 0o755, exist_ok=True)

    def _adopt_mode(self, placement: Placement, stage: filetree.Stage) -> None:
        """An archive made from within a directory does not hold the directory itself: it stays what it is."""
        if any(entry.name == placement.root.name for entry in self._listing.entries) or not os.path.isdir(stage.tree):
            return
        if os.path.isdir(placement.target):
            status = os.stat(placement.target)
            if os.geteuid() == 0:
                os.chown(stage.tree, status.st_uid, status.st_gid)
            os.chmod(stage.tree, stat.S_IMODE(status.st_mode))

    def _expected(self) -> list[Entry]:
        return [entry for placement in self._placements for entry in placement.entries(self._listing)]

    def _compared(self, where: Callable[[Placement], bytes], *, times: bool) -> Comparison:
        expected = self._expected()
        roots = [placement.root._replace(path=where(placement)) for placement in self._placements]
        present = [root for root in roots if os.path.lexists(root.path)]
        found = [item.entry for item in filetree.read_tree(present, avoid=self._component._avoided())]
        names = {entry.name for entry in expected}
        if not self._listing.sha256:  # the top and what lies above a member need not be in such an archive
            found = [entry for entry in found if entry.name in names or entry.kind != filetree.DIRECTORY]
        owners = os.geteuid() == 0
        told = filetree.differences(expected, found, owners=owners, attributes=not self._refused, times=times)
        comparison = Comparison(compared=len(expected), differences=told)
        if not owners:
            comparison.not_compared.append("owners: only root can give files back to them")
        if self._refused:
            comparison.not_compared.append(
                f"extended attributes: the file system does not keep {', '.join(sorted(self._refused))}"
            )
        if not self._listing.sha256:
            comparison.not_compared.append("the fingerprint: the archive has none, its own members were compared")
        return comparison

    def check(self) -> Comparison:
        return self._compared(lambda placement: self._stages[placement].tree, times=True)

    def commit(self) -> None:
        for placement in self._placements:
            entries = placement.entries(self._listing)
            if not entries:
                continue
            if not os.path.lexists(placement.target):
                with telling(f"renaming the new configuration to {shown(placement.target)}"):
                    self._made.append(placement)
                    _rename(self._stages[placement].tree, placement.target)
            elif placement.file_by_file(entries):
                self._settle(placement)
            else:
                self._swap(placement)

    def _swap(self, placement: Placement) -> None:
        try:
            os.rename(placement.target, placement.previous)
        except OSError as error:
            # Busy: mounted since the plan was made, or in a way that mountinfo does not show us.
            self._component.reporter.warn(
                f"{shown(placement.target)} cannot be renamed ({error.strerror}): its files are replaced one by one"
            )
            self._settle(placement)
            return
        self._renamed.append(placement)
        with telling(f"renaming the new configuration to {shown(placement.target)}"):
            _rename(self._stages[placement].tree, placement.target)

    def _settle(self, placement: Placement) -> None:
        placement.save(self._component.context.workdir)
        self._unfinished.append(placement)
        placement.settle(self._stages[placement].tree)
        self._stages[placement].remove()  # from here on a clean-up sees that nothing is half done
        self._settled.append(self._unfinished.pop())

    def complete(self) -> None:
        self._final = True

    def compare(self) -> Comparison:
        if not self._placements:
            self._read()
        # The application may be at work already: a directory's time says nothing about what was restored into it.
        return self._compared(lambda placement: placement.target, times=False)

    def abort(self) -> None:
        failures = []
        settled = ((_unsettle, self._unfinished), (_unsettle, self._settled))
        for undo, placements in (*settled, (_unswap, self._renamed), (_unmake, self._made)):
            for placement in reversed(placements):
                try:
                    undo(placement)
                    placements.remove(placement)
                except (OSError, BackupError) as error:
                    failures.append(f"{shown(placement.target)}: {error}")
        if failures:
            raise BackupError(f"the old configuration could not be put back ({'; '.join(failures)}). {self.state()}")

    def state(self) -> str:
        parts = [
            *(f"{shown(one.target)} may be new in part, its old files lie in {shown(one.saved)}" for one in self._unfinished),
            *(f"{shown(one.target)} is new, its old files lie in {shown(one.saved)}" for one in self._settled),
            *(f"{shown(one.target)} is new, the old one lies in {shown(one.previous)}" for one in self._renamed),
            *(f"{shown(one.target)} is new, there was none before" for one in self._made),
        ]
        touched = {*self._unfinished, *self._settled, *self._renamed, *self._made}
        parts += [f"{shown(one.target)} is as it was" for one in self._placements if one not in touched]
        return "; ".join(parts) or "the configuration is untouched"

    def close(self) -> None:
        for placement, stage in self._stages.items():
            # A stage beside an archive of the old files is how the next run knows that `abort` did not get through.
            if placement not in (*self._unfinished, *self._settled) or self._final or not os.path.lexists(stage.path):
                with contextlib.suppress(BackupError):
                    stage.remove()


def _unsettle(placement: Placement) -> None:
    if not os.path.lexists(placement.stage):
        os.mkdir(placement.stage, 0o700)  # the mark that a replacement is half done
    placement.put_back()
    filetree.remove_tree(placement.stage)


def _unswap(placement: Placement) -> None:
    if os.path.lexists(placement.target):
        _rename_away(placement)
    _rename(placement.previous, placement.target)


def _unmake(placement: Placement) -> None:
    if os.path.lexists(placement.target):
        _rename_away(placement)


def _rename_away(placement: Placement) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(placement.stage, 0o700)
    os.rename(placement.target, placement.stage + b"/undone")
