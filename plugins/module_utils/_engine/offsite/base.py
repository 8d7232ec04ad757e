# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a verb may ask of a place that sets are copied to: list, send, read back, fetch, remove. Names are those of files.

A `Remote` sees one flat folder at its target, that of one host (and instance). It knows nothing of sets. What a program
or a store says when it fails becomes one sentence here (`explained`): what is wrong, where, what to do.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BackupError, ToolError, one_line
from ..targets import Target

Complaints = tuple[tuple[str, str], ...]
"""What a failing program says, as a pattern, and the sentence for it; {place} and {target} are filled in."""


class Unusable(BackupError):
    """The target cannot be used now: not reached, not let in, full. Nothing more is tried there in this run."""


@dataclass(frozen=True)
class Place:
    """Whose folder at a target: `host`, and `instance` where it is not the default one."""

    host: str
    instance: str = "default"

    @property
    def folder(self) -> str:
        """The last parts of every path at a target."""
        return self.host if self.instance == "default" else f"{self.host}/{self.instance}"

    def __str__(self) -> str:
        return self.folder


class Remote(ABC):
    """One place's folder at one target. `timeout_s` is how long to wait for an answer, `rate` bytes a second (0: no limit)."""

    complaints: Complaints = ()

    def __init__(self, target: Target, place: Place, timeout_s: float, rate: int):
        self.target = target
        self.place = place
        self.timeout_s = timeout_s
        self.rate = rate
        self.remarks: list[str] = []
        """What somebody should know of this place, once it has been listed."""

    @property
    @abstractmethod
    def where(self) -> str:
        """The folder as a person writes it; no secret in it."""

    @abstractmethod
    def listing(self) -> dict[str, int]:
        """Name → bytes of every file there; nothing where the folder does not exist yet. Raises Unusable."""

    @abstractmethod
    def hosts(self) -> list[str]:
        """The folders beside this one: which hosts have sent something. Raises Unusable."""

    @abstractmethod
    def send(self, directory: Path, names: Iterable[str]) -> None:
        """Copy files there, replacing what bears their names. Raises Unusable.

        One that did not get through is not there, or shorter than it must be; a manifest (.json) is never there in part.
        """

    @abstractmethod
    def differing(self, directory: Path, digests: Mapping[str, str]) -> list[str]:
        """Have every byte read at the far end; gives the names whose content has not the SHA-256 that `digests` says.

        What `directory` has of these files is known to be right. Raises Unusable.
        """

    @abstractmethod
    def fetch(self, name: str, path: Path) -> None:
        """Copy one file from there to `path`. Raises Unusable."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Remove files there. Raises Unusable."""

    def explained(self, error: ToolError) -> BackupError:
        """The sentence for what a program said when it failed."""
        said = error.stderr
        for pattern, sentence in self.complaints:
            if re.search(pattern, said, re.IGNORECASE):
                return Unusable(sentence.format(place=self.where, target=self.target.name, program=error.tool))
        return Unusable(f"{self.where}: {error.tool} failed: {one_line(last_words(said) or error)}")


def last_words(said: str) -> str:
    """The last line that a program wrote, without the time and the level that rclone puts before it."""
    lines = [line for line in said.splitlines() if line.strip()]
    return (
        re.sub(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d (?:ERROR|NOTICE|CRITICAL)\s*: |^(?:Failed to \w+: )", "", lines[-1])
        if lines
        else ""
    )
