# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sets there are: ID, type, age, size, components, verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from . import backup_set, clock, history
from .errors import VerificationError
from .settings import Settings


@dataclass(frozen=True)
class Row:
    """One set as `list` shows it; `size` in bytes."""

    id: str
    type: str
    age: str
    size: int
    components: tuple[str, ...]
    verdict: str
    remark: str

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def list_sets(settings: Settings) -> list[Row]:
    """All sets in the backup directory, oldest first, with what is recorded of them: `verify` looks, this does not."""
    directory = backup_set.directory(settings.backup_dir, write=False)
    verdicts, at = history.newest(directory), clock.now()
    return [_row(one, verdicts.get(one.id), at) for one in backup_set.sets(directory)]


def _row(one: backup_set.BackupSet, verdict: dict[str, Any] | None, at: datetime) -> Row:
    summary, remark = _summary(one, verdict)
    return Row(
        one.id,
        str(summary.get("type", "?")),
        clock.age(clock.id_time(one.id), at),
        int(summary.get("size", 0)),
        tuple(one.names),
        str(verdict["verdict"]) if verdict else "never verified",
        remark or ("partial" if summary.get("partial") else ""),
    )


def _summary(one: backup_set.BackupSet, verdict: dict[str, Any] | None) -> tuple[dict[str, Any], str]:
    """What was recorded with the set's verdict; where that is lost, what its manifest or the file system says. And a remark."""
    if one.has_manifest and verdict and isinstance(verdict.get("summary"), dict):
        return verdict["summary"], ""
    try:
        return (one.manifest.summary() if one.manifest else {"type": "legacy", "size": one.size()}), ""
    except VerificationError:
        return {"size": one.size()}, "its manifest is damaged"
    except OSError:
        return {}, "a file vanished while it was looked at"
