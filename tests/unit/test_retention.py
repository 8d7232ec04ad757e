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
    return [one.id for one in prune.plan(directory, days, NOW).doomed]


def test_the_last_verified_set_of_a_store_outlives_newer_sets_of_other_stores(tmp_path: Path) -> None:
    older, old = made(tmp_path, 60), made(tmp_path, 50)
    small = made(tmp_path, 40, "config")
    made(tmp_path, 1, "config")
    assert doomed(tmp_path) == [older, small]
    assert prune.plan(tmp_path, 30, NOW).reasons[old] == "kept: no newer verified set has postgresql, redis, qdrant"


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
    assert "postgresql" in prune.plan(tmp_path, 30, NOW).reasons[old]


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
