# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes into a file and back: whole, readable by the system's own tools, and never silently wrong."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from agentmem_backup import pipeline, process
from agentmem_backup.errors import BackupError, Cancelled, VerificationError
from agentmem_backup.pipeline import PIECE, Reader, Stream, Writer
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import page_cache

COMPRESSIONS = ["gzip", "zstd", "none"]


def write(path: Path, content: bytes, compression: str, *, level: int = 6, step: int = PIECE) -> pipeline.Digest:
    writer = Writer(path, compression=compression, level=level)
    for start in range(0, len(content), step):
        writer.write(content[start : start + step])
    return writer.close()


def read(path: Path, compression: str) -> tuple[bytes, pipeline.Digest]:
    reader = Reader(path, compression=compression)
    return b"".join(reader.pieces()), reader.digest()


def samples() -> dict[str, bytes]:
    rng = random.Random(7)
    text = b"".join(b"%d: memory of an agent, importance %f\n" % (n, rng.random()) for n in range(60_000))
    return {
        "empty": b"",
        "one byte": b"x",
        "text": text,
        "noise": rng.randbytes(3 * PIECE + 17),
        "noise, whole blocks of deflate": rng.randbytes(2 * 65_535),
        "zeros, a whole number of output buffers": bytes(8 * PIECE),
        "zeros and one": bytes(8 * PIECE + 1),
        "zeros less one": bytes(4 * PIECE - 1),
        "text, then noise, then zeros": text + rng.randbytes(2 * PIECE) + bytes(5 * PIECE),
    }


@pytest.mark.parametrize("name", samples())
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_what_went_in_comes_out_and_the_digests_tell_of_both_ends(tmp_path: Path, compression: str, name: str) -> None:
    content, path = samples()[name], tmp_path / "file"
    written = write(path, content, compression)
    back, digest = read(path, compression)
    assert back == content
    assert digest == written
    stored = path.read_bytes()
    assert (written.bytes, written.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert written.raw_bytes == len(content)


@pytest.mark.parametrize("level", range(10))
def test_gunzip_reads_every_level(tmp_path: Path, level: int) -> None:
    content, path = samples()["text, then noise, then zeros"], tmp_path / "file.gz"
    write(path, content, "gzip", level=level)
    assert subprocess.run(["gunzip", "-c", str(path)], capture_output=True, check=True).stdout == content
    assert read(path, "gzip")[0] == content


@pytest.mark.parametrize("name", samples())
def test_gzip_finds_our_files_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file.gz"
    write(path, samples()[name], "gzip")
    subprocess.run(["gzip", "-t", str(path)], check=True, capture_output=True)
    assert gzip.decompress(path.read_bytes()) == samples()[name]


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not installed")
def test_the_program_zstd_finds_our_files_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.zst"
    write(path, samples()["text"], "zstd")
    subprocess.run(["zstd", "-t", str(path)], check=True, capture_output=True)


def test_our_zstd_frames_carry_a_checksum(tmp_path: Path) -> None:
    """`pg_dump --compress=zstd` sets none (field notes)."""
    import zstandard

    path = tmp_path / "file.zst"
    write(path, samples()["text"], "zstd")
    assert zstandard.get_frame_parameters(path.read_bytes()[:32]).has_checksum


@given(
    parts=st.lists(st.binary(max_size=3000), max_size=12), compression=st.sampled_from(COMPRESSIONS), repeat=st.integers(1, 400)
)
@settings(max_examples=60, deadline=None)
def test_any_parts_come_back_as_their_sum(parts: list[bytes], compression: str, repeat: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        writer = Writer(path, compression=compression)
        for part in parts * repeat:
            assert writer.write(part) == len(part)
        writer.close()
        assert read(path, compression)[0] == b"".join(parts * repeat)


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    """The guide's own scripts wrote with gzip; pigz and cat write several members."""
    content = samples()["text"]
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(b"") + gzip.compress(content[1000:], 9))
    assert read(path, "gzip")[0] == content


# --- damage


def small(tmp_path: Path, compression: str) -> tuple[Path, bytes, pipeline.Digest]:
    content = b"".join(b"row %d of a small dump\n" % number for number in range(60))
    path = tmp_path / "small"
    return path, content, write(path, content, compression)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_every_truncation_is_found(tmp_path: Path, compression: str) -> None:
    path, __, __ = small(tmp_path, compression)
    stored = path.read_bytes()
    for length in range(len(stored)):
        path.write_bytes(stored[:length])
        with pytest.raises(VerificationError, match="damaged"):
            read(path, compression)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_turned_bit_is_found(tmp_path: Path, compression: str) -> None:
    """Either reading fails, or the digest of the file is another; changed content never passes as compressed content."""
    path, content, digest = small(tmp_path, compression)
    stored = path.read_bytes()
    for place in range(len(stored)):
        for bit in range(8):
            turned = bytearray(stored)
            turned[place] ^= 1 << bit
            path.write_bytes(turned)
            try:
                back, found = read(path, compression)
            except VerificationError:
                continue
            assert found.sha256 != digest.sha256
            assert compression == "none" or back == content, f"bit {bit} of byte {place}"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("more", [b"\0", b"x", b"\x1f\x8b", bytes(600)], ids=["NUL", "x", "magic", "zeros"])
def test_something_after_the_end_is_found(tmp_path: Path, compression: str, more: bytes) -> None:
    path, __, __ = small(tmp_path, compression)
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(VerificationError, match="damaged"):
        read(path, compression)


def test_what_was_not_read_to_its_end_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, bytes(20 * PIECE), "none")
    reader = Reader(path)
    pieces = reader.pieces()
    next(pieces)
    pieces.close()
    with pytest.raises(BackupError, match="was not read to its end"):
        reader.digest()


