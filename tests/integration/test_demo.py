# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""script/demo on little data: its proofs, its table, and that nothing of it stays, whether it ended or was broken off."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import CHECKOUT, wait_until

pytestmark = pytest.mark.timeout(300)


def start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.demo", "--small"],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def directory_of(shown: str) -> Path:
    found = re.search(r"backing up .* to (/\S+)/backups\n", shown)
    assert found, shown
    return Path(found[1])


def processes(directory: Path) -> list[str]:
    """The command lines of all processes that have something to do with a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                place = str((entry / "cwd").readlink())
            except OSError:
                continue
            if str(directory) in f"{words} {place}":
                found.append(words)
    return found


def test_everything_comes_back_and_the_judge_is_awake() -> None:
    with start() as demo:
        shown, __ = demo.communicate(timeout=240)
    assert demo.returncode == 0, shown
    changed = re.findall(r"^    → NOT EQUAL: (.+)$", shown, re.MULTILINE)
    assert [text.split(":")[0] for text in changed] == ["PostgreSQL", "Redis", "Qdrant", "Configuration"], shown
    table = shown[shown.index("\nstore ") + 1 :].splitlines()
    assert table[0].split() == ["store", "size", "dump", "s", "restore", "s", "equal"]
    for line, store in zip(table[1:5], ("PostgreSQL", "Redis", "Qdrant", "configuration"), strict=True):
        assert re.fullmatch(rf"{store} +\d+\.\d MB +\d+\.\d +\d+\.\d  yes", line), line
    assert "✓ Everything came back." in table[6]
    directory = directory_of(shown)
    assert not directory.exists()
    assert processes(directory) == []


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_broken_off_it_leaves_nothing_behind(number: signal.Signals) -> None:
    with start() as demo:
        shown = ""
        assert demo.stdout
        for line in demo.stdout:
            shown += line
            if "preparing beside the live data" in line:
                break
        directory = directory_of(shown)
        assert processes(directory)
        if number == signal.SIGINT:
            os.killpg(demo.pid, number)  # as a terminal does at Ctrl-C
        else:
            demo.send_signal(number)
        rest, __ = demo.communicate(timeout=120)
    assert demo.returncode != 0
    assert "Traceback" not in shown + rest, rest
    wait_until(lambda: not processes(directory), 30, lambda: None)
    assert not directory.exists()
