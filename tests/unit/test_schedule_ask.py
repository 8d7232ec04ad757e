# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role schedule asks of a host, in the shell's words: files/ask.sh."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ASK = Path(__file__).resolve().parents[2] / "roles" / "schedule" / "files" / "ask.sh"


def ask(*words: str) -> subprocess.CompletedProcess[str]:
    """Call one of its functions."""
    command = ["sh", "-c", f'{ASK.read_text()}\n"$@"', "sh", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def answers(*words: str) -> list[str]:
    done = ask(*words)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_units_are_told_apart_by_the_mark_and_links_are_none(tmp_path: Path) -> None:
    marked, other = tmp_path / "agentmem-backup-verify.service", tmp_path / "agentmem-backup.timer"
    marked.write_text("# made by [x]\n[Unit]\n")
    other.write_text("[Timer]\n")
    (tmp_path / "agentmem-backup-mine.timer").symlink_to(other)
    (tmp_path / "agentmem-backup.timer.d").mkdir()
    assert answers("ours", "# made by [x]", str(tmp_path)) == [f"ours {marked}"]
    assert answers("ours", "# made by x", str(tmp_path)) == []
    assert answers("named", str(tmp_path), "/not/there") == [f"named {other}"]


def test_a_second_definition_is_found_also_where_some_places_are_missing(tmp_path: Path) -> None:
    (tmp_path / "a crontab").write_text("0 2 * * * root backup.sh\n")
    assert answers("second", "backup[.]sh", "/not/there", str(tmp_path)) == [f"second {tmp_path}/a crontab"]


@pytest.mark.parametrize(("code", "answer"), [(0, (0, "job verify\n")), (2, (0, "")), (1, (1, "")), (127, (1, ""))])
def test_a_job_is_known_or_not_or_the_engine_is_broken(tmp_path: Path, code: int, answer: tuple[int, str]) -> None:
    engine = tmp_path / "engine"
    engine.write_text(f'#!/bin/sh\n[ "$2" = --help ] && exit {code}\n')
    engine.chmod(0o755)
    done = ask("knows", "verify", str(engine), "verify")
    assert (done.returncode, done.stdout) == answer


def test_settings_are_one_line_whatever_is_in_them(tmp_path: Path) -> None:
    told = {"log_dir": {"value": 'a "b"\\n\n'}}
    file = tmp_path / "told.json"
    file.write_text(json.dumps(told, indent=1) + "\n")
    [line] = answers("settings", "blue", "cat", str(file))
    assert line.startswith("settings blue ") and json.loads(line.partition(" blue ")[2]) == told
    assert ask("settings", "blue", "cat", "/not/there").returncode == 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's own tools")
@pytest.mark.parametrize(
    ("calendar", "answer"),
    [
        ("Sun *-*-* 03:00", []),
        ("2020-01-01", ["never unit"]),
        ("daily at two", ["unknown unit"]),
        ("-x", ["unknown unit"]),
    ],
)
def test_a_calendar_that_does_not_come_is_told(calendar: str, answer: list[str]) -> None:
    assert answers("calendar", "unit", calendar) == answer
