# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guide's three scripts: `backup.sh`, `restore.sh` and `verify-backup.sh`, with the guide's arguments.

Each translates what it is given into the command's own words and calls it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from .cli import COMPONENTS, main

_VARIABLES = """\
settings by environment (and more in /etc/agentmem-backup/config.yml; see: agentmem-backup config --show):
  BACKUP_DIR (/backups/agentmem)   BACKUP_RETENTION_DAYS (30)   COMPRESSION_LEVEL (6)   LOG_DIR (/var/log/agentmem)
  DB_HOST DB_PORT DB_NAME DB_USER DB_PASSWORD
  REDIS_HOST REDIS_PORT REDIS_PASSWORD REDIS_DATA_DIR
  QDRANT_HOST QDRANT_PORT QDRANT_DATA_DIR QDRANT_API_KEY
  CONFIG_DIR (/opt/agentmem/config)   NOTIFY_EMAIL NOTIFY_SLACK_WEBHOOK
"""


class _Parser(argparse.ArgumentParser):
    def __init__(self, prog: str, description: str):
        super().__init__(
            prog=prog, description=description, epilog=_VARIABLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        """One sentence instead of the usage and a sentence."""
        self.exit(2, f"{self.prog}: {message} (see: {self.prog} --help)\n")


def backup_arguments(argv: Sequence[str]) -> list[str]:
    """backup.sh's arguments in the command's words."""
    parser = _Parser("backup.sh", "Make a full backup of PostgreSQL, Redis, Qdrant and the configuration, and verify it.")
    parser.add_argument("--component", action="append", choices=COMPONENTS, default=[], help="only this one, repeatable")
    given = parser.parse_args(argv)
    return ["create", *(word for name in given.component for word in ("--component", name))]


def verify_arguments(argv: Sequence[str]) -> list[str]:
    """verify-backup.sh's arguments in the command's words."""
    parser = _Parser("verify-backup.sh", "Check a backup set, or one backup file.")
    parser.add_argument("what", metavar="ID|FILE", help="a set's ID such as 20250103_120000, latest, or a file")
    parser.add_argument("--dir", metavar="PATH", help="backup directory (default: BACKUP_DIR)")
    given = parser.parse_args(argv)
    return ["verify", given.what, *(["--backup-dir", given.dir] if given.dir else [])]


def restore_arguments(argv: Sequence[str]) -> list[str]:
    """restore.sh's arguments in the command's words."""
    parser = _Parser("restore.sh", "Restore a whole backup set, or named files in any combination.")
    parser.add_argument("--all", metavar="ID", help="restore the whole set")
    parser.add_argument("--dir", metavar="PATH", help="backup directory (default: BACKUP_DIR)")
    for name, what in (("db", "PostgreSQL"), ("redis", "Redis"), ("qdrant", "Qdrant"), ("config", "the configuration")):
        parser.add_argument(f"--{name}", metavar="FILE", help=f"restore {what} from this file")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, touch nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    given = parser.parse_args(argv)
    words = ["restore"]
    if given.all:
        words.append(given.all)
    for option, value in (("--db", given.db), ("--redis", given.redis), ("--qdrant", given.qdrant)):
        words += [option, value] if value else []
    words += ["--config-archive", given.config] if given.config else []
    if len(words) == 1:
        parser.error("say what to restore: --all ID, or --db, --redis, --qdrant, --config FILE")
    words += ["--backup-dir", given.dir] if given.dir else []
    return [*words, *(["--dry-run"] if given.dry_run else []), *(["--yes"] if given.yes else [])]


def backup() -> int:
    """Entry point of backup.sh."""
    return main(backup_arguments(sys.argv[1:]))


def restore() -> int:
    """Entry point of restore.sh."""
    return main(restore_arguments(sys.argv[1:]))


def verify() -> int:
    """Entry point of verify-backup.sh."""
    return main(verify_arguments(sys.argv[1:]))
