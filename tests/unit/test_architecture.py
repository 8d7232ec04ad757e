# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arrows go down only: doors know verbs, verbs know stores and ground, stores know formats and ground, ground knows itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[2] / "plugins" / "module_utils" / "_engine"
DOORS = {"cli", "compat", "console"}
VERBS = {
    "create",
    "verify",
    "restore",
    "extract",
    "list_sets",
    "info",
    "check",
    "prune",
    "compare",
    "notify",
    "report",
    "fleet",
    "page",
    "sync_check",
    "sync_pull",
    "sync_push",
}
BESIDE_VERBS = {"copies", "fence", "freshness", "metrics", "post_checks", "preflight", "registry", "sync_keep", "watch"}
"""What verbs share and what must know all stores."""
GROUND = {
    "__init__", "audit", "backup_set", "channels", "clock", "crew", "errors", "history", "hooks", "journal", "libraries", "lock",
    "log",
    "manifest", "pipeline", "process", "progress", "runs", "settings", "targets",
}  # fmt: skip


def layer(module: str) -> int:
    """4 doors, 3 verbs, 2 what verbs share, 1 stores, formats, targets and the child that opens Qdrant snapshots, 0 ground."""
    first, __, rest = module.partition(".")
    if first in DOORS:
        return 4
    if first in VERBS:
        return 3
    if first in BESIDE_VERBS:
        return 2
    if first in ("components", "formats", "points", "offsite"):
        return 1
    assert first in GROUND, f"{module} belongs to no layer: say here to which"
    assert not rest
    return 0


def modules() -> list[tuple[str, ast.Module]]:
    found = []
    for path in sorted(ENGINE.rglob("*.py")):
        name = ".".join(path.relative_to(ENGINE).with_suffix("").parts)
        found.append((name.removesuffix(".__init__") if name != "__init__" else name, ast.parse(path.read_text())))
    return found


def imported(module: str, tree: ast.Module) -> Iterator[str]:
    """Modules of the engine that a module imports (relative to the engine), wherever in it the import stands."""
    depth = module.count(".") + 1
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(module.split(".")[: depth - node.level])
            target = ".".join(part for part in (base, node.module) if part)
            if node.module is None:
                yield from (".".join(part for part in (base, name.name) if part) for name in node.names)
            else:
                yield target


def test_arrows_go_down_only() -> None:
    wrong = []
    for name, tree in modules():
        for target in imported(name, tree):
            if target == "__version__" or (target.startswith("components.base") and layer(name) > 0):
                continue
            if layer(target) > layer(name):
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_stores_do_not_know_each_other() -> None:
    stores = {"postgresql", "redis", "qdrant", "config"}
    for name, tree in modules():
        own = name.removeprefix("components.")
        if name.startswith("components.") and own in stores:
            others = {target.removeprefix("components.") for target in imported(name, tree) if target.startswith("components.")}
            own = {one for one in others if one.startswith(name.removeprefix("components.") + "_")}  # a store of several files
            assert others - own <= {"base"}, f"{name} imports {others}"


@pytest.mark.parametrize("word", ["ansible"])
def test_the_engine_imports_no_ansible(word: str) -> None:
    for name, tree in modules():
        for node in ast.walk(tree):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [one for one in names if one.split(".")[0] == word], name


def calls(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_only_the_doors_print_and_exit_and_nobody_imports_dynamically() -> None:
    for name, tree in modules():
        called = set(calls(tree))
        assert not called & {"importlib.import_module", "__import__", "exec", "eval"}, name
        if name.split(".")[0] not in DOORS:
            assert not called & {"print", "sys.exit", "exit", "quit", "os._exit"}, name


def test_imports_are_relative_within_the_engine() -> None:
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not (node.module or "").startswith(("agentmem_backup", "ansible_collections", "plugins")), name
