# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verdicts on sets, in `.history/verdicts.jsonl`: a manifest never changes, what was found out about its set does.

A set is `verified` when its newest verdict says so. `suspicious` (a store shrank) counts as verified once somebody
has acknowledged it; until then it is an alarm and nothing is pruned.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import clock
from .backup_set import HISTORY
from .process import guarded

VERIFIED, FAILED, SUSPICIOUS, ACKNOWLEDGED = "verified", "failed", "suspicious", "acknowledged"


def path(backup_dir: Path) -> Path:
    """The file of verdicts in a backup directory."""
    return backup_dir / HISTORY / "verdicts.jsonl"


def append(backup_dir: Path, set_id: str, verdict: str, by: str, **facts: Any) -> None:
    """Add a verdict on a set; `by` is the verb that reached it. Raises BackupError."""
    append_line(path(backup_dir), {"id": set_id, "verdict": verdict, "by": by, "time": clock.iso(clock.now()), **facts})


def append_line(file: Path, entry: Mapping[str, Any]) -> None:
    """Add one line to a file of this kind, and return once it is on the disk. Raises BackupError."""
    line = json.dumps(entry, ensure_ascii=False)

    def save() -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, line.encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    guarded(save, f"writing {file}")


def newest(backup_dir: Path) -> dict[str, dict[str, Any]]:
    """Set → its newest verdict. A set whose verdicts are lost has none, and is then not counted as verified.

    The `summary` of a set (what `list` shows) was written once, with its first verdict, and is carried on.
    """
    verdicts: dict[str, dict[str, Any]] = {}
    try:
        content = path(backup_dir).read_bytes()
    except OSError:
        return verdicts
    for line in content.split(b"\n"):
        try:
            entry = json.loads(line)
            before = verdicts.get(entry["id"])
            if before is not None and "summary" in before:
                entry.setdefault("summary", before["summary"])
            verdicts[entry["id"]] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return verdicts


def is_verified(verdict: dict[str, Any] | None) -> bool:
    """Whether a set with this newest verdict counts as a good one."""
    return bool(verdict) and verdict is not None and verdict.get("verdict") in (VERIFIED, ACKNOWLEDGED)
