# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run tells while it works: lines, warnings and how far each component has come.

The engine only ever talks to a `Reporter`. The command shows it on a terminal and in the log file, a module keeps the
lines for its result, and the default says nothing.
"""

from __future__ import annotations


class Reporter:
    """Receives what a run tells; this one forgets it. Methods are called from several threads at once."""

    attended = False
    """Whether a person sits at a terminal and sees what is told."""

    def step(self, text: str) -> None:
        """A step was taken: one line, no secret in it."""

    def warn(self, text: str) -> None:
        """Something the operator should know although the run goes on."""

    def advance(self, component: str, done: int, total: int | None) -> None:
        """`component` has moved `done` bytes so far, of about `total` (None where nobody knows)."""


class Collecting(Reporter):
    """Keeps lines and warnings and passes everything on."""

    def __init__(self, onward: Reporter | None = None):
        self.steps: list[str] = []
        self.warnings: list[str] = []
        self._onward = onward or Reporter()
        self.attended = self._onward.attended

    def step(self, text: str) -> None:
        self.steps.append(text)
        self._onward.step(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self._onward.warn(text)

    def advance(self, component: str, done: int, total: int | None) -> None:
        self._onward.advance(component, done, total)
