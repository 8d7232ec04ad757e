# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sets may go: decided on sets that are no more than names, manifests and verdicts."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from agentmem_backup import backup_set, clock, history, prune
from agentmem_backup.manifest import Manifest

NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)
ALL = ("postgresql", "redis", "qdrant", "config")
PREFIX = {component: prefix for prefix, component in backup_set.COMPONENT_OF.items()}


def made(
    directory: Path, age_days: float, *components: str, verdict: str = history.VERIFIED, filters: dict[str, object] | None = None
) -> str:
    """A set as it looks to retention; returns its ID."""
    one = clock.set_id(NOW - timedelta(days=age_days))
    entries = {}
    for component in components or ALL:
        name = f"{PREFIX[component]}_{one}.tar.gz"
        (directory / name).write_bytes(b"x")
        entries[component] = {"file": name, "bytes": 1, "sha256": "", "filters": filters or {}}
    described = Manifest({"format": 1, "id": one, "type": "full", "components": entries})
    (directory / f"manifest_{one}.json").write_bytes(described.to_json())
    if verdict:
        history.append(directory, one, verdict, "create")
    return one


def doomed(directory: Path, days: int = 30) -> list[str]:
    return [one.id for one in prune.plan(directory, prune.Rule(days), NOW).doomed]


def in_tiers(directory: Path, daily: int = 7, weekly: int = 4, monthly: int = 12) -> prune.Plan:
    return prune.plan(directory, prune.Rule(30, True, daily, weekly, monthly), NOW)


def test_the_last_verified_set_of_a_store_outlives_newer_sets_of_other_stores(tmp_path: Path) -> None:
    older, old = made(tmp_path, 60), made(tmp_path, 50)
    small = made(tmp_path, 40, "config")
    made(tmp_path, 1, "config")
    assert doomed(tmp_path) == [older, small]
    assert prune.plan(tmp_path, prune.Rule(30), NOW).reasons[old] == "kept: no newer verified set has postgresql, redis, qdrant"


def test_stores_may_be_replaced_by_different_newer_sets(tmp_path: Path) -> None:
    old = made(tmp_path, 60)
    for component in ALL:
        made(tmp_path, 1 + ALL.index(component), component)
    assert doomed(tmp_path) == [old]


def test_a_newer_set_that_is_not_verified_replaces_nothing(tmp_path: Path) -> None:
    old = made(tmp_path, 60)
    made(tmp_path, 3, verdict=history.FAILED)
    made(tmp_path, 2, "config")
    assert doomed(tmp_path) == []
    assert "postgresql" in prune.plan(tmp_path, prune.Rule(30), NOW).reasons[old]


def test_a_filtered_set_replaces_only_what_was_filtered_alike(tmp_path: Path) -> None:
    whole = made(tmp_path, 60, "redis")
    filtered = made(tmp_path, 50, "redis", filters={"exclude": ["a*"]})
    made(tmp_path, 1, "redis", filters={"exclude": ["a*"]})
    assert doomed(tmp_path) == [filtered]
    assert whole in {one.id for one in backup_set.sets(tmp_path)}


def test_a_damaged_manifest_replaces_nothing(tmp_path: Path) -> None:
    made(tmp_path, 60)
    newer = made(tmp_path, 3)
    made(tmp_path, 2, "config")
    (tmp_path / f"manifest_{newer}.json").write_text("{}")
    assert doomed(tmp_path) == []


def test_for_ever_is_a_number_of_days_too(tmp_path: Path) -> None:
    made(tmp_path, 60)
    made(tmp_path, 1)
    for days in (999_999, 10**12):
        assert doomed(tmp_path, days) == []
        assert in_tiers(tmp_path, days, days, days).doomed == []


def test_tiers_keep_the_guides_23_sets_of_two_years(tmp_path: Path) -> None:
    for hours in range(12, 2 * 365 * 24, 24):
        made(tmp_path, hours / 24)
    plan = in_tiers(tmp_path)
    kept = [one.id[:8] for one in backup_set.sets(tmp_path) if one not in plan.doomed]
    # NOW is Sunday, the 1st of March, 00:00; the sets are of noon. Weeks end on Sundays; the one of 22 February is a day's
    # already and takes no week's place, as that of 28 February takes no month's.
    days = [f"202602{day}" for day in range(22, 29)]
    weeks = ["20260125", "20260201", "20260208", "20260215"]
    ends = ("0228", "0331", "0430", "0531", "0630", "0731", "0831", "0930", "1031", "1130", "1231")
    months = [*(f"2025{end}" for end in ends), "20260131"]
    assert kept == sorted([*days, *weeks, *months])
    assert plan.reasons[kept[-1] + "_120000"] == "kept: daily set 1 of 7"
    assert plan.reasons["20250330_120000"] == "removed: not among the last 7 daily, 4 weekly and 12 monthly sets"


def test_tiers_keep_the_last_of_a_day_and_count_days_that_have_a_set(tmp_path: Path) -> None:
    early, late = made(tmp_path, 20.4), made(tmp_path, 20.1)
    other = made(tmp_path, 3)
    plan = in_tiers(tmp_path, 2, 0, 0)
    assert [one.id for one in plan.doomed] == [early]
    assert plan.reasons[late] == "kept: daily set 2 of 2"
    assert plan.reasons[other] == "kept: daily set 1 of 2"


def test_in_tiers_only_verified_sets_take_a_place(tmp_path: Path) -> None:
    good = made(tmp_path, 5.6)
    bad = made(tmp_path, 5.5, verdict=history.FAILED)
    ancient = made(tmp_path, 9, verdict="")
    made(tmp_path, 1)
    plan = in_tiers(tmp_path, 2, 0, 0)
    assert plan.reasons[good] == "kept: daily set 2 of 2"
    assert plan.reasons[bad].startswith("removed")  # the two days reach back two days
    assert [one.id for one in plan.doomed] == [ancient, bad]
    assert in_tiers(tmp_path, 7).reasons[bad] == "kept: not verified, and younger than 7 days"


def test_in_tiers_a_set_of_one_store_takes_no_place_of_another(tmp_path: Path) -> None:
    whole = made(tmp_path, 1.5)
    small = made(tmp_path, 1.2, "config")
    plan = in_tiers(tmp_path, 1, 0, 0)
    assert plan.doomed == []
    assert {plan.reasons[whole], plan.reasons[small]} == {"kept: daily set 1 of 1"}


def test_in_tiers_too_nothing_goes_while_the_newest_set_is_suspicious(tmp_path: Path) -> None:
    made(tmp_path, 400)
    made(tmp_path, 200)
    made(tmp_path, 1, verdict=history.SUSPICIOUS)
    plan = in_tiers(tmp_path, 1, 0, 0)
    assert plan.doomed == []
    assert "suspicious" in plan.held


def test_in_tiers_a_set_dated_in_the_future_takes_no_place(tmp_path: Path) -> None:
    made(tmp_path, -5)
    kept = made(tmp_path, 1)
    plan = in_tiers(tmp_path, 1, 0, 0)
    assert plan.doomed == []
    assert plan.reasons[kept] == "kept: daily set 1 of 1"
