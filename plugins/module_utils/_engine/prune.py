# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention: which sets may go, why each stays or goes, and removing them.

The rule of this version is age (`retention_days`). Whatever the rule, the newest verified set is never removed, nor is a
set with a store that no newer verified set holds; nothing is removed while there is no verified set or while the newest
one is suspicious, and sets dated in the future are reported and left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from . import backup_set, clock, history
from .backup_set import BackupSet
from .errors import VerificationError
from .progress import Reporter


@dataclass
class Plan:
    """What retention decided: sets to remove, and for every set (kept or not) a sentence that says why."""

    doomed: list[BackupSet] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    held: str = ""
    """Why nothing at all may be removed; empty where removing is fine."""


def plan(backup_dir: Path, retention_days: int, at: datetime | None = None) -> Plan:
    """Decide, without touching anything."""
    at = at or clock.now()
    present = backup_set.sets(backup_dir)
    verdicts = history.newest(backup_dir)
    past = [one for one in present if clock.id_time(one.id) <= at]
    verified = [one for one in past if history.is_verified(verdicts.get(one.id))]
    decided = Plan()
    if not verified:
        decided.held = "nothing is removed: no set is known to be good (agentmem-backup verify latest)"
    elif any(verdicts.get(one.id, {}).get("verdict") == history.SUSPICIOUS for one in past if one.id > verified[-1].id):
        decided.held = "nothing is removed: a newer set is suspicious (look, then: agentmem-backup verify ID --acknowledge)"
    limit = timedelta(days=min(retention_days, timedelta.max.days))
    for one in present:
        moment = clock.id_time(one.id)
        if moment > at:
            decided.reasons[one.id] = "kept: it is dated in the future, so the clock was or is wrong"
        elif at - moment <= limit:
            decided.reasons[one.id] = f"kept: younger than {retention_days} days"
        elif verified and one.id == verified[-1].id:
            decided.reasons[one.id] = "kept: the newest verified set"
        elif decided.held:
            decided.reasons[one.id] = "kept: " + decided.held
        elif alone := _held_by_no_newer(one, verified):
            decided.reasons[one.id] = f"kept: no newer verified set has {', '.join(alone)}"
        else:
            decided.reasons[one.id] = f"removed: older than {retention_days} days"
            decided.doomed.append(one)
    return decided


def _held_by_no_newer(one: BackupSet, verified: list[BackupSet]) -> list[str]:
    """The stores of a set that no newer verified set holds: a set of the configuration does not replace one of the database."""
    alone = dict.fromkeys(one.names)
    for newer in reversed(verified):
        if newer.id <= one.id or not alone:
            break
        for name in [name for name in alone if _replaces(newer, one, name)]:
            del alone[name]
    return list(alone)


def _replaces(newer: BackupSet, older: BackupSet, name: str) -> bool:
    """Whether the newer set holds all of a store, or at least what the older one does."""
    if name not in newer.names:
        return False
    filters = _filters(newer, name)
    return not filters or filters == _filters(older, name)


def _filters(one: BackupSet, name: str) -> Any:
    try:
        return (one.entry(name) or {}).get("filters")
    except VerificationError:
        return "not known: the manifest is damaged"


def prune(backup_dir: Path, retention_days: int, reporter: Reporter) -> list[str]:
    """Remove what the plan says; call it under the lock. Returns the IDs of the removed sets. Raises BackupError."""
    decided = plan(backup_dir, retention_days)
    if decided.held:
        reporter.warn(decided.held)
    for set_id, reason in decided.reasons.items():
        if "future" in reason:
            reporter.warn(f"set {set_id} is {reason}")
    backup_set.remove(backup_dir, decided.doomed)
    for one in decided.doomed:
        reporter.step(f"removed set {one.id}: older than {retention_days} days")
    return [one.id for one in decided.doomed]
