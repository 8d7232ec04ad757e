# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which third-party libraries the engine needs, and one sentence when some are missing.

Heavy libraries are imported where they are used; this is the one place that says what to install.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from .errors import BackupError

REQUIRED = ("httpx", "psycopg", "redis", "yaml")
"""Without these nothing works."""
HELPFUL = ("anycrc", "isal", "qdrant_edge", "zstandard")
"""These make it faster, or serve one matter and are asked for there."""
PACKAGES = {
    "anycrc": "anycrc",
    "apprise": "apprise",
    "httpx": "httpx",
    "isal": "isal",
    "jinja2": "Jinja2",
    "psycopg": "psycopg[binary]",
    "qdrant_edge": "qdrant-edge-py",
    "redis": "redis",
    "rich": "rich",
    "shtab": "shtab",
    "yaml": "PyYAML",
    "zstandard": "zstandard",
}
"""Import name → name on PyPI."""


def missing(names: Iterable[str]) -> list[str]:
    """The import names among `names` that this Python cannot find."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def complaint(names: Iterable[str]) -> str:
    """One sentence that names every library of `names` that is missing and the command that installs them; else nothing."""
    absent = missing(names)
    packages = " ".join(f"'{PACKAGES.get(name, name)}'" for name in absent)
    return f"Python libraries are missing: {', '.join(absent)}; install them with: pip install {packages}" if absent else ""


def require(*names: str) -> None:
    """Fail with that sentence where a library of `names` is missing."""
    if sentence := complaint(names):
        raise BackupError(sentence)
