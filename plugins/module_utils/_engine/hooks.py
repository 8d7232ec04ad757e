# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator's own commands around a run: before, after, error, fence, release.

A hook is a list of words, run without a shell. The run's facts are in its environment as AGENTMEM_… variables; the
stores' passwords are not.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import process
from .errors import BackupError, ToolError
from .progress import Reporter
from .settings import Settings, walk


def run(settings: Settings, name: str, reporter: Reporter, facts: Mapping[str, object]) -> bool:
    """Run the hook `name` if there is one; returns whether there was. Raises BackupError when it fails."""
    words: list[str] = getattr(settings.hooks, name)
    if not words:
        return False
    reporter.step(f"hook {name}: {words[0]}")
    environment = {f"AGENTMEM_{key.upper()}": str(value) for key, value in facts.items()}
    # A hook has no business with the stores' passwords, which may stand in our own environment.
    hidden = {
        option.metadata["env"]: "" for __, option, __ in walk(settings) if option.metadata["secret"] and option.metadata["env"]
    }
    try:
        process.run(words, env={**hidden, **environment, "AGENTMEM_HOOK": name}, timeout_s=settings.hooks.timeout_s)
    except ToolError as error:
        raise BackupError(f"the hook {name} failed: {error}") from error
    return True
