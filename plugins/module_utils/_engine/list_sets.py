# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sets there are: ID, type, age, size, components, verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
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
    """All sets in the backup directory, oldest first."""
    directory = backup_set.directory(settings.backup_dir, write=False)
    verdicts = history.newest(directory)
    return [_row(one, verdicts.get(one.id), directory) for one in backup_set.sets(directory)]


def _row(one: backup_set.BackupSet, verdict: dict[str, Any] | None, directory: Path) -> Row:
    kind, remark, size = "legacy", "", 0
    try:
        described = one.manifest
        if described is not None:
            kind, size = str(described.data["type"]), described.size
            remark = "partial" if described.data.get("partial") else ""
        else:
            size = one.size()
    except VerificationError:
        remark = "its manifest is damaged"
    except OSError:
        remark = "a file vanished while it was looked at"
    return Row(
        one.id,
        kind,
        clock.age(clock.id_time(one.id)),
        size,
        tuple(one.files),
        str(verdict["verdict"]) if verdict else "never verified",
        remark,
    )
