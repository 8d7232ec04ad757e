# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is everything there that a backup needs? All that is missing at once, before anything is touched."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import backup_set, history
from .backup_set import BackupSet
from .components.base import Component, Probe
from .crew import Crew
from .errors import BackupError, VerificationError
from .libraries import REQUIRED, complaint
from .manifest import human_size

_GROWTH = 1.2
"""How much larger than the last set the next one may become before it counts as a surprise."""


class NotReady(BackupError):
    """Something that a run needs is missing; `problems` has a sentence for each."""

    def __init__(self, problems: list[str], what: str):
        self.problems = problems
        super().__init__(f"not ready to {what}: " + "; ".join(problems))


@dataclass
class Readiness:
    """What the probes said, and how much disk the run wants."""

    probes: dict[str, Probe] = field(default_factory=dict)
    needed: int = 0
    basis: str = ""
    free: int = 0

    @property
    def problems(self) -> list[str]:
        """Every sentence that forbids the run."""
        found = [f"{name}: {problem}" for name, probe in self.probes.items() for problem in probe.problems]
        if self.needed > self.free:
            found.append(
                f"disk: {human_size(self.needed)} are needed ({self.basis}) and {human_size(self.free)} are free: "
                "make room, or prune old sets"
            )
        return found

    @property
    def warnings(self) -> list[str]:
        """Every sentence that the operator should see."""
        return [f"{name}: {warning}" for name, probe in self.probes.items() for warning in probe.warnings]


def check_libraries() -> list[str]:
    """One sentence where libraries are missing."""
    sentence = complaint(REQUIRED)
    return [sentence] if sentence else []


def assess(directory: Path, components: dict[str, Component], crew: Crew) -> Readiness:
    """Probe every component in its own thread and work out the disk that the run needs. Never raises for what it finds."""
    readiness = Readiness(crew.each(lambda name: components[name].probe(), names=components))
    readiness.free = shutil.disk_usage(directory).free
    last = last_entries(directory)
    guessed = False
    for name, probe in readiness.probes.items():
        if name in last:
            readiness.needed += int(last[name]["bytes"] * _GROWTH)
        elif probe.raw_bytes is not None:
            readiness.needed += probe.raw_bytes
            guessed = True
    readiness.basis = "by the sizes of the stores" if guessed else "by the size of the last set"
    return readiness


def last_entries(directory: Path) -> dict[str, dict[str, Any]]:
    """Component → its entry in the newest set that has one and is known to be good."""
    verdicts = history.newest(directory)
    entries: dict[str, dict[str, Any]] = {}
    for one in reversed(backup_set.sets(directory)):
        if len(entries) == len(backup_set.COMPONENT_OF):
            break
        if not history.is_verified(verdicts.get(one.id)):
            continue
        for name, entry in _entries(one).items():
            entries.setdefault(name, entry)
    return entries


def _entries(one: BackupSet) -> dict[str, dict[str, Any]]:
    try:
        return one.manifest.components if one.manifest else {}
    except VerificationError:
        return {}
