# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small disks of a test's own: one that fills up, one that the kernel has made read-only."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk(path: Path, megabytes: float) -> Iterator[None]:
    """A file system of so many megabytes, mounted on `path` for the length of the block."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k,mode=0700", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def read_only(path: Path) -> None:
    """What the kernel does to a disk that is going."""
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)


def can_mount(path: Path) -> bool:
    """Whether this machine lets us mount a small disk; `path` is made for the try."""
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(path)], capture_output=True, check=False)
    if done.returncode == 0:
        subprocess.run(["umount", str(path)], check=True)
    return done.returncode == 0


def fill(path: Path) -> None:
    """Write to the new file `path` until its file system has no room left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
