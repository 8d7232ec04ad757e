# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel remembers of a file, and whether its file system can do without."""

from __future__ import annotations

import os
from pathlib import Path


def remembers(path: Path, at: int = 0) -> bool:
    """Whether the kernel could give the file's bytes from `at` without asking the disk (preadv2(2), RWF_NOWAIT)."""
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(4096)], at, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            return False


def can_be_passed(path: Path) -> bool:
    """Whether the file system of an existing file can be read and written past the page cache."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True
