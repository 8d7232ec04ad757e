# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of a document that describe a JSON object, and how a real object differs from them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from tests.docs.pages import rows

TYPES = {
    "text": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "list": (list,), "object": (dict,),
    "null": (type(None),),
}  # fmt: skip
FOREIGN = "Qdrant's own"
Path = tuple[str, ...]


class Schema:
    """The fields as the page has them."""

    def __init__(self, page: str, headings: Iterable[str]) -> None:
        self.fields: dict[Path, tuple[str, str]] = {}
        for heading in headings:
            for name, kind, when, __ in rows(page, heading):
                path = tuple(name.strip("`").split("."))
                assert path not in self.fields, f"{name} is there twice"
                assert when in ("always", "content", "optional"), f"{name}: {when!r}"
                self.fields[path] = (kind, when)

    def find(self, path: Path) -> Path | None:
        """The documented field that a field of a real object is: the most exact one."""
        fitting = [one for one in self.fields if len(one) == len(path) and all(map(_same, one, path))]
        return min(fitting, key=lambda one: sum(part.isupper() for part in one), default=None)

    def expected(self, *kinds: str) -> set[Path]:
        """The fields that are there on these conditions."""
        return {path for path, (__, when) in self.fields.items() if when in kinds}


def _same(documented: str, real: str) -> bool:
    return documented == real or (documented.isupper() and not real.endswith("[]"))


def fields(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every field of an object with its value; `[]` behind a list's name stands for its elements."""
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
    """What an object has that the page has not, or has otherwise; and the documented fields that it has."""
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
