# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the command again and again, and let something happen the moment a given journal step is on the disk.

`AtStep` starts this file as a program, which imports the engine once and forks for every run: a fresh interpreter would
take longer than the run. A fork is a process of its own, with the command's own `main`: it can be killed like any other.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support import command
from tests.support.disks import fill
from tests.support.servers import CHECKOUT, Stores

LIBRARIES = ("create", "restore", "verify", "registry", "console", "points")
"""Modules of the engine that a run loads where it uses them."""


class AtStep:
    """The warm program. Use it as a context manager."""

    def __init__(self) -> None:
        self._runs = itertools.count()
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.support.at_step"],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def run(
        self, stores: Stores, *arguments: str, number: int = 0, action: str = "none", trace: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command on `stores`; once step `number` (from 1) is on the disk, `action` happens.

        Actions: `kill` (SIGKILL to itself), `term` (SIGTERM), `fill:PATH` (fill PATH's file system) or `none`. `trace` is a file
        that then holds the name of every step, so that a test can list what it hit. Every run is a second later than the one
        before, in the names of what it makes.
        """
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        if trace is not None:
            trace.write_text("")
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = {
                "arguments": arguments,
                "environment": command.environment(stores),
                "out": str(out),
                "err": str(err),
                "number": number,
                "action": action,
                "trace": str(trace or os.devnull),
                "second": next(self._runs),
            }
            self._program.stdin.write(json.dumps(request).encode() + b"\n")
            self._program.stdin.flush()
            returncode = int(self._program.stdout.readline())
            return subprocess.CompletedProcess(arguments, returncode, out.read_text(), err.read_text())

    def __enter__(self) -> AtStep:
        return self

    def __exit__(self, *__: object) -> None:
        for pipe in (self._program.stdin, self._program.stdout):
            if pipe is not None:
                pipe.close()
        os.killpg(self._program.pid, signal.SIGKILL)
        self._program.wait()


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


def prepare(request: dict[str, Any]) -> None:
    """Patch journal and clock of this fork."""
    from agentmem_backup import clock, journal

    numbers = itertools.count(1)
    guard = threading.Lock()
    append, set_id = journal.Journal.append, clock.set_id

    def counting(self: journal.Journal, step: str, **facts: Any) -> None:
        append(self, step, **facts)
        with guard:
            number = next(numbers)
            with Path(request["trace"]).open("a") as file:
                file.write(" ".join(filter(None, (step, str(facts.get("component") or facts.get("store") or "")))) + "\n")
        if number == request["number"]:
            act(request["action"])

    def later(moment: datetime) -> str:
        return set_id(moment + timedelta(seconds=request["second"] - 3600))

    journal.Journal.append = counting  # type: ignore[method-assign]
    clock.set_id = later


def work(request: dict[str, Any]) -> int:
    """The command, in a fork."""
    from agentmem_backup import cli

    os.environ.clear()
    os.environ.update(request["environment"])
    for descriptor, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    prepare(request)
    try:
        return cli.main(request["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    """Read requests, one a line, and answer each with the exit status, negative for a signal."""
    for name in LIBRARIES:
        importlib.import_module(f"agentmem_backup.{name}")
    for name in ("httpx", "psycopg", "redis", "yaml", "zstandard", "isal.igzip"):
        importlib.import_module(name)
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = work(json.loads(line))
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
