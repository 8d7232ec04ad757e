# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation as data: fenced blocks, tables, inline commands, and the engine's sentences to hold it against."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ENGINE = CHECKOUT / "plugins" / "module_utils" / "_engine"
ANY = "…"
"""In the documents as in a sentence's template: some text that differs from run to run."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, and its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        """For a failing test."""
        return f"{self.page}:{self.line}"


def read(page: str) -> str:
    """A document by its path in the checkout."""
    return (CHECKOUT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    found: list[Block] = []
    language: str | None = None
    start, lines = 0, list[str]()
    for number, line in enumerate(read(page).splitlines(), start=1):
        if language is None and line.startswith("```"):
            language, start, lines = line[3:].strip(), number + 1, []
        elif language is not None and line == "```":
            found.append(Block(page, start, language, "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{page}: the block at line {start} does not end"
    return found


def prose(page: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


def inline_code(page: str) -> list[str]:
    """Everything between single backticks in a document's prose."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of every table row in the section under `heading`, the tables' own headings left out."""
    section = re.split(rf"^#+ {re.escape(heading)}$", read(page), maxsplit=1, flags=re.MULTILINE)
    assert len(section) == 2, f"{page} has no heading {heading!r}"
    body = re.split(r"^#+ ", section[1], maxsplit=1, flags=re.MULTILINE)[0].splitlines()
    marks = [number for number, line in enumerate(body) if re.fullmatch(r"\|[-| :]+\|", line)]
    found = []
    for mark in marks:
        for line in body[mark + 1 :]:
            if not line.startswith("|"):
                break
            found.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def _template(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else ANY for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _template(node.left), _template(node.right)
        return None if left is None and right is None else f"{left or ANY}{right or ANY}"
    return None


def _texts(node: ast.AST) -> Iterator[str]:
    text = _template(node)
    if text is not None:
        yield re.sub(f"{ANY}+", ANY, re.sub(r"\{\w+\}|%[sdr]", ANY, text))
    for child in ast.iter_child_nodes(node):
        yield from _texts(child)


def sentences() -> list[str]:
    """Every text in the source of the engine, of the modules' door and of the action plugins as a template, docstrings left out.

    What is filled in when it runs is `…`.
    """
    found: list[str] = []
    for path in sorted([*ENGINE.parent.rglob("*.py"), *(CHECKOUT / "plugins" / "action").glob("*.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                node.body = [one for one in node.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
        found += _texts(tree)
    return found
