# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of sets, where nothing but a directory is needed. (How sets come and go is tried in tests/faults.)"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from agentmem_backup import backup_set, clock
from agentmem_backup.errors import UsageError

MOMENT = datetime(2025, 1, 3, 12, tzinfo=clock.UTC)


@pytest.mark.parametrize("there", ["manifest_20250103_120000.json", "db_20250103_120000.dump.gz", ".staging/20250103_120000/"])
def test_a_second_set_of_one_second_gets_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    moments = iter([MOMENT, MOMENT, MOMENT + timedelta(seconds=1)])
    monkeypatch.setattr(clock, "now", lambda: next(moments))
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).mkdir() if there.endswith("/") else (tmp_path / there).touch()
    assert backup_set.new_id(tmp_path) == "20250103_120001"


def test_a_set_is_never_begun_over_another(tmp_path: Path) -> None:
    (tmp_path / "redis_20250103_120000.rdb").write_bytes(b"kept")
    with pytest.raises(UsageError, match="there is a set 20250103_120000 in"):
        backup_set.Staging(tmp_path, "20250103_120000")
    assert (tmp_path / "redis_20250103_120000.rdb").read_bytes() == b"kept"
    assert not (tmp_path / ".staging").exists()
