# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command, run as its users run it: as a process of its own, against the throwaway stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support import warm
from tests.support.servers import Stores

BIN = Path(sys.executable).parent
COLD = (str(BIN / "agentmem-backup"),)
"""The command with Python's own start."""
QUIET = ("--set", "health_url=")
"""There is no application to ask in a test."""


def environment(stores: Stores, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that points the command at `stores`. Its output is buffered, as everybody has it."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**inherited, **stores.environment(), **(extra or {})}


def run(
    stores: Stores,
    *arguments: str,
    program: str | Sequence[str] = "agentmem-backup",
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run the command (or another program of ours) to its end; stdout and stderr are text.

    A `program` that is named runs in a warm process (tests/support/warm.py), one that is given as an argv is started.
    """
    if isinstance(program, str) and stdin is None:
        return warm.run([str(BIN / program), *arguments], environment(stores, env), timeout)
    argv = [str(BIN / program)] if isinstance(program, str) else list(program)
    feed: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(
        [*argv, *arguments], env=environment(stores, env), capture_output=True, text=True, timeout=timeout, check=False, **feed
    )


def good(stores: Stores, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it and insist on exit code 0."""
    done = run(stores, *arguments, **options)
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def create(stores: Stores, *arguments: str, **options: Any) -> dict[str, Any]:
    """Make a set; returns what --json says of it."""
    answer: dict[str, Any] = json.loads(good(stores, "create", "--json", *arguments, **options).stdout)
    return answer


def restore(stores: Stores, *arguments: str, **options: Any) -> dict[str, Any]:
    """Restore without being asked; returns what --json says."""
    done = good(stores, "restore", "--yes", "--json", *QUIET, *arguments, **options)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def manifest(stores: Stores, set_id: str) -> dict[str, Any]:
    """The manifest of a set."""
    content: dict[str, Any] = json.loads((stores.backup_dir / f"manifest_{set_id}.json").read_text())
    return content
