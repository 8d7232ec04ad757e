# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One set in full: its manifest, what lies on the disk, and every verdict on it."""

from __future__ import annotations

from typing import Any

from . import backup_set, clock, history
from .errors import VerificationError
from .settings import Settings


def info(settings: Settings, which: str) -> dict[str, Any]:
    """Everything known of the set `which` (an ID or `latest`). Raises UsageError where there is none."""
    directory = backup_set.directory(settings.backup_dir, write=False)
    one = backup_set.find(directory, which)
    fault = ""
    try:
        described = one.manifest
    except VerificationError as error:
        described, fault = None, str(error)
    return {
        "id": one.id,
        "type": described.data["type"] if described else "legacy" if one.legacy else "damaged",
        "age": clock.age(clock.id_time(one.id)),
        "directory": str(directory),
        "files": {name: {"path": str(path), "bytes": path.stat().st_size} for name, path in one.files.items()},
        "verdict": history.newest(directory).get(one.id),
        "fault": fault,
        "manifest": described.data if described else None,
    }
