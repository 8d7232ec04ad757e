# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a killed run had written down is found again, whole lines only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentmem_backup import journal
from agentmem_backup.journal import Journal


def names(path: Path) -> list[str]:
    return [step["step"] for step in journal.read(path)]


def test_steps_come_back_with_their_facts_in_order(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    log = Journal(path)
    log.append("make", file="größe\n'x'.dump", number=3)
    log.append("done")
    log.close()
    log.close()
    first, second = journal.read(path)
    assert (first["step"], first["file"], first["number"]) == ("make", "größe\n'x'.dump", 3)
    assert second["step"] == "done"
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert journal.read(tmp_path / "gone") == []


def test_names_that_are_no_text_come_back_as_they_were(tmp_path: Path) -> None:
    log = Journal(tmp_path / "journal")
    name = os.fsdecode(b"\xff\xe4.conf")
    log.append("make", file=name)
    [step] = journal.read(tmp_path / "journal")
    assert os.fsencode(step["file"]) == b"\xff\xe4.conf"


def test_a_torn_last_line_was_never_taken_wherever_it_tore(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    log = Journal(path)
    log.append("first", file="a")
    whole = path.stat().st_size
    log.append("second", file="b")
    content = path.read_bytes()
    for length in range(whole, len(content)):
        path.write_bytes(content[:length])
        # The line's end apart: then all of it is there.
        assert names(path) == (["first", "second"] if length == len(content) - 1 else ["first"])


def test_a_journal_is_continued_after_a_torn_line(tmp_path: Path) -> None:
    """What is appended next must not become the rest of the torn line."""
    path = tmp_path / "journal"
    log = Journal(path)
    log.append("first")
    log.append("second")
    log.close()
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    log = Journal(path)
    log.append("third")
    assert names(path) == ["first", "third"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(directory)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no mount may be made here")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_step_that_did_not_fit_on_the_disk_is_an_error(small_disk: Path) -> None:
    """A short write is no error to the kernel; to whoever goes on to take the step it is."""
    path = small_disk / "journal"
    log = Journal(path)
    taken = []
    with pytest.raises(OSError, match="No space left"):
        for number in range(1000):
            log.append(f"step {number}", filling="x" * 500)
            taken.append(f"step {number}")
    assert taken
    assert names(path) == taken
    (small_disk / "journal").write_bytes(path.read_bytes()[:4000])  # room again
    log.append("last")
    assert names(path)[-1] == "last"


def test_lines_that_are_no_steps_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'[1]\n"x"\n{"no": "step"}\n{"step": 5}\n\n\xff\n{"step": "good"}\n')
    assert names(path) == ["good"]
