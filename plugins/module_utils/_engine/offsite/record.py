# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the copies elsewhere, in `.history/offsite.jsonl`: what was read back, found damaged, removed, brought back.

A line counts for one set at one place (`where`); a target that moves is looked at anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import clock, history
from ..backup_set import HISTORY
from ..manifest import Manifest

READ_BACK, DAMAGED, REMOVING, REMOVED, PULLED = "read back", "damaged", "removing", "removed", "pulled"


def path(backup_dir: Path) -> Path:
    """The file of records in a backup directory."""
    return backup_dir / HISTORY / "offsite.jsonl"


class Record:
    """The records of a backup directory. Safe to use from several threads, each with a place of its own."""

    def __init__(self, backup_dir: Path):
        self._path = path(backup_dir)
        self._newest: dict[tuple[str, str], dict[str, Any]] = {}
        try:
            content = self._path.read_bytes()
        except OSError:
            content = b""
        for line in content.split(b"\n"):
            try:
                entry = json.loads(line)
                self._newest[(str(entry["where"]), str(entry["id"]))] = entry
            except (ValueError, KeyError, TypeError):
                continue

    def note(self, event: str, where: str, set_id: str, **facts: Any) -> None:
        """Write down what has happened to a set at a place. Raises BackupError."""
        entry = {"event": event, "where": where, "id": set_id, "time": clock.iso(clock.now()), **facts}
        history.append_line(self._path, entry)
        self._newest[(where, set_id)] = entry

    def read_back(self, where: str, one: Manifest) -> None:
        """Every byte of this set was read there, and is right."""
        self.note(
            READ_BACK,
            where,
            one.id,
            digest=one.digest(),
            **facts_of(one),
        )

    def of(self, where: str, set_id: str) -> dict[str, Any]:
        """The newest line on a set at a place; an empty one where there is none."""
        return self._newest.get((where, set_id), {})

    def was_read_back(self, where: str, one: Manifest) -> str:
        """When this very set was last read back there, as text; empty where it never was, or has been found damaged since."""
        entry = self.of(where, one.id)
        known = entry.get("event") == READ_BACK and entry.get("digest") == one.digest()
        return str(entry.get("time", "")) if known else ""

    def damaged(self, where: str, set_id: str) -> list[str]:
        """The files of a set that were found damaged at a place when it was last looked at."""
        entry = self.of(where, set_id)
        return [str(name) for name in entry.get("files", [])] if entry.get("event") == DAMAGED else []

    def pulled_for(self, set_id: str) -> str:
        """Whose set was brought here from elsewhere, as a folder's name; empty where it was made here."""
        newest = [entry for (__, one), entry in self._newest.items() if one == set_id and entry.get("event") == PULLED]
        return str(newest[-1].get("place", "")) if newest else ""


def facts_of(one: Manifest) -> dict[str, Any]:
    """What must be known of a set to tell whether a newer one replaces it."""
    filters = {name: entry["filters"] for name, entry in one.components.items() if entry.get("filters")}
    return {"components": list(one.components), "filters": filters, "base": base_of(one)}


def base_of(one: Manifest) -> str:
    """The ID of the set that this one needs to be restored; empty where it stands alone."""
    base = one.data.get("base")
    return str(base.get("id", "")) if isinstance(base, dict) else str(base or "")