def open_files(path: Path) -> int:
    """How many descriptors of this process are open on `path`."""
    links = (link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return sum(link == path for link in links)


@pytest.mark.parametrize(("past_cache", "threads"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("hashing", [True, False])
def test_a_reader_that_is_left_early_ends_its_threads(tmp_path: Path, hashing: bool, past_cache: bool, threads: int) -> None:
    path = tmp_path / "file"
    write(path, random.Random(7).randbytes(40 * PIECE), "gzip")
    before = threading.active_count()
    pieces = Reader(path, compression="gzip", hashing=hashing, past_cache=past_cache).pieces()
    next(pieces)
    assert threading.active_count() == before + threads
    assert open_files(path) == 1
    pieces.close()
    assert threading.active_count() == before
    assert not open_files(path)


@pytest.mark.parametrize("past_cache", [False, True])
def test_a_disk_that_fails_in_the_middle_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, past_cache: bool
) -> None:
    path = tmp_path / "file"
    write(path, random.Random(8).randbytes(8 * PIECE), "gzip")
    read, left = os.readv, iter(range(3))

    def fails(descriptor: int, buffers: list[memoryview]) -> int:
        if next(left, None) is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, buffers)

    monkeypatch.setattr(os, "readv", fails)
    before, seen = threading.active_count(), 0
    reader = Reader(path, compression="gzip", past_cache=past_cache)
    with pytest.raises(BackupError, match=f"^reading {path} failed: Input/output error"):
        for piece in reader.pieces():
            seen += len(piece)
    assert seen >= PIECE
    assert threading.active_count() == before
    assert not open_files(path)
    with pytest.raises(BackupError, match="was not read to its end"):
        reader.digest()


@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("name", samples())
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_past_the_cache_the_same_is_read(tmp_path: Path, compression: str, name: str, place: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if place == "memory" else tmp_path) as directory:  # older tmpfs refuse
        content, path = samples()[name], Path(directory) / "file"
        written = write(path, content, compression)
        reader = Reader(path, compression=compression, past_cache=True)
        assert b"".join(reader.pieces()) == content
        assert reader.digest() == written


def test_past_the_cache_the_disk_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, samples()["noise"], "gzip")
    if not page_cache.can_be_passed(path):
        pytest.skip("this file system has no O_DIRECT")
    for past_cache in (True, False):
        for __ in Reader(path, compression="gzip", past_cache=past_cache).pieces():
            pass
        assert page_cache.remembers(path) is not past_cache


def test_a_file_system_that_opens_but_does_not_read_past_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, path, real, refused = samples()["text"], tmp_path / "file", os.readv, []

    def readv(descriptor: int, buffers: list[memoryview]) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "alignment")
        return real(descriptor, buffers)

    write(path, content, "gzip")
    monkeypatch.setattr(os, "readv", readv)
    assert b"".join(Reader(path, compression="gzip", past_cache=True).pieces()) == content
    assert len(refused) == 1


