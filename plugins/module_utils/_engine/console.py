# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run tells, shown to people: lines and progress bars on a terminal, plain lines elsewhere, everything in the log.

No secret that the settings know ever gets through, whatever a program or library has put into its message.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from . import clock
from .process import os_sentence
from .progress import Reporter
from .settings import MASK, Settings


class Console(Reporter):
    """Shows steps on `stream` and writes them to LOG_DIR/backup.log. Use it as a context manager."""

    def __init__(self, settings: Settings, *, stream: TextIO | None = None, quiet: bool = False, log: bool = True):
        """`quiet` shows nothing but warnings; `log` False writes no log file (verbs that only look)."""
        self._stream = stream or sys.stdout
        self._quiet = quiet
        self._secrets = sorted((one for one in settings.secrets() if len(one) > 3), key=len, reverse=True)
        self._guard = threading.Lock()
        self._log: TextIO | None = None
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        if log:
            self._open_log(Path(settings.log_dir) / "backup.log")
        if not quiet and self._stream.isatty():
            self._bars = _progress_bars()

    def _open_log(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as error:
            self._say(f"⚠ no log is written: {os_sentence(error, f'opening {path}')}", sys.stderr)
            return
        if _same_file(descriptor, self._stream):
            os.close(descriptor)  # the guide's timer appends our output to that very file
            return
        self._log = os.fdopen(descriptor, "w", encoding="utf-8")

    def masked(self, text: str) -> str:
        """`text` without any secret that the settings know."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text

    def _say(self, text: str, stream: TextIO) -> None:
        with contextlib.suppress(BrokenPipeError):
            if self._bars is not None:
                self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                stream.write(f"{text}\n")
                stream.flush()

    def _write(self, level: str, text: str) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full log disk must not fail a backup
                self._log.write(f"{clock.iso(clock.now())} {level} {text}\n")
                self._log.flush()

    def step(self, text: str) -> None:
        text = self.masked(text)
        with self._guard:
            self._write("INFO", text)
            if not self._quiet:
                self._say(text, self._stream)

    def warn(self, text: str) -> None:
        text = self.masked(text)
        with self._guard:
            self._write("WARN", text)
            self._say(f"⚠ {text}", sys.stderr)

    def error(self, text: str) -> None:
        """The sentence that a run ended with."""
        text = self.masked(text)
        with self._guard:
            self._write("ERROR", text)
            self._say(f"✗ {text}", sys.stderr)

    def ask(self, question: str) -> str:
        """Ask a person and return the answer, stripped; nothing where the input has ended. Bars would hide the question."""
        with self._guard:
            self._end_bars()
        try:
            return input(question).strip()
        except EOFError:
            return ""

    def _end_bars(self) -> None:
        """Take the bars off the terminal; whatever moves next gets new ones."""
        if self._bars is not None and self._tasks:
            self._bars.stop()
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks.clear()

    def trace(self, error: BaseException) -> None:
        """Where an unexpected error came from: for the log alone, a person gets the sentence."""
        with self._guard:
            self._write("TRACE", self.masked("".join(traceback.format_exception(error))))

    def advance(self, component: str, done: int, total: int | None) -> None:
        if self._bars is None:
            return
        with self._guard:
            if component not in self._tasks:
                if not self._tasks:
                    self._bars.start()
                self._tasks[component] = self._bars.add_task(component, total=total)
            self._bars.update(self._tasks[component], completed=done, total=max(done, total) if total else None)

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *__: object) -> None:
        with self._guard:
            self._end_bars()
        if self._log is not None:
            self._log.close()


def _same_file(descriptor: int, stream: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.fstat(stream.fileno()))
    except (OSError, ValueError):
        return False


def _progress_bars() -> Any:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        transient=True,
    )
