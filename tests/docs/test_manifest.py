# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/manifest.md is held against manifests of sets that were really made, in both directions."""

from __future__ import annotations

from agentmem_backup import clock
from agentmem_backup import manifest as engine

from tests.docs.pages import rows
from tests.docs.schema import Schema, faults
from tests.support import command
from tests.support.servers import Stores

PAGE = "docs/manifest.md"
TABLES = ("The set", "Every store", "PostgreSQL", "Redis", "Qdrant", "Configuration")


def _create(stores: Stores, *arguments: str) -> str:
    """Make a set in a second in which there is none yet; returns its ID."""
    while (stores.backup_dir / f"manifest_{clock.set_id(clock.now())}.json").exists():
        pass
    return str(command.create(stores, *arguments)["id"])


def test_every_field_is_documented_and_every_documented_field_exists(stores: Stores) -> None:
    schema = Schema(PAGE, TABLES)
    filters = [
        "postgresql.exclude_tables=public.log_without_key",
        "redis.exclude_keys=session:*",
        "qdrant.exclude_collections=agents",
    ]
    parts = [word for name in ("postgresql", "redis", "qdrant") for word in ("--component", name)]
    made = {
        "filtered": _create(stores, *parts, *(word for one in filters for word in ("--set", one))),
        "counts": _create(stores),
        "content": _create(stores, "--fingerprint", "content"),
    }

    have: dict[str, set[tuple[str, ...]]] = {}
    for kind, set_id in made.items():
        strange, have[kind] = faults(schema, command.manifest(stores, set_id))
        assert not strange, f"{kind}:\n" + "\n".join(strange)
    lacking = (schema.expected("always") - have["counts"]) | (schema.expected("always", "content") - have["content"])
    assert not lacking, "always there by the page, and not in the manifest:\n" + "\n".join(
        sorted(".".join(one) for one in lacking)
    )
    early = schema.expected("content") & have["counts"]
    assert not early, "called content, and there with counts, too:\n" + "\n".join(sorted(".".join(one) for one in early))
    assert ("partial", "filtered") in have["filtered"]
    for store in engine.COMPONENTS:  # what the page says of every store is true of each of them
        entry = command.manifest(stores, made["counts"])["components"][store]
        assert {
            path[2] for path in schema.expected("always") if path[:2] == ("components", "STORE") and len(path) == 3
        } <= entry.keys()


def test_the_page_knows_the_present_format() -> None:
    assert [int(row[0]) for row in rows(PAGE, "Versions")] == list(range(1, engine.FORMAT + 1))
