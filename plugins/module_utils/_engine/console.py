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
from typing import Any, TextIO

from . import process
from .log import Log
from .settings import Settings

_WIDE = 70
"""Columns from which on a bar has room for bytes, speed and time; on a narrower terminal they would take lines of their own."""
_SIGNS = {"WARN": "⚠", "ERROR": "✗"}


class Console(Log):
    """Shows steps on `stream` and writes them to LOG_DIR/backup.log. Use it as a context manager."""

    def __init__(self, settings: Settings, *, stream: TextIO | None = None, quiet: bool = False, log: bool = True):
        """`quiet` shows nothing but warnings; `log` False writes no log file (verbs that only look)."""
        self._stream = stream or sys.stdout
        self._quiet = quiet
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        super().__init__(settings, write=log)
        self.attended = sys.stdin is not None and sys.stdin.isatty()
        if not quiet and self._stream.isatty():
            self._bars = _progress_bars()

    def _is_stream(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.fstat(self._stream.fileno()))
        except (OSError, ValueError):
            return False

    def _tell(self, level: str, text: str) -> str:
        text = super()._tell(level, text)
        if level in _SIGNS:
            self._say(f"{_SIGNS[level]} {text}", sys.stderr)
        elif level == "INFO" and not self._quiet:
            self._say(text, self._stream)
        return text

    def _say(self, text: str, stream: TextIO) -> None:
        try:
            if self._bars is not None:
                self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                stream.write(f"{text}\n")
                stream.flush()
        except OSError:
            # Nobody reads, or the disk is full that cron writes our lines to: that must not fail a backup. What waits in
            # the stream would fail its next flush as well.
            _silence(stream)

    def ask(self, question: str) -> str:
        """Ask a person at the terminal and return the answer, stripped; nothing where the input has ended."""
        with self._guard:
            self._end_bars()  # they would hide the question
        stream = sys.stderr if self._quiet else self._stream  # what is JSON stays JSON
        stream.write(question)
        stream.flush()
        process.wait_for_line(sys.stdin)
        return sys.stdin.readline().strip()

    def _end_bars(self) -> None:
        """Take the bars off the terminal; whatever moves next gets new ones."""
        if self._bars is not None and self._tasks:
            self._bars.stop()
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks.clear()

    def advance(self, component: str, done: int, total: int | None) -> None:
        if self._bars is None:
            return
        with self._guard:
            if component not in self._tasks:
                if not self._tasks:
                    self._bars.start()
                self._tasks[component] = self._bars.add_task(component, total=total)
            self._bars.update(self._tasks[component], completed=done, total=max(done, total) if total else None)

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._end_bars()
        super().__exit__()


def _silence(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def _progress_bars() -> Any:
    from rich.console import Console as Terminal
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    terminal = Terminal()
    figures = (
        [DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn()] if terminal.width >= _WIDE else [TaskProgressColumn()]
    )
    return Progress(TextColumn("{task.description:>10}"), BarColumn(), *figures, console=terminal, transient=True)
