# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tar archives as bytes: what tarfile and GNU tar write is read, and no archive that was cut or changed passes for whole."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentmem_backup.errors import VerificationError
from agentmem_backup.formats import tarball
from hypothesis import given
from hypothesis import strategies as st

CONTENTS = {"a": b"x" * 700, "größe/日本語": b"", "l" * 180: b"long", "b" * 99 + "/c": bytes(1024)}


def archive(tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as tar:
        for name, content in CONTENTS.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "to/" + "z" * 150
        tar.addfile(link)
    return out.getvalue()


def pieces(data: bytes, size: int = 333) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def walk(data: bytes) -> dict[str, bytes]:
    tar = tarball.Tar(pieces(data), "the archive")
    return {member.name: b"".join(tar.content()) for member in tar if member.kind == "file"}


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_what_tarfile_writes_is_read(tar_format: int) -> None:
    assert walk(archive(tar_format)) == CONTENTS
    links = [member.linkname for member in tarball.Tar(io.BytesIO(archive(tar_format)), "it") if member.kind == "symlink"]
    assert links == ["to/" + "z" * 150]


def test_what_we_write_is_read_by_tarfile_and_by_gnu_tar(tmp_path: Path) -> None:
    data = b"".join(
        tarball.header(name, len(content)) + content + tarball.padding(len(content)) for name, content in CONTENTS.items()
    )
    (tmp_path / "a.tar").write_bytes(data + tarball.TRAILER)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == list(CONTENTS)
    listed = subprocess.run(["tar", "-tf", tmp_path / "a.tar", "--quoting-style=literal"], check=True, capture_output=True)
    assert listed.stdout.decode().split() == list(CONTENTS)
    assert walk(data + tarball.TRAILER) == CONTENTS


def test_sizes_above_eight_gigabytes_are_read_back() -> None:
    blocks = tarball.header("large", 9 * 2**30)
    with pytest.raises(VerificationError, match="ends too early"):
        for member in tarball.Tar(iter([blocks]), "it"):
            assert member.size == 9 * 2**30


def sparse(tmp_path: Path, form: str) -> tuple[bytes, bytes]:
    """An archive by GNU tar of a file with more extents than one header's map holds and a hole at its end; and that content."""
    holes = tmp_path / "holes"
    with holes.open("wb") as file:
        for at in range(0, 60 * 65536, 65536):
            file.seek(at)
            file.write(b"data at %d" % at)
        file.truncate(61 * 65536)
    subprocess.run(["tar", "-C", tmp_path, f"--format={form}", "-Scf", tmp_path / "s.tar", "holes"], check=True)
    return (tmp_path / "s.tar").read_bytes(), holes.read_bytes()


def test_gnu_sparse_members_are_put_back_with_their_holes(tmp_path: Path) -> None:
    """field-notes: Python's tarfile breaks on GNU sparse members."""
    data, content = sparse(tmp_path, "gnu")
    tar = tarball.Tar(pieces(data), "it")
    for member in tar:
        assert member.sparse
        assert member.size < len(content) / 4
        extents, size = tar.extents(member)
        stored, back = b"".join(tar.content()), bytearray(size)
        for offset, length in extents:
            back[offset : offset + length], stored = stored[:length], stored[length:]
        assert (bytes(back), stored) == (content, b"")


def test_a_sparse_map_that_does_not_fit_or_is_of_another_form_is_told(tmp_path: Path) -> None:
    data, __ = sparse(tmp_path, "gnu")
    changed = bytearray(data)
    changed[386 + 24 + 11 : 386 + 24 + 12] = b"7"  # the last digit of the second extent's offset … and its length
    changed[386 + 24 + 22 : 386 + 24 + 23] = b"7"
    changed[148:156] = b"%06o\0 " % (sum(changed[:148]) + sum(changed[156:512]) + 8 * 32)
    for archived, said in ((bytes(changed), "does not fit"), (sparse(tmp_path, "posix")[0], "not known here")):
        tar = tarball.Tar(pieces(archived), "it")
        with pytest.raises(VerificationError, match=said):
            for member in tar:
                tar.extents(member)


def test_an_archive_without_its_end_is_whole_only_where_it_need_have_none() -> None:
    whole = archive().rstrip(b"\0")
    whole += bytes(-len(whole) % tarball.BLOCK)
    with pytest.raises(VerificationError, match="ends too early"):
        walk(whole)
    assert [member.name for member in tarball.Tar(pieces(whole), "it", trailer=False)] == [*CONTENTS, "link"]
    with pytest.raises(VerificationError, match="ends too early"):
        list(tarball.Tar(pieces(whole[:-1]), "it", trailer=False))


def test_an_archive_cut_anywhere_is_found() -> None:
    """field-notes: Qdrant's own unpack accepted a tar cut between two segments."""
    whole = archive()
    end = len(whole.rstrip(b"\0"))
    needed = end + -end % tarball.BLOCK + len(tarball.TRAILER)
    for size in [*range(0, needed, 128), needed - 1]:
        with pytest.raises(VerificationError, match="the archive is damaged"):
            walk(whole[:size])
    assert walk(whole[:needed]) == CONTENTS


def test_something_after_the_end_is_found() -> None:
    with pytest.raises(VerificationError, match="something follows"):
        walk(archive() + b"\0" * 512 + b"!")
    with pytest.raises(VerificationError, match="one block of zeros"):
        walk(archive()[: -tarfile.RECORDSIZE] + bytes(512) + b"!" * 512)


@given(st.data())
def test_noise_never_raises_anything_else(data: st.DataObject) -> None:
    whole = bytearray(archive())
    for __ in range(data.draw(st.integers(1, 20))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        walk(bytes(whole))
    except VerificationError as error:
        assert "the archive is damaged" in str(error)


@pytest.mark.parametrize(("name", "unsafe"), [("/etc/passwd", True), ("a/../b", True), ("..", True), ("a..b/c", False)])
def test_names_that_leave_the_directory_are_known(name: str, unsafe: bool) -> None:
    data = tarball.header(name, 0) + tarball.TRAILER
    assert [member.unsafe for member in tarball.Tar(iter([data]), "it")] == [unsafe]
