# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ready to back up, and is there a fresh verified set? For a person before the first run, and for monitoring."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from . import audit, backup_set, clock, freshness, preflight, registry, watch
from .components.base import Context, named
from .crew import Crew
from .errors import BackupError, VerificationError
from .libraries import complaint
from .manifest import human_size
from .progress import Reporter
from .settings import Settings


@dataclass
class Checked:
    """What was found: `good` and `problems` are sentences."""

    good: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {"ready": not self.problems, "good": self.good, "problems": self.problems, "warnings": self.warnings}


def check(settings: Settings, reporter: Reporter, max_age: timedelta | None = None) -> Checked:
    """Look at stores, rights, tools and disk; with `max_age` also at the age of the newest verified set. Touches nothing."""
    checked = Checked(problems=preflight.check_libraries())
    directory = backup_set.directory(settings.backup_dir)
    if checked.problems:
        return checked
    components = registry.make(Context(settings, reporter, directory, lambda step, **facts: None))
    with Crew(components) as crew:
        ready = preflight.assess(directory, components, crew)
    checked.problems += ready.problems
    checked.warnings += ready.warnings
    for name, probe in ready.probes.items():
        if not probe.problems:
            size = f", about {human_size(probe.raw_bytes)}" if probe.raw_bytes is not None else ""
            checked.good.append(f"{name}: {named(probe.facts.get('server', 'reachable'))}{size}")
    if ready.needed <= ready.free:
        checked.good.append(f"disk: {human_size(ready.free)} free, {human_size(ready.needed)} needed ({ready.basis})")
    checked.warnings += watch.broken_channels(settings)
    if settings.notify.urls and (sentence := complaint(["apprise"])):
        checked.warnings.append(f"notify.urls: {sentence}")
    if max_age is not None:
        _freshness(checked, directory, max_age, settings.components)
    return checked


def _freshness(checked: Checked, directory: Any, max_age: timedelta, components: list[str]) -> None:
    good = freshness.newest_good(directory, components)
    if good is None:
        checked.problems.append(
            f"there is no verified set of {', '.join(components)} in {directory}: make one with agentmem-backup create"
        )
    elif clock.now() - clock.id_time(good.id) > max_age:
        checked.problems.append(
            f"the newest verified set, {good.id}, is {clock.age(clock.id_time(good.id))} old: "
            "look at the timer and the log, then run agentmem-backup create"
        )
    else:
        checked.good.append(f"newest verified set: {good.id}, {clock.age(clock.id_time(good.id))} old")


def monitored(settings: Settings, reporter: Reporter, max_age: timedelta | None) -> tuple[str, int]:
    """What `check` finds as a monitoring plug-in says it: a line with perfdata, and 0 good, 1 warning, 2 critical."""
    try:
        checked = check(settings, reporter, max_age)
        directory = backup_set.directory(settings.backup_dir)
    except BackupError as error:
        return f"AGENTMEM BACKUP CRITICAL - {error}".replace("|", "/"), 2
    code = 2 if checked.problems else 1 if checked.warnings else 0
    state = ("OK", "WARNING", "CRITICAL")[code]
    said = "; ".join(checked.problems or checked.warnings) or (checked.good or ["ready"])[-1]
    figures = [f"free={shutil.disk_usage(directory).free}B"]
    good = freshness.newest_good(directory, settings.components)
    if good is not None:
        age = (clock.now() - clock.id_time(good.id)).total_seconds()
        limit = f";;{max_age.total_seconds():.0f};0" if max_age is not None else ""
        figures.insert(0, f"age={age:.0f}s{limit}")
    return f"AGENTMEM BACKUP {state} - {said.replace('|', '/')} | {' '.join(figures)}", code


def audit_faults(settings: Settings) -> list[str]:
    """Every fault of the audit log, held against the heads that the sets' manifests know."""
    directory = backup_set.directory(settings.backup_dir, write=False)
    heads = []
    for one in backup_set.sets(directory):
        try:
            if one.manifest is not None:
                heads.append((one.manifest_path.name, dict(one.manifest.data["audit"])))
        except VerificationError:
            continue  # that set's own verification says so
    return audit.check(directory, heads)
