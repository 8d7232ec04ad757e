# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever changes, removes or adds a line of the audit log is found out; a full disk or a kill breaks nothing."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agentmem_backup import audit

LINES = 6


@pytest.fixture
def log(tmp_path: Path) -> Path:
    for number in range(1, LINES + 1):
        audit.append(tmp_path, "create", "done", set=f"20250103_12000{number}", note="größe\nzwei")
    assert audit.check(tmp_path) == []
    return audit.paths(tmp_path)[0]


def lines_of(log: Path) -> list[bytes]:
    return log.read_bytes().splitlines(keepends=True)


def base(log: Path) -> Path:
    return log.parent.parent


def test_a_line_tells_who_did_what_and_how_it_ended(tmp_path: Path) -> None:
    head = audit.append(tmp_path, "restore", "failed", set="20250103_120000")
    log, __ = audit.paths(tmp_path)
    [line] = lines_of(log)
    entry = json.loads(line)
    assert (entry["seq"], entry["verb"], entry["result"], entry["set"]) == (1, "restore", "failed", "20250103_120000")
    assert entry["previous"] == audit.NOTHING
    assert entry["user"]
    assert entry["host"]
    assert audit.head(tmp_path) == head == {"seq": 1, "digest": audit._digest(line.rstrip(b"\n"))}


def test_nothing_recorded_yet_is_whole(tmp_path: Path) -> None:
    assert audit.check(tmp_path) == []
    assert audit.head(tmp_path) == {"seq": 0, "digest": audit.NOTHING}


