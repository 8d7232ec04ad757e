# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the command again and again, and let something happen the moment a given journal step is on the disk."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support import command, warm
from tests.support.disks import fill
from tests.support.servers import Stores


class AtStep:
    """The command, warm. Use it as a context manager."""

    def __init__(self) -> None:
        self._runs = itertools.count()
        self._program = warm.Warm()

    def run(
        self, stores: Stores, *arguments: str, number: int = 0, action: str = "none", trace: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command on `stores`; once step `number` (from 1) is on the disk, `action` happens.

        Actions: `kill` (SIGKILL to itself), `term` (SIGTERM), `fill:PATH` (fill PATH's file system) or `none`. `trace` is a file
        that then holds the name of every step, so that a test can list what it hit. Every run is a second later than the one
        before, in the names of what it makes.
        """
        if trace is not None:
            trace.write_text("")
        return self._program.run(
            ["agentmem-backup", *arguments],
            command.environment(stores),
            before="tests.support.at_step:prepare",
            number=number,
            action=action,
            trace=str(trace or os.devnull),
            second=next(self._runs),
        )

    def __enter__(self) -> AtStep:
        return self

    def __exit__(self, *__: object) -> None:
        self._program.close()


def act(action: str) -> None:
    """Do what the test asked for."""
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.2)  # the signal is handled in the main thread; let it be handled within this very step
    elif action.startswith("fill:"):
        fill(Path(action.removeprefix("fill:")))


def prepare(*, number: int, action: str, trace: str, second: int) -> None:
    """Patch journal and clock of this process."""
    from agentmem_backup import clock, journal

    numbers = itertools.count(1)
    guard = threading.Lock()
    append, set_id = journal.Journal.append, clock.set_id

    def counting(self: journal.Journal, step: str, **facts: Any) -> None:
        append(self, step, **facts)
        with guard:
            here = next(numbers)
            with Path(trace).open("a") as file:
                file.write(" ".join(filter(None, (step, str(facts.get("component") or facts.get("store") or "")))) + "\n")
        if here == number:
            act(action)

    def later(moment: datetime) -> str:
        return set_id(moment + timedelta(seconds=second - 3600))

    journal.Journal.append = counting  # type: ignore[method-assign]
    clock.set_id = later
