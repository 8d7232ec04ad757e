# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file of a set, cut anywhere and with any bit turned: verify says so. Positions are drawn by a fixed seed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from agentmem_backup import backup_set, verify
from agentmem_backup.progress import Reporter
from agentmem_backup.settings import load

from tests.support import command
from tests.support.servers import Stores

pytestmark = pytest.mark.timeout(600)
DRAWS = 25
PARTS = ("db_*.gz", "redis_*.rdb", "qdrant_*.gz", "config_*.gz", "manifest_*.json", "manifest_*.txt")


def verdict(folder: Path, depth: str) -> str:
    settings = load(environment={"BACKUP_DIR": str(folder)})
    return verify.examine_set(settings, Reporter(), backup_set.find(folder, "latest"), depth=depth).verdict


def test_any_cut_and_any_bit(stores: Stores) -> None:
    command.create(stores)
    folder = stores.backup_dir
    assert verdict(folder, "quick") == verdict(folder, "full") == "verified"
    rng = random.Random(3)
    for part in PARTS:
        path = next(folder.glob(part))
        content = path.read_bytes()
        cuts = {0, 1, len(content) - 1, *(rng.randrange(len(content)) for __ in range(DRAWS))}
        flips = {0, len(content) * 8 - 1, *(rng.randrange(len(content) * 8) for __ in range(DRAWS))}
        damaged = [content[:cut] for cut in sorted(cuts)]
        for bit in sorted(flips):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            damaged.append(bytes(changed))
        damaged += [content + b"\0", content + content]
        for number, one in enumerate(damaged):
            path.write_bytes(one)
            assert verdict(folder, "full" if number % 5 == 0 else "quick") == "failed", f"{path.name}, damage number {number}"
        path.write_bytes(content)
    assert verdict(folder, "full") == "verified"
