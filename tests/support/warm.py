# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our programs, run again and again without starting Python anew, which takes longer than most of the runs.

`Warm` starts this file as a program, which imports the engine once and forks for every run. A fork is a process with an
environment, a session and a working directory of its own, and with the program's own `main`: it can be killed like any
other. That the programs start cold as well is seen where the documentation's commands are run (tests/docs), and by the demo.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.metadata
import itertools
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.servers import CHECKOUT

LIBRARIES = ("httpx", "psycopg", "redis", "yaml", "zstandard", "isal.igzip")
AT_THE_START = ("PYTHON", "LC_", "LANG", "LD_", "TZ", "OPENSSL", "MALLOC_", "GLIBC_")
"""How variables begin that a program reads while it starts."""
_BUFFERED = "PYTHONUNBUFFERED"
_OURS = {
    one.name: one for one in importlib.metadata.entry_points(group="console_scripts") if one.module.startswith("agentmem_backup.")
}
"""What pip makes programs of."""


def _suits(program: str, environment: Mapping[str, str]) -> bool:
    """Whether this is a program of ours that starts in this environment as the warm one did."""

    def read(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in variables.items() if name.startswith(AT_THE_START) and name != _BUFFERED}

    return Path(program).name in _OURS and read(environment) == read(os.environ)


class Warm:
    """The warm program: one run at a time."""

    def __init__(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm"],
            bufsize=0,
            cwd=CHECKOUT,
            env={name: value for name, value in os.environ.items() if name != _BUFFERED},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def run(
        self, argv: Sequence[str], environment: Mapping[str, str], timeout: float = 600, before: str = "", **facts: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of ours to its end. `before` names a function (module:name) that is called with `facts` in the fork."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = {
                "argv": list(argv), "environment": dict(environment), "directory": str(Path.cwd()),
                "out": str(out), "err": str(err), "before": before, "facts": facts,
            }  # fmt: skip
            self._program.stdin.write(json.dumps(request).encode() + b"\n")
            process = int(self._program.stdout.readline())
            late = True
            try:
                late = not select.select([self._program.stdout], [], [], timeout)[0]
            finally:  # also where a test's own limit ends the waiting: the next answer must be the next run's
                if late:
                    os.kill(process, signal.SIGKILL)
                code = int(self._program.stdout.readline())
            if late:
                raise subprocess.TimeoutExpired(list(argv), timeout, out.read_bytes(), err.read_bytes())
            return subprocess.CompletedProcess(list(argv), code, out.read_text(), err.read_text())

    def close(self) -> None:
        for pipe in (self._program.stdin, self._program.stdout):
            if pipe is not None:
                pipe.close()
        self._program.kill()
        self._program.wait()


_idle: list[Warm] = []
_guard = threading.Lock()


def run(argv: Sequence[str], environment: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, warm where that makes no difference; stdout and stderr are text, nothing is on stdin."""
    if not _suits(argv[0], environment):
        return subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
    with _guard:
        program = _idle.pop() if _idle else Warm()
    try:
        done = program.run(argv, environment, timeout)
    except BaseException:
        program.close()
        raise
    with _guard:
        _idle.append(program)
    return done


@atexit.register
def _close() -> None:
    while _idle:
        _idle.pop().close()


def _work(request: dict[str, Any], main: Callable[[], Any]) -> int:
    """A program, in a fork."""
    os.setsid()
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for descriptor, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = request["argv"]
    if request["before"]:
        module, name = request["before"].split(":")
        getattr(importlib.import_module(module), name)(**request["facts"])
    try:
        code = main()
    except SystemExit as done:
        code = done.code
    for thread in threading.enumerate():  # as Python does at its end
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    return code if isinstance(code, int) else 0 if code is None else 1


def main() -> None:
    """Read requests, one a line, and answer each with the process and then its exit status, negative for a signal."""
    package = importlib.import_module("agentmem_backup")
    engine = (one.name for one in pkgutil.walk_packages(package.__path__, "agentmem_backup.") if "__main__" not in one.name)
    for name in itertools.chain(LIBRARIES, engine):
        importlib.import_module(name)
    known = {name: one.load() for name, one in _OURS.items()}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _work(request, known[Path(request["argv"][0]).name])
            except BaseException:
                traceback.print_exc()
            finally:
                for stream in (sys.stdout, sys.stderr):
                    if not stream.closed:
                        stream.flush()
                os._exit(code)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        status = os.waitpid(child, 0)[1]
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
