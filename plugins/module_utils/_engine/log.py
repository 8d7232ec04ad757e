# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run tells, in LOG_DIR/backup.log, whichever door it came in by.

No secret that the settings know ever gets through, whatever a program or library has put into its message.
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from pathlib import Path
from typing import TextIO, TypeVar

from . import clock
from .errors import printable
from .process import os_sentence
from .progress import Collecting
from .settings import MASK, Settings

Opened = TypeVar("Opened", bound="Log")


class Log(Collecting):
    """Writes steps, warnings and errors to the log file and keeps them. Use it as a context manager."""

    def __init__(self, settings: Settings, *, write: bool = True):
        """`write` False writes no file (verbs that only look)."""
        super().__init__()
        self._secrets = sorted((one for one in settings.secrets() if len(one) > 3), key=len, reverse=True)
        self._guard = threading.Lock()
        self._log: TextIO | None = None
        if write:
            self._open_log(Path(settings.log_dir) / "backup.log")

    def _open_log(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as error:
            self.warn(f"no log is written: {os_sentence(error, f'opening {path}')}")
            return
        if self._is_stream(descriptor):
            os.close(descriptor)  # the guide's timer appends our output to that very file
            return
        self._log = os.fdopen(descriptor, "w", encoding="utf-8")

    def _is_stream(self, descriptor: int) -> bool:
        """Whether what is opened is where we write our lines anyhow."""
        return False

    def masked(self, text: str) -> str:
        """`text` without any secret that the settings know."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text

    def _tell(self, level: str, text: str) -> str:
        """Write a line to the log; returns it masked. Call it under the guard."""
        text = self.masked(text)
        if level != "TRACE":
            text = printable(text)  # a table's name may hold a line of its own
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full log disk must not fail a backup
                self._log.write(f"{clock.iso(clock.now())} {level} {text}\n")
                self._log.flush()
        return text

    def step(self, text: str) -> None:
        with self._guard:
            super().step(self._tell("INFO", text))

    def warn(self, text: str) -> None:
        with self._guard:
            super().warn(self._tell("WARN", text))

    def error(self, text: str) -> None:
        """The sentence that a run ended with."""
        with self._guard:
            self._tell("ERROR", text)

    def trace(self, error: BaseException) -> None:
        """Where an unexpected error came from: for the log alone, a person gets the sentence."""
        with self._guard:
            self._tell("TRACE", "".join(traceback.format_exception(error)))

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            with contextlib.suppress(OSError):  # what could not be written is tried again here
                self._log.close()
            self._log = None
