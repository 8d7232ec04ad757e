# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, as exceptions whose text is one sentence: what is wrong, where, what to do.

Every failure that a user can meet is a `BackupError`; its `exit_code` is the command's (design: 0 done, 1 failed,
2 bad usage or input, 3 verification failed, 75 another run holds the lock).
"""

from __future__ import annotations


class BackupError(Exception):
    """A run failed for a reason that can be said in a sentence."""

    exit_code = 1


class UsageError(BackupError):
    """The request itself cannot be carried out: unknown set, malformed option, contradictory settings."""

    exit_code = 2


class VerificationError(BackupError):
    """A backup is not what its manifest says, or restored data is not what was backed up."""

    exit_code = 3


class LockedError(BackupError):
    """Another run works in this backup directory (75 is EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


class ToolError(BackupError):
    """A program that we started failed; carries its name, exit status and the end of what it said.

    `returncode` is negative for a signal, as in `subprocess`.
    """

    def __init__(self, message: str, *, tool: str, returncode: int, stderr: str):
        super().__init__(message)
        self.tool = tool
        self.returncode = returncode
        self.stderr = stderr


class Cancelled(BackupError):
    """The run was asked to stop (SIGTERM, SIGINT, or another component failed)."""


def one_line(text: object, limit: int = 400) -> str:
    """Fold whatever a program or library said into one line of at most `limit` characters."""
    folded = " ".join(str(text).split())
    return folded if len(folded) <= limit else folded[: limit - 1] + "…"


def printable(text: str) -> str:
    """`text` with what would move a terminal's cursor, break a log's line or hide a name written as an escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
