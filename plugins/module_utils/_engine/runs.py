# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the last run of each verb ended, and which ways of telling are broken: `.history/runs.json`.

From here come the message on recovery, what `check` says of a broken mail server, and the metrics. Where the backup directory
itself is gone a mark in LOG_DIR remembers that a verb fails; the alarm unit's script, which needs no Python, leaves the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import lock
from .backup_set import HISTORY
from .settings import Settings


def path(backup_dir: Path) -> Path:
    """The file in a backup directory."""
    return backup_dir / HISTORY / "runs.json"


def read(backup_dir: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What is recorded: `runs` (verb → facts) and `channels` (way of telling → facts). Empty where nothing can be read."""
    try:
        content = json.loads(path(backup_dir).read_bytes())
    except (OSError, ValueError):
        content = {}
    known = content if isinstance(content, dict) else {}
    return {part: _mappings(known.get(part)) for part in ("runs", "channels")}


def _mappings(found: Any) -> dict[str, dict[str, Any]]:
    return {str(key): one for key, one in found.items() if isinstance(one, dict)} if isinstance(found, dict) else {}


@contextlib.contextmanager
def changing(backup_dir: Path) -> Iterator[dict[str, dict[str, dict[str, Any]]]]:
    """What is recorded, to be changed in the block and then written, whole or not at all. Raises OSError."""
    directory = path(backup_dir).parent
    directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        content = read(backup_dir)
        yield content
        temporary = path(backup_dir).with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
        temporary.replace(path(backup_dir))
        lock.hand_over(backup_dir)  # a run of root's, such as a restore, must not keep the service from it
    finally:
        os.close(descriptor)


def _mark(settings: Settings, verb: str) -> Path:
    own = Path(settings.log_dir) / ".failing"  # where role notify has made it: LOG_DIR itself may be root's
    return (own if own.is_dir() else own.parent) / f".failing-{settings.instance.replace('/', '_')}-{verb}"


def mark(settings: Settings, verb: str, told: str = "") -> None:
    """Remember in LOG_DIR that a verb fails, as well as that goes; `told` is the invocation ID of a run that has said so."""
    with contextlib.suppress(OSError):
        _mark(settings, verb).write_text(told)


def told_by_mark(settings: Settings) -> set[str]:
    """The invocation IDs in all marks."""
    found = set()
    for verb in marks(settings):
        with contextlib.suppress(OSError, ValueError):
            found.add(_mark(settings, verb).read_text().strip())
    return found


def marked(settings: Settings, verb: str) -> bool:
    """Whether such a mark is there."""
    return _mark(settings, verb).exists()


def marks(settings: Settings) -> list[str]:
    """The verbs that such a mark says fail."""
    prefix = _mark(settings, "").name
    try:
        return [path.name.removeprefix(prefix) for path in _mark(settings, "").parent.iterdir() if path.name.startswith(prefix)]
    except OSError:
        return []


def unmark(settings: Settings, verb: str) -> None:
    """Forget it."""
    with contextlib.suppress(OSError):
        _mark(settings, verb).unlink(missing_ok=True)
