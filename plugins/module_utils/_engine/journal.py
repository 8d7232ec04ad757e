# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run is doing to the disk and to the stores, written down before and after each step.

A journal is a file of JSON lines, each flushed to the disk before the step it announces is taken. Whoever finds one
(the next run, under the lock) knows which files a killed run made and how far it came; nothing that no journal names
is ever removed. A torn last line is a step that was not yet taken.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from . import clock


class Journal:
    """An append-only journal at `path`, which is created (0600) or continued."""

    def __init__(self, path: Path):
        self.path = path
        new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._torn = ends_torn(self._descriptor)
        if new:
            sync_directory(path.parent)

    def append(self, step: str, **facts: Any) -> None:
        """Write the line for `step` and return once it is on the disk. Raises OSError."""
        line = json.dumps({"step": step, "time": clock.iso(clock.now()), **facts}, sort_keys=True)
        # A torn line must not swallow this one.
        start = b"\n" if self._torn else b""
        self._torn = True
        write_all(self._descriptor, start + line.encode() + b"\n")
        self._torn = False
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; the journal stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def ends_torn(descriptor: int) -> bool:
    """Whether the open file's last line lacks its end: a kill or a full disk cut it."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`. A disk that fills up takes a part without an error; only the next write raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the journal at `path`, oldest first; no journal is an empty one."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = []
    for line in content.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # torn: that step was never taken
        if isinstance(entry, dict) and isinstance(entry.get("step"), str):
            steps.append(entry)
    return steps


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (fsync(2): a file's own fsync does not cover its entry)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
