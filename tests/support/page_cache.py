# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel remembers of a file, and whether it can do without."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


def remembers(path: Path, at: int = 0) -> bool:
    """Whether the page cache holds the file's byte at `at` (mincore(2), which does not bring it there by asking)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as space:
        first = ctypes.c_char.from_buffer(space, at - at % mmap.PAGESIZE)
        answer = ctypes.c_ubyte()
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(first)), 1, ctypes.byref(answer))
        del first  # or the mapping could not be closed
    assert not failed
    return bool(answer.value & 1)


def can_be_passed(path: Path) -> bool:
    """Whether an existing file can be read and written past the page cache, and the kernel forgets it when it is told to.

    A file system in memory may take O_DIRECT, too (tmpfs, since Linux 6.6), and has nothing behind its cache.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return False
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return not remembers(path)
