# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role: its argument specs say the same as its defaults, its README names every variable, and its names are its own."""

from __future__ import annotations

from collections.abc import Iterator
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


def owner(task: dict[str, Any], role: str) -> str:
    """Whose variables a task's own are: this role's, or those of the one that it includes."""
    for action in ("ansible.builtin.include_role", "ansible.builtin.import_role"):
        if action in task:
            return str(task[action]["name"]).rpartition(".")[2]
    return role


def given(tasks: Any, role: str) -> Iterator[tuple[str, str, str]]:
    """Every name that tasks give to a value: (the role whose it must be, how it is given, the name)."""
    for task in tasks or []:
        yield from ((owner(task, role), "vars", name) for name in task.get("vars", {}))
        if "register" in task:
            yield role, "register", task["register"]
        facts = task.get("ansible.builtin.set_fact", {})
        yield from ((role, "set_fact", name) for name in facts if name != "cacheable")
        control = task.get("loop_control", {})
        yield from ((role, "loop", control[word]) for word in ("loop_var", "index_var") if word in control)
        for part in ("block", "rescue", "always"):
            yield from given(task.get(part), role)


def names_of(role: Path) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for path in sorted(role.glob("tasks/**/*.yml")) + sorted(role.glob("handlers/**/*.yml")):
        found += given(read(path), role.name)
    for path in sorted(role.glob("vars/**/*.yml")):
        found += [(role.name, "vars file", name) for name in read(path)]
    return found


def strangers(names: list[tuple[str, str, str]], documented: str) -> list[str]:
    """What a play's own variable could override: names without the role's in front, or with it and documented nowhere."""
    return [f"{how} {name}" for whose, how, name in names
            if not name.startswith((f"_{whose}_", "ansible_"))
            and not (name.startswith(f"{whose}_") and f"`{name}`" in documented) and name != "item"]  # fmt: skip


def hidden(names: list[tuple[str, str, str]]) -> set[str]:
    """Names that a task registers and other variables of the role have too: those would keep the registered value."""
    lasting = {name for __, how, name in names if how in ("register", "set_fact")}
    return lasting & {name for __, how, name in names if how not in ("register", "set_fact")}


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


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_no_variable_of_a_play_can_take_the_place_of_the_roles_own(role: Path) -> None:
    """What a play registers or sets goes before what a task or the role computes under the same name."""
    names = names_of(role)
    assert names
    assert strangers(names, (role / "README.md").read_text(encoding="utf-8")) == []
    assert hidden(names) == set()


def test_names_are_found_wherever_tasks_give_them() -> None:
    inner = {"register": "found", "loop_control": {"loop_var": "one", "label": "x"}, "vars": {"a_b": 1, "_a_c": 2, "a_d": 3}}
    other = {"ansible.builtin.include_role": {"name": "n.s.b"}, "vars": {"_b_x": 1, "_a_x": 2}}
    tasks = [{"block": [inner], "vars": {"sum": 1, "ansible_become": True}}, {"rescue": [other]},
             {"always": [{"ansible.builtin.set_fact": {"fact": 1, "_a_c": 4, "cacheable": True}}]}]  # fmt: skip
    names = list(given(tasks, "a"))
    assert strangers(names, "`a_b`, not `x_a_d`") == [
        "vars sum", "vars a_d", "register found", "loop one", "vars _a_x", "set_fact fact",
    ]  # fmt: skip
    assert hidden(names) == {"_a_c"}


def test_the_comparison_finds_what_differs() -> None:
    specs = {"a": {"default": 1, "type": "int"}, "b": {"default": "x"}, "c": {}, "d": {"default": "1", "type": "int"}}
    found = differences(specs, {"a": 2, "b": "x", "d": "1", "e": 0})
    assert [fault.partition(":")[0] for fault in found] == ["a", "e", "c", "d"]
