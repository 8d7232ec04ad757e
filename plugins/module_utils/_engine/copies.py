# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of verified sets elsewhere, as the three ways of `sync` share them: whose, where, and which may leave."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import audit, backup_set, clock, history, hooks, lock, pipeline, targets
from .backup_set import BackupSet
from .errors import BackupError, UsageError, VerificationError
from .manifest import Manifest
from .offsite.base import Place
from .offsite.record import Record, base_of
from .process import os_sentence
from .progress import Reporter
from .settings import Settings
from .targets import Target

SCRATCH = "offsite"  # in .state/: what is just being sent, and what is just being fetched


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


def candidates(directory: Path, record: Record, place: Place) -> tuple[list[BackupSet], dict[str, str]]:
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


def digests(one: BackupSet) -> dict[str, tuple[int, str]]:
    """Name → (bytes, SHA-256) of every file of a set, the JSON manifest last. Raises VerificationError, BackupError."""
    described = manifest_of(one)
    files = {str(entry["file"]): (int(entry["bytes"]), str(entry["sha256"])) for entry in described.components.values()}
    for path in (one.text_path, one.manifest_path):
        files[path.name] = pipeline.hash_file(path)
    return files


def sizes(one: BackupSet) -> dict[str, int]:
    """Name → bytes of every file of a set, by its manifest. Raises VerificationError."""
    described = manifest_of(one)
    found = {str(entry["file"]): int(entry["bytes"]) for entry in described.components.values()}
    for path, content in ((one.text_path, described.to_text().encode()), (one.manifest_path, described.to_json())):
        found[path.name] = len(content)
    return found


def manifest_of(one: BackupSet) -> Manifest:
    """The JSON manifest of a set. Raises VerificationError where it has none."""
    if one.manifest is None:
        raise VerificationError(f"set {one.id} has no JSON manifest")
    return one.manifest


def hold(directory: Path, settings: Settings) -> contextlib.AbstractContextManager[None]:
    """One push or pull at a time. It is not the lock of backups: these go on meanwhile."""
    (directory / backup_set.STATE).mkdir(mode=0o700, exist_ok=True)
    return lock.hold(directory / backup_set.STATE / "offsite.lock", "sync", settings.lock_wait_s)


def failed(
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


def clear(path: Path) -> None:
    """Remove our own scratch."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)


def ids(present: Iterable[str]) -> list[str]:
    """The IDs of the sets that the files of a folder belong to."""
    found = {match[1] for name in present if (match := re.fullmatch(r"[a-z]+_(\d{8}_\d{6})\..+", name))}
    return sorted(one for one in found if clock.is_set_id(one))