@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("refusal", ["none", "short", "refused"])
def test_past_the_cache_the_same_is_written(tmp_path: Path, place: str, refusal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a file system that takes the flag and not the writes, and where a write ends in the middle of a block."""
    real, direct = os.write, []

    def write(descriptor: int, data: memoryview) -> int:
        direct.append(bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT))
        if refusal == "refused" and direct[-1]:
            raise OSError(errno.EINVAL, "no such writes here")
        return real(descriptor, bytes(data[:1000]) if refusal == "short" and len(direct) == 2 else data)

    content = samples()["noise"] + samples()["text"] + random.Random(8).randbytes(9 * PIECE)
    with contextlib.ExitStack() as stack:
        folder = tmp_path if place == "disk" else Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        monkeypatch.setattr(pipeline.os, "write", write)
        writer = Writer(folder / "file")
        for start in range(0, len(content), PIECE):
            writer.write(content[start : start + PIECE])
        digest = writer.close()
        monkeypatch.undo()
        assert (folder / "file").read_bytes() == content
    assert (digest.bytes, digest.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    if place == "disk" and page_cache.can_be_passed(tmp_path / "file"):
        assert direct[0], "the first write fills the page cache"
    assert not direct[-1], "the end of the file is no whole block"


@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_growing_file_is_followed_to_its_end(tmp_path: Path, compression: str, place: str) -> None:
    noise = random.Random(5).randbytes((3 << 20) + 17)  # longer than zstd looks back, or it would become small
    much = pipeline.STRIDE // len(noise) + 2
    with tempfile.TemporaryDirectory(dir="/dev/shm" if place == "memory" else tmp_path) as directory:
        path, growing = Path(directory) / "file", pipeline.Growing()
        writer = Writer(path, compression=compression, growing=growing)
        reader = Reader(path, compression=compression, past_cache=True, growing=growing)
        pieces = reader.pieces()
        writer.write(noise * much)
        back = [next(pieces)]  # while the writer is at work: nothing has been closed or ended yet
        writer.write(noise)
        written = writer.close()
        growing.end()
        assert b"".join([*back, *pieces]) == noise * (much + 1)
        assert reader.digest() == written


def test_a_reader_that_follows_waits_for_the_end_to_be_told(tmp_path: Path) -> None:
    path, growing = tmp_path / "file", pipeline.Growing()
    writer = Writer(path, compression="gzip", growing=growing)
    reader = Reader(path, compression="gzip", past_cache=True, growing=growing)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(lambda: b"".join(reader.pieces()))
        writer.write(b"some bytes")
        writer.close()
        assert growing.wait_for(1) > 0  # all of it lies there, and nobody has said that it is all
        assert not read.done()
        growing.end()
        assert read.result(20) == b"some bytes"


def opened(path: Path) -> int:
    """How many descriptors of this process lead to a file."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed a moment ago
            found += entry.readlink() == path
    return found


def test_a_reader_that_follows_ends_when_the_file_is_given_up(tmp_path: Path) -> None:
    path, growing = tmp_path / "file", pipeline.Growing()
    writer = Writer(path, growing=growing)
    reader = Reader(path, past_cache=True, growing=growing)  # it looks into the file, and closes it again
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(lambda: list(reader.pieces()))
        while opened(path) < 2:  # by the writer, and by the reader: afterwards the file is gone
            time.sleep(0.001)
        writer.write(b"some bytes")
        writer.abandon()
        growing.give_up()
        with pytest.raises(Cancelled):
            read.result(20)


def test_a_reader_that_comes_after_the_file_was_given_up_says_so(tmp_path: Path) -> None:
    path, growing = tmp_path / "file", pipeline.Growing()
    writer = Writer(path, growing=growing)
    reader = Reader(path, past_cache=True, growing=growing)
    growing.give_up()
    writer.abandon()
    with pytest.raises(Cancelled):
        list(reader.pieces())


def test_a_missing_file_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"reading .*gone failed: no such file"):
        read(tmp_path / "gone", "none")


# --- writing


def test_a_file_is_never_overwritten_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(BackupError, match=r"making .*file failed"):
        Writer(path)
    assert path.read_text() == "mine"
    write(tmp_path / "new", b"x", "gzip")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    directory = tmp_path / "full"
    directory.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(directory)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no mount may be made here")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", [(3 << 20) + 1, 40 << 20], ids=["at the end", "in the middle"])
