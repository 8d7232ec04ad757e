# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention: which sets may go, why each stays or goes, and removing them.

Two rules: `age` keeps what is younger than `retention_days`; `tiers` keeps the last verified set of so many days, weeks and
months (the guide's 7, 4 and 12), counted for each store on its own, so that a late set of the configuration does not take
the place of that day's database. Whatever the rule, the newest verified set is never removed, nor is a set with a store
that no newer verified set holds; nothing is removed while there is no verified set or while the newest one is
suspicious, and sets dated in the future are reported and left alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from . import backup_set, clock, history
from .backup_set import BackupSet
from .errors import VerificationError
from .progress import Reporter
from .settings import Settings


@dataclass(frozen=True)
class Rule:
    """What retention goes by: an age in days, or, where `tiers` is true, how many days, weeks and months keep a set."""

    days: int
    tiers: bool = False
    daily: int = 7
    weekly: int = 4
    monthly: int = 12

    @classmethod
    def of(cls, settings: Settings) -> Rule:
        """The rule that the settings name."""
        tiers = settings.retention == "tiers"
        return cls(settings.retention_days, tiers, settings.keep_daily, settings.keep_weekly, settings.keep_monthly)

    @property
    def removed(self) -> str:
        """Why a set goes that goes by this rule."""
        if self.tiers:
            return f"not among the last {self.daily} daily, {self.weekly} weekly and {self.monthly} monthly sets"
        return f"older than {self.days} days"


@dataclass
class Plan:
    """What retention decided: sets to remove, and for every set (kept or not) a sentence that says why."""

    doomed: list[BackupSet] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    held: str = ""
    """Why nothing at all may be removed; empty where removing is fine."""


def plan(backup_dir: Path, rule: Rule, at: datetime | None = None) -> Plan:
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
    kept = _kept_by_tiers(rule, past, verified, at) if rule.tiers else _kept_by_age(rule, past, at)
    for one in present:
        moment = clock.id_time(one.id)
        if moment > at:
            decided.reasons[one.id] = "kept: it is dated in the future, so the clock was or is wrong"
        elif one.id in kept:
            decided.reasons[one.id] = f"kept: {kept[one.id]}"
        elif verified and one.id == verified[-1].id:
            decided.reasons[one.id] = "kept: the newest verified set"
        elif decided.held:
            decided.reasons[one.id] = "kept: " + decided.held
        elif alone := _held_by_no_newer(one, verified):
            decided.reasons[one.id] = f"kept: no newer verified set has {', '.join(alone)}"
        else:
            decided.reasons[one.id] = f"removed: {rule.removed}"
            decided.doomed.append(one)
    return decided


def _kept_by_age(rule: Rule, past: list[BackupSet], at: datetime) -> dict[str, str]:
    """ID → why, for the sets that are young enough."""
    limit = timedelta(days=min(rule.days, timedelta.max.days))
    return {one.id: f"younger than {rule.days} days" for one in past if at - clock.id_time(one.id) <= limit}


def _kept_by_tiers(rule: Rule, past: list[BackupSet], verified: list[BackupSet], at: datetime) -> dict[str, str]:
    """ID → why. A set that is not verified fills no place, and stays as long as the days reach: somebody may want to look."""
    limit, good = timedelta(days=min(rule.daily, timedelta.max.days)), {one.id for one in verified}
    kept = {
        one.id: f"not verified, and younger than {rule.daily} days"
        for one in past
        if one.id not in good and at - clock.id_time(one.id) <= limit
    }
    series: dict[str, list[BackupSet]] = {}
    for one in reversed(verified):
        for name in one.names:
            series.setdefault(json.dumps([name, _filters(one, name)], sort_keys=True), []).append(one)
    for newest_first in series.values():
        for set_id, why in _places(rule, newest_first).items():
            kept.setdefault(set_id, why)
    return kept


def _places(rule: Rule, newest_first: list[BackupSet]) -> dict[str, str]:
    """ID → its place. The last set of each period, for as many periods as have one; a set that a finer tier keeps takes no
    place in a coarser one, as in Borg (borg-prune(1)), which makes the guide's 7 + 4 + 12 = 23 sets."""
    kept: dict[str, str] = {}
    tiers: list[tuple[str, int, Callable[[datetime], tuple[int, ...]]]] = [
        ("daily", rule.daily, lambda moment: (moment.year, moment.month, moment.day)),
        ("weekly", rule.weekly, lambda moment: moment.isocalendar()[:2]),
        ("monthly", rule.monthly, lambda moment: (moment.year, moment.month)),
    ]
    for name, places, period_of in tiers:
        taken, last = 0, None
        for one in newest_first:
            period = period_of(clock.id_time(one.id))
            if period == last:
                continue
            last = period
            if one.id not in kept and taken < places:
                taken += 1
                kept[one.id] = f"{name} set {taken} of {places}"
    return kept


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


def prune(backup_dir: Path, rule: Rule, reporter: Reporter) -> list[str]:
    """Remove what the plan says; call it under the lock. Returns the IDs of the removed sets. Raises BackupError."""
    decided = plan(backup_dir, rule)
    if decided.held:
        reporter.warn(decided.held)
    for set_id, reason in decided.reasons.items():
        if "future" in reason:
            reporter.warn(f"set {set_id} is {reason}")
    backup_set.remove(backup_dir, decided.doomed)
    for one in decided.doomed:
        reporter.step(f"removed set {one.id}: {rule.removed}")
    return [one.id for one in decided.doomed]
