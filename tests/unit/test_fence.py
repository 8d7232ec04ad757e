# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Units are stopped, and every one is started again whatever else fails; systemctl is a program of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from agentmem_backup import fence
from agentmem_backup.errors import BackupError
from agentmem_backup.progress import Collecting
from agentmem_backup.settings import Settings


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes down what it is told, and cannot start the unit `broken`; returns the file that it writes."""
    told, program = tmp_path / "told", tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >>{told}\n[ "$*" != "start broken" ]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return told


def settings(tmp_path: Path) -> Settings:
    made = Settings(services=["web", "broken"])
    made.hooks.release = ["touch", str(tmp_path / "released")]
    return made


def test_a_unit_that_does_not_start_keeps_no_other_down(systemctl: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="systemctl"), fence.closed(settings(tmp_path), Collecting(), {}):
        pass
    assert systemctl.read_text().splitlines() == ["stop web", "stop broken", "start broken", "start web"]
    assert (tmp_path / "released").exists()


def test_it_does_not_hide_why_the_restore_failed(systemctl: Path, tmp_path: Path) -> None:
    reporter = Collecting()
    with pytest.raises(BackupError, match="the switch failed"), fence.closed(settings(tmp_path), reporter, {}):
        raise BackupError("the switch failed")
    assert "start web" in systemctl.read_text()
    assert any("systemctl" in warning for warning in reporter.warnings)
