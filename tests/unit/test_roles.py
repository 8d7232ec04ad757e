# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role: its argument specs say the same as its defaults, its README names every variable, and its names are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (CHECKOUT / "roles").iterdir() if path.is_dir())
PUBLIC = [path for path in ROLES if not path.name.startswith("_")]
TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict, "path": str}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def options_of(role: Path) -> dict[str, Any]:
    return dict(read(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"])


def differences(specs: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """How the specs' defaults differ from the role's, and from their own types."""
    told = {name: spec["default"] for name, spec in specs.items() if "default" in spec}
    faults = []
    for name in sorted(set(told) | set(defaults)):
        if name not in told or name not in defaults or told[name] != defaults[name]:
            faults.append(f"{name}: the specs say {told.get(name)!r}, defaults/main.yml {defaults.get(name)!r}")
    faults += [f"{name}: neither required nor with a default" for name, spec in specs.items()
               if name not in told and not spec.get("required")]  # fmt: skip
    for name, value in told.items():
        kind = specs[name].get("type", "str")
        if not isinstance(value, TYPES[kind]) or (kind == "int" and isinstance(value, bool)):
            faults.append(f"{name}: the default {value!r} is no {kind}")
    return faults


@pytest.mark.parametrize("role", PUBLIC, ids=lambda role: role.name)
def test_argument_specs_equal_the_defaults(role: Path) -> None:
    assert differences(options_of(role), read(role / "defaults" / "main.yml") or {}) == []


@pytest.mark.parametrize("role", PUBLIC, ids=lambda role: role.name)
def test_every_variable_has_the_roles_name_and_stands_in_its_readme(role: Path) -> None:
    readme = (role / "README.md").read_text(encoding="utf-8")
    for name, spec in options_of(role).items():
        assert name.startswith(f"{role.name}_")
        assert f"`{name}`" in readme, f"README.md of the role {role.name} does not name {name}"
        assert spec.get("description"), name


def test_the_comparison_finds_what_differs() -> None:
    specs = {"a": {"default": 1, "type": "int"}, "b": {"default": "x"}, "c": {}, "d": {"default": "1", "type": "int"}}
    found = differences(specs, {"a": 2, "b": "x", "d": "1", "e": 0})
    assert [fault.partition(":")[0] for fault in found] == ["a", "e", "c", "d"]
