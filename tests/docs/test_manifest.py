# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/manifest.md is held against manifests of sets that were really made, in both directions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from agentmem_backup import clock
from agentmem_backup import manifest as engine

from tests.docs.pages import rows
from tests.support import command
from tests.support.servers import Stores

PAGE = "docs/manifest.md"
TABLES = ("The set", "Every store", "PostgreSQL", "Redis", "Qdrant", "Configuration")
TYPES = {
    "text": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "list": (list,), "object": (dict,),
    "null": (type(None),),
}  # fmt: skip
FOREIGN = "Qdrant's own"
Path = tuple[str, ...]


class Schema:
    """The fields as the page has them."""

    def __init__(self) -> None:
        self.fields: dict[Path, tuple[str, str]] = {}
        for heading in TABLES:
            for name, kind, when, __ in rows(PAGE, heading):
                path = tuple(name.strip("`").split("."))
                assert path not in self.fields, f"{name} is there twice"
                assert when in ("always", "content", "optional"), f"{name}: {when!r}"
                self.fields[path] = (kind, when)

    def find(self, path: Path) -> Path | None:
        """The documented field that a field of a real manifest is: the most exact one."""
        fitting = [one for one in self.fields if len(one) == len(path) and all(map(_same, one, path))]
        return min(fitting, key=lambda one: sum(part.isupper() for part in one), default=None)


def _same(documented: str, real: str) -> bool:
    return documented == real or (documented.isupper() and not real.endswith("[]"))


def fields(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every field of a manifest with its value; `[]` behind a list's name stands for its elements."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from fields(inner, (*path, key))
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, dict):
                yield from itertools.islice(fields(one, (*path[:-1], f"{path[-1]}[]")), 1, None)


def faults(schema: Schema, data: dict[str, Any]) -> tuple[list[str], set[Path]]:
    """What a manifest has that the page has not, or has otherwise; and the documented fields that it has."""
    found: list[str] = []
    seen: set[Path] = set()
    foreign: list[Path] = []
    for path, value in fields(data):
        if any(path[: len(one)] == one for one in foreign):
            continue
        documented = schema.find(path)
        if documented is None:
            # an object by name (a table, a collection) is described by its fields
            if not (
                isinstance(value, dict) and any(len(one) > len(path) and all(map(_same, one, path)) for one in schema.fields)
            ):
                found.append(f"{'.'.join(path)} is not on the page")
            continue
        seen.add(documented)
        kind = schema.fields[documented][0]
        if kind == FOREIGN:
            foreign.append(path)
        elif not any(type(value) in TYPES[one] for one in kind.split(" or ")):
            found.append(f"{'.'.join(path)} is {value!r} and not {kind}")
    return found, seen


def _expected(schema: Schema, *kinds: str) -> set[Path]:
    return {path for path, (__, when) in schema.fields.items() if when in kinds}


def _create(stores: Stores, *arguments: str) -> str:
    """Make a set in a second in which there is none yet; returns its ID."""
    while (stores.backup_dir / f"manifest_{clock.set_id(clock.now())}.json").exists():
        pass
    return str(command.create(stores, *arguments)["id"])


def test_every_field_is_documented_and_every_documented_field_exists(stores: Stores) -> None:
    schema = Schema()
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

    have: dict[str, set[Path]] = {}
    for kind, set_id in made.items():
        strange, have[kind] = faults(schema, command.manifest(stores, set_id))
        assert not strange, f"{kind}:\n" + "\n".join(strange)
    lacking = (_expected(schema, "always") - have["counts"]) | (_expected(schema, "always", "content") - have["content"])
    assert not lacking, "always there by the page, and not in the manifest:\n" + "\n".join(
        sorted(".".join(one) for one in lacking)
    )
    early = _expected(schema, "content") & have["counts"]
    assert not early, "called content, and there with counts, too:\n" + "\n".join(sorted(".".join(one) for one in early))
    assert ("partial", "filtered") in have["filtered"]
    for store in engine.COMPONENTS:  # what the page says of every store is true of each of them
        entry = command.manifest(stores, made["counts"])["components"][store]
        assert {
            path[2] for path in _expected(schema, "always") if path[:2] == ("components", "STORE") and len(path) == 3
        } <= entry.keys()


def test_the_page_knows_the_present_format() -> None:
    assert [int(row[0]) for row in rows(PAGE, "Versions")] == list(range(1, engine.FORMAT + 1))
