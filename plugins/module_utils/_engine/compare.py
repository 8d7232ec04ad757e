# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do the live stores hold what a backup holds? Asked before a restore that may have nothing to do.

    lock → recover → choose → each store's own comparison, side by side

Equal needs proof: a fingerprint of the content in the manifest, everything compared, nothing different.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import backup_set, clock, lock, registry
from .backup_set import Staging
from .components.base import CONTENT, Comparison, Component, Context, RestoreOptions, Source
from .create import clear_the_way
from .crew import Crew
from .errors import BackupError
from .progress import Reporter
from .restore import Request, choose
from .settings import Settings


@dataclass
class Compared:
    """A backup by its name, and for each component how the live store compares with it."""

    name: str
    comparisons: dict[str, Comparison]

    @property
    def differences(self) -> list[str]:
        """Everything in which the live stores differ from the backup."""
        return [f"{name}: {text}" for name, one in self.comparisons.items() for text in one.differences]

    @property
    def doubts(self) -> list[str]:
        """Everything that was not compared, and why: it is never counted as equal."""
        if not self.comparisons:
            return [f"{self.name} holds nothing that could be compared"]
        found = [f"{name}: not compared: {text}" for name, one in self.comparisons.items() for text in one.not_compared]
        return found + [
            f"{name}: nothing was compared"
            for name, one in self.comparisons.items()
            if not (one.compared or one.differences or one.not_compared)
        ]


def compare(settings: Settings, reporter: Reporter, request: Request) -> Compared:
    """Hold the live stores against what `request` names. Changes nothing; a store that does not answer is a doubt.

    Raises UsageError where there is no such backup, LockedError where another run is at work.
    """
    directory = backup_set.directory(settings.backup_dir)
    with lock.hold(directory / backup_set.STATE / "lock", "compare", settings.lock_wait_s):
        clear_the_way(directory, settings, reporter)
        name, sources = choose(settings, request)
        staging = Staging(directory, f"compare-{clock.set_id(clock.now())}")
        try:
            components = registry.make(Context(settings, reporter, staging.work, staging.note), list(sources))
            with Crew(components) as crew:
                return Compared(name, crew.each(lambda one: _compare(components[one], sources[one], request.options)))
        finally:
            staging.discard()


def _compare(component: Component, source: Source, options: RestoreOptions) -> Comparison:
    level = ((source.entry or {}).get("fingerprint") or {}).get("level")
    if level != CONTENT:
        recorded = "only counts of it" if source.entry else "nothing of it, for there is no manifest"
        return Comparison(not_compared=[f"its content: the backup has {recorded} (create it with fingerprint content)"])
    try:
        restoration = component.restoration(source, options)
        try:
            return restoration.compare()
        finally:
            restoration.close()
    except BackupError as error:
        return Comparison(not_compared=[str(error)])
