# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file of a set, cut anywhere and with any bit turned: verify says so. Positions are drawn by a fixed seed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from agentmem_backup import backup_set, create, verify
from agentmem_backup.errors import VerificationError
from agentmem_backup.pipeline import Reader
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


@pytest.mark.parametrize("component", ["postgresql", "redis", "qdrant", "config"])
def test_a_disk_that_gives_back_something_else_makes_no_set(
    stores: Stores, component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(load(environment=stores.environment()), components=[component])
    read, turned = Reader._next, []

    def turn(self: Reader, descriptor: int, buffer: memoryview) -> int:
        size = read(self, descriptor, buffer)
        if size and not turned:
            buffer[size // 2] ^= 1
            turned.append(self.path.name)
        return size

    monkeypatch.setattr(Reader, "_next", turn)
    with pytest.raises(VerificationError, match=r"what was written cannot be trusted|does not read back as it was written"):
        create.create(settings, Reporter())
    assert len(turned) == 1
    assert not [path for path in stores.backup_dir.iterdir() if not path.name.startswith(".")]
    assert not [*(stores.backup_dir / ".staging").iterdir()]
    assert create.create(settings, Reporter()).verdict == "verified"
