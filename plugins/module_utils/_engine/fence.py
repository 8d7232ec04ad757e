# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping the application from writing while a restore switches its stores.

The operator's `fence` and `release` hooks where there are any, else the systemd units in `services`, stopped and
started again; else the plan says that what is written during the switch is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from . import hooks, process
from .errors import BackupError
from .progress import Reporter
from .settings import Settings


def described(settings: Settings) -> list[str]:
    """What will be done, for the plan."""
    if settings.hooks.fence:
        return [
            f"fence: the hook {settings.hooks.fence[0]} is run before the switch"
            + (", release after it" if settings.hooks.release else "")
        ]
    if settings.services:
        return [f"fence: stops {', '.join(settings.services)} before the switch and starts them afterwards"]
    return ["fence: none (no services and no fence hook are set): what the application writes during the switch is lost"]


@contextlib.contextmanager
def closed(settings: Settings, reporter: Reporter, facts: Mapping[str, object]) -> Iterator[None]:
    """Keep the application out for the length of the block, and let it back in whatever happens. Raises BackupError."""
    fenced = hooks.run(settings, "fence", reporter, facts)
    stopped: list[str] = []
    try:
        for unit in [] if fenced else settings.services:
            reporter.step(f"stopping {unit}")
            stopped.append(unit)
            process.run([process.find("systemctl", "systemd"), "stop", unit], timeout_s=120)
        yield
    except BaseException:
        for trouble in _open_again(settings, reporter, facts, stopped):  # must not hide why the restore failed
            reporter.warn(str(trouble))
        raise
    if troubles := _open_again(settings, reporter, facts, stopped):
        raise BackupError("; ".join(map(str, troubles)))


def _open_again(settings: Settings, reporter: Reporter, facts: Mapping[str, object], stopped: list[str]) -> list[BackupError]:
    """Start every unit that was stopped and run the release hook, each whatever became of the others; what failed."""
    process.resume()

    def start(unit: str) -> None:
        reporter.step(f"starting {unit}")
        process.run([process.find("systemctl", "systemd"), "start", unit], timeout_s=120)

    steps: list[Callable[[], object]] = [partial(start, unit) for unit in reversed(stopped)]
    steps.append(partial(hooks.run, settings, "release", reporter, facts))
    troubles = []
    for step in steps:
        try:
            step()
        except BackupError as error:
            troubles.append(error)
    return troubles
