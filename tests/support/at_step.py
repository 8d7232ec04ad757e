# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the command, and let something happen the moment a given journal step is on the disk.

    python -m tests.support.at_step N ACTION TRACE -- create …

ACTION is `kill` (SIGKILL to ourselves), `term` (SIGTERM), `fill:PATH` (fill PATH's file system) or `none`. TRACE is a file
to which the name of every step is appended, so that a test can list what it hit.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from agentmem_backup import cli, journal


def fill(path: Path) -> None:
    """Write to `path` until its file system has no room left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


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


def main() -> int:
    """Patch the journal and run the command."""
    target, action, trace = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    numbers = itertools.count(1)
    guard = threading.Lock()
    append = journal.Journal.append

    def counting(self: journal.Journal, step: str, **facts: Any) -> None:
        append(self, step, **facts)
        with guard:
            number = next(numbers)
            with trace.open("a") as file:
                file.write(" ".join(filter(None, (step, str(facts.get("component") or facts.get("store") or "")))) + "\n")
        if number == target:
            act(action)

    journal.Journal.append = counting  # type: ignore[method-assign]
    return cli.main(sys.argv[5:])


if __name__ == "__main__":
    sys.exit(main())
