# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what Ansible sees. They run under `ansible-test units` and under plain pytest, and need no server."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]


def _name_the_checkout() -> None:
    """Under plain pytest the checkout lies in no `ansible_collections`: give its packages the names that they have there."""
    for name, places in (
        ("ansible_collections", []),
        ("ansible_collections.agentmem", []),
        ("ansible_collections.agentmem.backup", [str(CHECKOUT)]),
    ):
        package = types.ModuleType(name)
        package.__path__ = places
        sys.modules[name] = package


try:
    found = importlib.util.find_spec("ansible_collections.agentmem.backup")
except ImportError:
    found = None
if found is None:
    _name_the_checkout()
