# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which is the newest good set? For monitors, and for a run that may have nothing to do: it reads files only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import backup_set, clock, history
from .backup_set import BackupSet
from .errors import VerificationError
from .settings import Settings


def newest_good(directory: Path, components: Iterable[str] = (), settings: Settings | None = None) -> BackupSet | None:
    """The newest verified set, not dated in the future, that holds all of `components`.

    With `settings` only a set that these would make: of the same instance and database, with the same things left out.
    """
    verdicts, at, wanted = history.newest(directory), clock.now(), list(components)
    for one in reversed(backup_set.sets(directory)):
        if history.is_verified(verdicts.get(one.id)) and clock.id_time(one.id) <= at and _suits(one, wanted, settings):
            return one
    return None


def _suits(one: BackupSet, components: list[str], settings: Settings | None) -> bool:
    if not one.names.keys() >= {*components}:
        return False
    if settings is None:
        return True
    try:
        made = one.manifest
    except VerificationError:
        return False
    return (
        made is not None
        and made.data.get("instance") == settings.instance
        and all(_as_set(made.components.get(name, {}), name, settings) for name in components)
    )


def _as_set(entry: dict[str, Any], name: str, settings: Settings) -> bool:
    """Whether a component's entry says of filters and database what the settings say."""
    chosen = vars(getattr(settings, name))
    filters = entry.get("filters") or {}
    database = (entry.get("database") or {}).get("name")
    if "roots" in entry and not _same_roots(set(entry["roots"]), settings):
        return False
    return all(
        sorted(filters.get(way, [])) == sorted(value)
        for way in ("include", "exclude")
        for key, value in chosen.items()
        if key.startswith(f"{way}_")
    ) and ("postgresql.database" not in settings.sources or database in (None, settings.postgresql.database))


def _same_roots(recorded: set[str], settings: Settings) -> bool:
    """Whether the recorded paths are those of the settings; one that lies within another is recorded with that."""
    wanted = {os.path.normpath(path) for path in (settings.config.directory, *settings.config.extra_paths)}
    return recorded <= wanted and all(any(f"{path}/".startswith(f"{root}/") for root in recorded) for path in wanted)