def test_a_full_disk_is_told_and_leaves_no_file(full_disk: Path, compression: str, size: int) -> None:
    path = full_disk / "file"
    noise = random.Random(1)
    writer = Writer(path, compression=compression)
    with pytest.raises(BackupError, match=r"writing .*file failed: the disk is full"):
        for start in range(0, size, PIECE):
            writer.write(noise.randbytes(min(PIECE, size - start)))
        writer.close()
    writer.abandon()
    assert list(full_disk.iterdir()) == []


def test_giving_up_removes_the_file_and_ends_the_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    writer = Writer(tmp_path / "file", compression="gzip")
    for __ in range(20):
        writer.write(bytes(PIECE))
    writer.abandon()
    writer.abandon()
    assert not (tmp_path / "file").exists()
    assert threading.active_count() == before


def test_a_run_that_is_stopped_neither_writes_nor_reads_on(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, bytes(20 * PIECE), "none")
    writer = Writer(tmp_path / "other")
    pieces = Reader(path).pieces()
    next(pieces)
    process.stop_all()
    try:
        with pytest.raises(Cancelled):
            writer.write(b"x")
        with pytest.raises(Cancelled):
            for __ in pieces:
                pass
        with pytest.raises(Cancelled):
            pipeline.hash_file(path)
    finally:
        process.resume()
        writer.abandon()


def test_progress_is_told_in_raw_bytes_up_to_the_whole(tmp_path: Path) -> None:
    told: list[int] = []
    writer = Writer(tmp_path / "file", compression="gzip", advance=told.append)
    for __ in range(5):
        writer.write(bytes(PIECE))
    writer.close()
    assert told == [number * PIECE for number in range(1, 6)]
    told.clear()
    for __ in Reader(tmp_path / "file", compression="gzip", advance=told.append).pieces():
        pass
    assert told == sorted(told)
    assert told[-1] == 5 * PIECE


FLAT = """
import resource, sys
from pathlib import Path
from agentmem_backup.pipeline import PIECE, Reader, Writer
path, compression, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
import random
noise, text = random.Random(1).randbytes(PIECE), (b"a memory of an agent " * PIECE)[:PIECE]
piece = {"zeros": bytes(PIECE), "text": text, "noise": noise}[kind]
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
writer = Writer(path, compression=compression)
writer.write(piece); base = peak()
for _ in range(1023):
    writer.write(piece)
assert writer.close().raw_bytes == 1024 * PIECE
written = peak()
assert sum(map(len, Reader(path, compression=compression).pieces())) == 1024 * PIECE
print(base, written - base, peak() - base)
"""


@pytest.mark.parametrize(("compression", "kind"), [("gzip", "zeros"), ("zstd", "zeros"), ("zstd", "text"), ("gzip", "noise")])
def test_memory_stays_flat_over_a_gigabyte(tmp_path: Path, compression: str, kind: str) -> None:
    words = [sys.executable, "-c", FLAT, str(tmp_path / "file"), compression, kind]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    __, writing, both = map(int, done.stdout.split())
    assert writing < 40, f"writing took {writing} MiB more"
    assert both < 80, f"reading took {both} MiB more"


def held() -> int:
    """Bytes of memory that are this process's alone: pages without a file."""
    lines = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(lines[name].split()[0]) * 1024 for name in ("Pss_Anon", "Pss_Shmem"))


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_a_writer_that_is_done_holds_no_buffers(tmp_path: Path, end: str) -> None:
    """The entry of a set is verified after its file was closed, and the writer is still at hand meanwhile."""
    before, writers = held(), []
    for number in range(20):
        writer = Writer(tmp_path / str(number))
        for __ in range(10):
            writer.write(bytes(PIECE))
        getattr(writer, end)()
        writers.append(writer)
    assert held() - before < 20 * PIECE
    assert len(writers) == 20


# --- the stream


@given(parts=st.lists(st.binary(min_size=1, max_size=40), max_size=20), sizes=st.lists(st.integers(0, 90), max_size=40))
def test_a_stream_reads_what_the_pieces_hold(parts: list[bytes], sizes: list[int]) -> None:
    content, stream, at = b"".join(parts), Stream(iter(parts)), 0
    for size in sizes:
        assert stream.read(size) == content[at : at + size]
        at = min(len(content), at + size)
        assert stream.position == at
    assert stream.read() == content[at:]
    assert stream.read(5) == b""


def test_hash_file_is_that_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * PIECE + 5))
    said = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert pipeline.hash_file(path) == (3 * PIECE + 5, said)
