# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which components there are, in the guide's order, and how they are made for a run."""

from __future__ import annotations

from .components.base import Component, Context
from .components.config import ConfigComponent
from .components.postgresql import PostgresqlComponent
from .components.qdrant import QdrantComponent
from .components.redis import RedisComponent
from .pipeline import SUFFIXES

CLASSES: dict[str, type[Component]] = {
    one.name: one for one in (PostgresqlComponent, RedisComponent, QdrantComponent, ConfigComponent)
}
"""Component → its class."""


def make(context: Context, names: list[str] | None = None) -> dict[str, Component]:
    """The components of a run: those of the settings, or `names`, in the guide's order."""
    wanted = context.settings.components if names is None else names
    return {name: one(context) for name, one in CLASSES.items() if name in wanted}


def compression_for(name: str, compression: str) -> str:
    """How a component's file is compressed, when the set's compression is `compression`."""
    return compression if CLASSES[name].compressible else "none"


def file_name(name: str, set_id: str, compression: str) -> str:
    """The name of a component's file in a set: db_20250103_120000.dump.gz."""
    one = CLASSES[name]
    return f"{one.prefix}_{set_id}{one.extension}{SUFFIXES[compression_for(name, compression)]}"
