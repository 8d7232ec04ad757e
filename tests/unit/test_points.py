# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of collections taken apart, as no server would make them: what is in them is read by test_qdrant.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from agentmem_backup import points
from agentmem_backup.errors import VerificationError
from agentmem_backup.formats import tarball

SEGMENT = "0/segments/one.tar"


def archive(members: dict[str, bytes], end: bytes = tarball.TRAILER) -> bytes:
    parts = [tarball.header(name, len(content)) + content + tarball.padding(len(content)) for name, content in members.items()]
    return b"".join(parts) + end


def unpacked(folder: Path, members: dict[str, bytes]) -> dict[str, bytes]:
    data = archive(members)
    points.unpack((data[at : at + 333] for at in range(0, len(data), 333)), folder, "it")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("end", [tarball.TRAILER, b""], ids=["ended", "as Qdrant writes it"])
def test_a_segment_s_archive_is_taken_apart(tmp_path: Path, end: bytes) -> None:
    segment = archive({"snapshot/files/vectors/a": b"a" * 700, "snapshot/files/b": b""}, end)
    members = {"version.info": b"1", "0/wal/x": b"wal", SEGMENT: segment, "1/wal/x": b"of a shard on another node"}
    assert unpacked(tmp_path / "room", members) == {
        "0/wal/x": b"wal",
        "0/segments/one/files/vectors/a": b"a" * 700,
        "0/segments/one/files/b": b"",
    }


def test_a_segment_s_archive_of_another_form_is_left_to_qdrant_edge(tmp_path: Path) -> None:
    segment = archive({"vectors/a": b"a" * 700})
    assert unpacked(tmp_path / "room", {SEGMENT: segment}) == {SEGMENT: segment}


@pytest.mark.parametrize(
    "members",
    [
        {"0/../../evil": b"x"},
        {SEGMENT: archive({"snapshot/files/a": b"x", "snapshot/../../../../evil": b"x"})},
        {SEGMENT: archive({"snapshot/files/a": b"x", "elsewhere": b"x"})},
        {SEGMENT: archive({"snapshot/files/a": b"x" * 5000})[:3000]},
    ],
    ids=["leaves", "segment leaves", "segment mixed", "segment cut"],
)
def test_what_no_server_makes_is_damaged(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(VerificationError, match=r"it is damaged: "):
        unpacked(tmp_path / "room", members)
    assert not (tmp_path / "evil").exists()