def test_the_log_is_private(log: Path) -> None:
    for path in audit.paths(base(log)):
        assert path.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "changed": lambda lines: [*lines[:2], lines[2].replace(b"done", b"lost"), *lines[3:]],
    "last changed": lambda lines: [*lines[:-1], lines[-1].replace(b"done", b"lost")],
    "first changed": lambda lines: [lines[0].replace(b"done", b"lost"), *lines[1:]],
    "missing": lambda lines: [*lines[:2], *lines[3:]],
    "first missing": lambda lines: lines[1:],
    "last missing": lambda lines: lines[:-1],
    "cut": lambda lines: [*lines[:-1], lines[-1][:40]],
    "cut in the middle": lambda lines: [*lines[:2], lines[2][:40] + b"\n", *lines[3:]],
    "added": lambda lines: [*lines[:2], lines[2], *lines[2:]],
    "added at the end": lambda lines: [*lines, lines[-1]],
    "exchanged": lambda lines: [lines[1], lines[0], *lines[2:]],
    "emptied": lambda lines: [],
    "noise": lambda lines: [*lines, b"\xff\xfe\n"],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_found(log: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    before = lines_of(log)
    log.write_bytes(b"".join(change(before)))
    assert log.read_bytes() != b"".join(before)
    faults = audit.check(base(log))
    assert faults
    assert all(str(log) in fault for fault in faults)


def test_every_turned_bit_is_found(log: Path) -> None:
    content = log.read_bytes()
    for place in range(len(content)):
        turned = bytearray(content)
        turned[place] ^= 1 << place % 8
        log.write_bytes(turned)
        assert audit.check(base(log)), f"byte {place}: {content[place : place + 1]!r} became {turned[place : place + 1]!r}"


def rewritten(log: Path, keep: int) -> None:
    """What somebody does who knows the format: a shorter history that is a chain in itself, with a head that fits."""
    kept = lines_of(log)[:keep]
    log.unlink()
    audit.paths(base(log))[1].unlink()
    for line in kept:
        entry = json.loads(line)
        audit.append(base(log), entry["verb"], "forged")


def test_a_history_written_anew_is_found_by_the_manifests_heads(log: Path) -> None:
    heads = [("manifest_20250103_120003.json", audit.head(base(log)))]
    assert audit.check(base(log), heads) == []
    rewritten(log, LINES)
    assert audit.check(base(log)) == []
    assert any("manifest_20250103_120003.json" in fault and "was changed" in fault for fault in audit.check(base(log), heads))
    rewritten(log, 2)
    assert any("is missing from" in fault for fault in audit.check(base(log), heads))


def test_a_log_that_is_gone_is_found_by_its_head_and_by_a_manifest(log: Path) -> None:
    heads = [("manifest_x.json", audit.head(base(log)))]
    log.unlink()
    assert any("is missing" in fault for fault in audit.check(base(log)))
    audit.paths(base(log))[1].unlink()
    assert any("manifest_x.json" in fault for fault in audit.check(base(log), heads))


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"seq": 6', b'{"seq": "x", "digest": 1}', b"[]"])
def test_a_head_that_was_cut_or_removed_is_found(log: Path, content: bytes | None) -> None:
    """Without it, lines cut from the end would not be missed."""
    head = audit.paths(base(log))[1]
    head.unlink() if content is None else head.write_bytes(content)
    assert any(str(head) in fault for fault in audit.check(base(log)))
    audit.append(base(log), "create", "done")
    assert audit.check(base(log)) == []


def test_a_run_killed_between_line_and_head_is_no_fault(log: Path) -> None:
    head = audit.paths(base(log))[1]
    before = head.read_bytes()
    audit.append(base(log), "create", "done")
    head.write_bytes(before)
    assert audit.check(base(log)) == []
    audit.append(base(log), "create", "done")
    assert audit.check(base(log)) == []


APPEND = """
import sys
from pathlib import Path
from agentmem_backup import audit
for number in range(40):
    audit.append(Path(sys.argv[1]), "create", "done", worker=sys.argv[2], number=number)
"""


def test_several_processes_at_once_keep_one_chain(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", APPEND, str(tmp_path), str(number)]) for number in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert audit.check(tmp_path) == []
    entries = [json.loads(line) for line in lines_of(audit.paths(tmp_path)[0])]
    assert [entry["seq"] for entry in entries] == list(range(1, 161))
    assert {(entry["worker"], entry["number"]) for entry in entries} == {(str(w), n) for w in range(4) for n in range(40)}


def test_the_log_goes_on_after_a_torn_line_and_the_check_names_it(log: Path) -> None:
    content = log.read_bytes()
    log.write_bytes(content[:-30])
    first = audit.append(base(log), "create", "done")
    second = audit.append(base(log), "verify", "done")
    assert second["seq"] == first["seq"] + 1 == LINES + 2
    faults = audit.check(base(log))
    assert len(faults) == 1
    assert f"line {LINES} of" in faults[0]
    early = [("manifest_x.json", {"seq": 2, "digest": audit._digest(lines_of(log)[1].rstrip(b"\n"))})]
    assert audit.check(base(log), early) == faults


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The kernel takes a part of what crosses the limit without an error, as a disk does that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_does_not_fit_is_an_error_and_leaves_the_chain_whole(log: Path) -> None:
    before = log.read_bytes()
    recorded = audit.head(base(log))
    with files_up_to(len(before) + 100), pytest.raises(OSError, match="too large"):
        audit.append(base(log), "create", "done")
    assert log.read_bytes() == before
    assert audit.check(base(log), [("manifest", recorded)]) == []
    assert audit.append(base(log), "create", "done")["seq"] == LINES + 1
    assert audit.check(base(log), [("manifest", recorded)]) == []


def test_names_that_are_no_text_can_be_recorded(tmp_path: Path) -> None:
    audit.append(tmp_path, "extract", "done", what=os.fsdecode(b"\xff.conf"))
    assert audit.check(tmp_path) == []
    [line] = lines_of(audit.paths(tmp_path)[0])
    assert os.fsencode(json.loads(line)["what"]) == b"\xff.conf"


def test_a_long_line_is_found_as_the_last_one(tmp_path: Path) -> None:
    audit.append(tmp_path, "create", "done", filling="x" * 200_000)
    assert audit.append(tmp_path, "create", "done")["seq"] == 2
    assert audit.check(tmp_path) == []
