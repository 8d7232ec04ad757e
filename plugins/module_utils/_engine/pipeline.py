# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes on their way into a set's file and out of it: source → compress → hash → file, and the same chain reversed.

Everything moves in pieces of 512 KiB with a few in flight, so memory stays flat whatever the size. Compression and
hashing run in threads of their own (zlib, ISA-L, OpenSSL and zstd all let go of Python's lock while they work).

gzip is written as one member in which each piece is compressed on its own by ISA-L, or stored as it is where that
would gain less than a tenth (vectors do not compress): any gunzip reads it. zstd frames carry a content checksum.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import itertools
import mmap
import os
import queue
import struct
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from . import process
from .errors import BackupError, Cancelled, VerificationError

try:
    from isal import isal_zlib

    fast_zlib: Any = isal_zlib
except ImportError:  # no wheel for this machine: the same bytes, more slowly
    fast_zlib = zlib

PIECE = 512 * 1024
Piece: TypeAlias = "bytes | memoryview"
_BUFFERS, _READY = 4, 2
_SAMPLE = 32 * 1024
_LITTLE, _MOMENT_S = 256 * 1024, 0.001
STRIDE = 64 * PIECE
"""What a reader lets come together on the disk before it goes on following the writer."""
_WRITTEN = 2 * PIECE  # at once
_FLUSHED = 128 * PIECE
"""After so much the kernel is told to write out and forget."""
_WINDOW = 14
"""Base two logarithm of how far back equal bytes are looked for: 16 KiB. Measured with ISA-L: rows of PostgreSQL take a tenth
less time than with 32 KiB and come out no larger (text of programs is 2 % larger)."""
_WORTH = 0.9  # of a piece's size: what compressing must come below to be worth reading it back
_STORED_MOST = 0xFFFF  # bytes in one block of deflate that is not compressed
_ZSTD_STEP = 1024
"""What zstd is given at once: it has no limit on its output, and four bytes can stand for 128 KiB (RFC 8878, 3.1.1.2)."""
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"  # RFC 1952: deflate, no name, no time, fastest, unknown system


@dataclass(frozen=True)
class Digest:
    """What went through a pipeline: size in bytes and SHA-256 of the file as it lies on the disk (empty where it was not
    taken), and its content's size.

    The content has no SHA-256 of its own: the same file decompresses to the same content, which gzip's CRC-32 or zstd's
    checksum confirms, and hashing every byte twice was a tenth of a backup's time.
    """

    bytes: int
    sha256: str
    raw_bytes: int


class Gzip:
    """Encoder of one gzip member out of independently compressed pieces (RFC 1951, 1952)."""

    def __init__(self, level: int):
        """`level`: 0 stores, 1 to 6 compress at the speed of the disk (ISA-L), 7 to 9 as small as zlib can (slowly)."""
        self._level = level
        self._crc = 0
        self._length = 0
        self._started = False
        self._gains = False  # whether the piece before this one became smaller

    def _deflate(self, library: Any, level: int, piece: bytes | memoryview) -> bytes:
        encoder = library.compressobj(level, library.DEFLATED, -_WINDOW)
        return bytes(encoder.compress(piece) + encoder.flush(library.Z_SYNC_FLUSH))

    def _compresses(self, piece: bytes | memoryview) -> bool:
        if len(piece) < 2 * _SAMPLE:
            return True
        middle = len(piece) // 2
        sample = piece[middle : middle + _SAMPLE]
        return len(self._deflate(fast_zlib, 1, sample)) < _WORTH * _SAMPLE

    def encode(self, piece: Piece) -> list[Piece]:
        """The compressed form of the next piece, in parts; of one that is stored they lie in the piece itself."""
        self._crc = fast_zlib.crc32(piece, self._crc)
        self._length += len(piece)
        start: list[Piece] = [] if self._started else [_GZIP_HEADER]
        self._started = True
        if self._level and (self._gains or self._compresses(piece)):
            if self._level <= 6 and fast_zlib is not zlib:
                packed = self._deflate(fast_zlib, 1, piece)
            else:
                packed = self._deflate(zlib, 1 if self._level <= 6 else self._level, piece)
            self._gains = len(packed) < _WORTH * len(piece)
            return [*start, packed]
        return start + _stored(piece)

    def finish(self) -> bytes:
        """What ends the member."""
        start = b"" if self._started else _GZIP_HEADER
        return start + b"\x03\x00" + struct.pack("<II", self._crc & 0xFFFFFFFF, self._length & 0xFFFFFFFF)


def _stored(piece: Piece) -> list[Piece]:
    """The piece as blocks of deflate that are not compressed (RFC 1951, 3.2.4). zlib's level 0 copies it several times over."""
    view, parts = memoryview(piece), list[Piece]()
    for at in range(0, len(view), _STORED_MOST):
        part = view[at : at + _STORED_MOST]
        parts += (struct.pack("<BHH", 0, len(part), len(part) ^ 0xFFFF), part)
    return parts


class Zstd:
    """Encoder of one zstd frame with a content checksum."""

    def __init__(self, level: int):
        """`level` as in zstd, 1 to 19."""
        import zstandard

        self._encoder = zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()

    def encode(self, piece: Piece) -> list[Piece]:
        """The compressed form of the next piece, or nothing yet."""
        return [self._encoder.compress(piece)]

    def finish(self) -> bytes:
        """What ends the frame."""
        return self._encoder.flush()


class Plain:
    """No compression: a Redis dump stays a file that Redis can load."""

    def encode(self, piece: Piece) -> list[Piece]:
        """The piece itself."""
        return [piece]

    def finish(self) -> bytes:
        """Nothing."""
        return b""


SUFFIXES = {"gzip": ".gz", "zstd": ".zst", "none": ""}
"""Compression → what it adds to a file's name."""


def _encoder(compression: str, level: int) -> Gzip | Zstd | Plain:
    if compression == "gzip":
        return Gzip(level)
    if compression == "zstd":
        return Zstd(min(max(level, 1), 19) if level != 6 else 3)
    return Plain()


Item = TypeVar("Item")


class _Stage(Generic[Item]):
    """A worker thread fed by a queue; the first error in it is raised to whoever feeds it next.

    `drop` is called with every item that was not worked on to its end.
    """

    def __init__(self, work: Callable[[Item], None], name: str, drop: Callable[[Item], None]):
        self._work = work
        self._drop = drop
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            if self.error is None:
                try:
                    self._work(item)
                    continue
                except BaseException as error:  # handed to the feeding thread
                    self.error = error
            self._drop(item)

    def feed(self, item: Item) -> None:
        if self.error is not None:
            raise self.error
        self._items.put(item)

    def end(self) -> None:
        self._items.put(None)
        self._thread.join()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        self.error = self.error or Cancelled("given up")
        self._items.put(None)
        self._thread.join()


@dataclass
class _Packed:
    """A piece on its way to the disk: its buffer, which is filled anew afterwards, and the parts that are to be written."""

    buffer: memoryview
    parts: list[Piece]


class Growing:
    """How far a file has come that is being written, for the reader that follows its writer.

    `end` is for whoever knows that nothing more comes and that all which is known of the file is told; `give_up` for
    whoever knows that it will never be whole.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._bytes = 0
        self.given_up = False
        self.ended = False

    def reach(self, size: int) -> None:
        """So many bytes were written."""
        with self._changed:
            self._bytes = size
            self._changed.notify_all()

    def end(self) -> None:
        """The file is whole."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def give_up(self) -> None:
        """There will be no such file."""
        with self._changed:
            self.given_up = True
            self._changed.notify_all()

    def wait_for(self, size: int) -> int:
        """Wait until so many bytes are there, or the file is whole; how many there are. Raises Cancelled."""
        with self._changed:
            while self._bytes < size and not self.ended:
                if self.given_up or process.stopping():
                    raise Cancelled("the run is being stopped")
                self._changed.wait(0.5)
            return self._bytes


class Writer:
    """Writes one file of a set. Feed it with `write`, then `close` (gives the `Digest`) or `abandon` (removes the file).

    Leaving it as a context manager abandons what was not closed.
    """

    def __init__(
        self,
        path: Path,
        *,
        compression: str = "none",
        level: int = 6,
        advance: Callable[[int], None] | None = None,
        growing: Growing | None = None,
        hashing: bool = True,
    ):
        """`compression` is gzip, zstd or none. `advance` is told how many raw bytes went through, and `growing` how many lie in
        the file. Without `hashing` the `Digest` has no SHA-256. The file must not exist yet."""
        self.path = path
        self._advance = advance
        self._growing = growing
        self._encoder = _encoder(compression, level)
        self._raw_bytes = 0
        # A few buffers go round, from what comes in to the disk: fresh memory for each piece costs more than hashing it.
        # They are one mapping, which goes back to the kernel whole when the file is closed.
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        space = memoryview(mmap.mmap(-1, _BUFFERS * PIECE))
        for at in range(0, len(space), PIECE):
            self._free.put(space[at : at + PIECE])
        self._buffer = self._free.get()
        self._filled = 0
        self._file = _File(path, hashing=hashing)
        self._store = _Stage(self._save, "store", lambda packed: self._free.put(packed.buffer))
        self._compress = _Stage(self._pack, "compress", lambda filled: self._free.put(filled[0]))

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take the next bytes; returns how many (all), so that a tarfile can write here. Raises what a later stage met."""
        process.raise_if_stopping()
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            part = rest[: PIECE - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == PIECE:
                self._hand_on()
        return size

    def fill_from(self, descriptor: int) -> int:
        """Read once from a pipe or file, straight into the buffer; returns how many bytes came, 0 at its end.

        pg_dump writes 4 KiB at a time. Taking each of them wakes both sides 250,000 times a gigabyte, which costs more than
        compressing it; so where little came, the pipe gets a moment to fill.
        """
        process.raise_if_stopping()
        room = PIECE - self._filled
        size = os.readv(descriptor, [self._buffer[self._filled :]])
        self._filled += size
        if self._filled == PIECE:
            self._hand_on()
        elif 0 < size < min(room, _LITTLE):
            time.sleep(_MOMENT_S)
        return size

    def _hand_on(self) -> None:
        self._compress.feed((self._buffer, self._filled))
        self._buffer, self._filled = self._free.get(), 0

    def _pack(self, filled: tuple[memoryview, int]) -> None:
        buffer, size = filled
        self._raw_bytes += size
        if self._advance:
            self._advance(self._raw_bytes)
        self._store.feed(_Packed(buffer, self._encoder.encode(buffer[:size])))

    def _save(self, packed: _Packed) -> None:
        for part in packed.parts:
            self._file.write(part)
        self._tell(self._file.written)
        self._free.put(packed.buffer)

    def _tell(self, size: int) -> None:
        if self._growing is not None:
            self._growing.reach(size)

    def close(self) -> Digest:
        """Flush to the disk, forget the cached pages (whoever reads next reads the disk) and return what was written."""
        try:
            if self._filled:
                self._hand_on()
            self._compress.end()
            self._store.feed(_Packed(self._buffer, [self._encoder.finish()]))
            self._store.end()
            size, sha256 = self._file.close()
            self._tell(size)
        except BaseException:
            self.abandon()
            raise
        self._give_back()
        return Digest(size, sha256, self._raw_bytes)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *__: object) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Stop and remove the file, unless it was closed."""
        if self._file.closed:
            return
        self._compress.abandon()
        self._store.abandon()
        self._file.abandon()
        self._give_back()

    def _give_back(self) -> None:
        """Let go of the buffers: whoever verifies the file afterwards may keep its writer for as long."""
        self._buffer = memoryview(b"")
        self._free = queue.SimpleQueue()


class _File:
    """A new file of mode 0600, written past the page cache where the file system can (open(2), O_DIRECT).

    A large backup must not push the database out of memory, and pages that nobody reads again cost processor time to fill.
    """

    def __init__(self, path: Path, *, hashing: bool):
        self.path = path
        self.written = 0
        """Bytes that lie in the file, the last few still in our buffer left out."""
        self._digest = hashlib.sha256() if hashing else None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = process.guarded(lambda: os.open(path, flags, 0o600), f"making {path}")
        with contextlib.suppress(OSError):  # not as a flag of open, which makes the file and then refuses
            _set_direct(self._descriptor, on=True)
        self._buffer = memoryview(mmap.mmap(-1, _WRITTEN))  # pages, as O_DIRECT wants them
        self._filled = 0

    @property
    def closed(self) -> bool:
        """Whether it was closed or abandoned."""
        return bool(self._descriptor < 0)

    def write(self, data: Piece) -> None:
        """Take the next bytes."""
        rest = memoryview(data)
        while rest:
            part = rest[: _WRITTEN - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == _WRITTEN:
                self._flush()

    def _flush(self) -> None:
        rest = self._buffer[: self._filled]
        if self._digest is not None:
            self._digest.update(rest)
        before, self._filled = self.written, 0
        while rest:
            write = functools.partial(os.write, self._descriptor, rest)
            done = process.guarded(functools.partial(_unless_refused, self._descriptor, write), f"writing {self.path}")
            self.written += done
            rest = rest[done:]
        process.give_freed_memory_back()
        if self.written // _FLUSHED != before // _FLUSHED and not _is_direct(self._descriptor):
            _let_go(self._descriptor)

    def close(self) -> tuple[int, str]:
        """Write what is left, all of it to the disk; gives the size and the SHA-256, empty without hashing."""
        if _is_direct(self._descriptor):
            _set_direct(self._descriptor, on=False)  # the end of a file is no whole block
        self._flush()
        process.guarded(lambda: os.fsync(self._descriptor), f"writing {self.path}")
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self._release()
        return self.written, self._digest.hexdigest() if self._digest is not None else ""

    def abandon(self) -> None:
        """Remove it."""
        self._release()
        self.path.unlink(missing_ok=True)

    def _release(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1
        self._buffer = memoryview(b"")


def _let_go(descriptor: int) -> None:
    """Start writing what is dirty and drop what is clean: a large backup must not push the database out of memory."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _inflate(packed: Iterator[Piece], path: Path) -> Iterator[bytes]:
    decoder = fast_zlib.decompressobj(wbits=31)
    begun = False
    for data in packed:
        while data:
            if decoder.eof:  # another member, as `cat a.gz b.gz` or pigz make them
                decoder = fast_zlib.decompressobj(wbits=31)
            begun = True
            try:
                raw = decoder.decompress(data, PIECE)
            except (zlib.error, fast_zlib.error) as error:
                raise VerificationError(f"{path} is damaged: gzip says {error}") from None
            if raw:
                yield raw
            data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    if not begun or not decoder.eof:
        raise VerificationError(f"{path} is damaged: its gzip stream ends too early")


def _unzstd(packed: Iterator[Piece], path: Path) -> Iterator[bytes]:
    import zstandard

    decoder = zstandard.ZstdDecompressor().decompressobj()
    ready = bytearray()
    for piece in packed:
        for start in range(0, len(piece), _ZSTD_STEP):
            if decoder.eof:
                raise VerificationError(f"{path} is damaged: something follows the end of its zstd frame")
            try:
                ready += decoder.decompress(piece[start : start + _ZSTD_STEP])
            except zstandard.ZstdError as error:
                raise VerificationError(f"{path} is damaged: zstd says {error}") from None
            if len(ready) >= PIECE:
                for at in range(0, len(ready), PIECE):
                    yield bytes(ready[at : at + PIECE])
                ready.clear()
    if ready:
        yield bytes(ready)
    if not decoder.eof or decoder.unused_data:
        raise VerificationError(f"{path} is damaged: its zstd frame does not end where the file ends")


MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
"""How a compressed file begins (RFC 1952, RFC 8878)."""
_SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".dump": "none", ".rdb": "none", ".tar": "none"}


_DECODERS: dict[str, Callable[[Iterator[Piece], Path], Iterator[bytes]]] = {"gzip": _inflate, "zstd": _unzstd}


def compression_of(path: Path) -> str:
    """The compression that a file's name tells, or, where it has another name than ours, its first bytes: gzip, zstd or none."""
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError:
        return "none"
    return next((name for name, magic in MAGIC.items() if begin.startswith(magic)), "none")


Ahead = TypeVar("Ahead", bytes, memoryview)


def _copies(pieces: Iterator[Piece]) -> Generator[bytes, None, None]:
    for piece in pieces:
        yield bytes(piece)


def _ahead(pieces: Generator[Ahead, None, None], name: str, number: int) -> Generator[Ahead, None, None]:
    """What comes of `pieces`, brought by a thread of that name, which has at most `number` of them out: the one that was taken
    last counts until the next is asked for."""
    ready: queue.SimpleQueue[Ahead | BaseException | None] = queue.SimpleQueue()
    room: queue.SimpleQueue[None] = queue.SimpleQueue()
    given_up = threading.Event()

    def produce() -> None:
        try:
            with contextlib.closing(pieces):
                while True:
                    room.get()
                    if given_up.is_set() or process.stopping():
                        return
                    piece = next(pieces, None)
                    ready.put(piece)
                    if piece is None:
                        return
        except BaseException as error:  # raised in the reading thread
            ready.put(error)

    for __ in range(number):
        room.put(None)
    thread = threading.Thread(target=produce, name=name, daemon=True)
    thread.start()
    try:
        while True:
            try:
                piece = ready.get(timeout=0.5)
            except queue.Empty:
                process.raise_if_stopping()
                continue
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            room.put(None)
    finally:
        given_up.set()
        room.put(None)
        thread.join()


class Reader:
    """Reads one file of a set: `pieces()` gives its content, decompressed; afterwards `digest()` tells what was read.

    `digest()` is only there once the content was read to its end: what was not read is not known to be whole.
    """

    def __init__(
        self,
        path: Path,
        *,
        compression: str | None = None,
        advance: Callable[[int], None] | None = None,
        past_cache: bool = False,
        growing: Growing | None = None,
        hashing: bool = True,
    ):
        """`compression` is what the file's name tells where it is None. `advance` is told how many raw bytes went by. Without
        `hashing` the `Digest` has no SHA-256.

        `past_cache`: read what lies on the disk and not what the kernel remembers of it, where the file system can (open(2),
        O_DIRECT). It also costs a fifth of the processor time of a read that fills the page cache. `growing`: the file is still
        being written; it is followed to the end that this tells.
        """
        self.path = path
        self._past_cache = past_cache
        self._growing = growing
        self._hashing = hashing
        self._compression = compression or compression_of(path)
        # Decompressed at once this is about two pieces; and what a bounded step leaves over is copied.
        self._step = PIECE if self._compression == "none" else PIECE // 2
        self._advance = advance
        self._stored = hashlib.sha256()
        self._stored_bytes = 0
        self._raw_bytes = 0
        self._read = self._there = 0
        self._complete = False

    def _blocks(self, size: int, number: int) -> Generator[memoryview, None, None]:
        """The file in blocks as it lies there; each holds until the one `number` further on is asked for."""
        try:
            descriptor = self._opened()
            try:
                buffers = [memoryview(mmap.mmap(-1, size)) for __ in range(number)]  # pages: O_DIRECT
                for buffer in itertools.cycle(buffers):
                    if not (there := self._next(descriptor, buffer)):
                        return
                    yield buffer[:there]
            finally:
                os.close(descriptor)
        except OSError as error:
            if self._growing is not None and self._growing.given_up:  # its writer took it away
                raise Cancelled("the run is being stopped") from error
            raise BackupError(process.os_sentence(error, f"reading {self.path}")) from error

    def _file(self) -> Generator[memoryview, None, None]:
        """The file, counted and hashed, in pieces that hold until the next is asked for.

        Past the page cache nobody reads ahead, so a thread of its own does: the disk and the hash would take turns. Behind a
        writer there is no hurry, and its memory is better saved.
        """
        apart = self._past_cache and self._growing is None
        source = _ahead(self._blocks(PIECE, 2), "disk", 2) if apart else self._blocks(self._step, 1)
        with contextlib.closing(source) as blocks:
            for block in blocks:
                if self._hashing:
                    self._stored.update(block)
                self._stored_bytes += len(block)
                for at in range(0, len(block), self._step):
                    yield block[at : at + self._step]
                process.give_freed_memory_back()

    def _opened(self) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC
        if self._past_cache:
            with contextlib.suppress(OSError):
                return os.open(self.path, flags | os.O_DIRECT)
        descriptor = os.open(self.path, flags)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return descriptor

    def _next(self, descriptor: int, buffer: memoryview) -> int:
        """Read the next block, whole ones only while the file grows: where it ended a moment ago the disk knows no end."""
        if self._growing is not None and self._read + len(buffer) > self._there and not self._growing.ended:
            self._there = self._growing.wait_for(self._read + STRIDE)
            if not _is_direct(descriptor):  # such a read would write out and wait by itself (open(2))
                os.fdatasync(descriptor)
                _let_go(descriptor)
        size = _unless_refused(descriptor, lambda: os.readv(descriptor, [buffer]))
        self._read += size
        return size

    def pieces(self) -> Iterator[bytes]:
        """The content from its start, in pieces of up to 512 KiB; a thread of its own reads ahead.

        Raises VerificationError where the file is damaged or ends early, BackupError where it cannot be read.
        """
        decode = _DECODERS.get(self._compression)
        file: Iterator[Piece] = self._file()
        # The thread that hashes leaves decompressing to whoever asks for the content: so both have about as much to do, and
        # what is handed over is less. Where nothing is hashed it decompresses.
        if decode is not None and not self._hashing:
            file, decode = decode(file, self.path), None
        with contextlib.closing(_ahead(_copies(file), "read", _READY)) as ahead:
            for piece in decode(ahead, self.path) if decode is not None else ahead:
                self._raw_bytes += len(piece)
                if self._advance:
                    self._advance(self._raw_bytes)
                yield piece
        self._complete = True

    def digest(self) -> Digest:
        """What was read. Raises BackupError before the end was reached."""
        if not self._complete:
            raise BackupError(f"{self.path} was not read to its end")
        return Digest(self._stored_bytes, self._stored.hexdigest() if self._hashing else "", self._raw_bytes)


def _is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def _set_direct(descriptor: int, *, on: bool) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)


def _unless_refused(descriptor: int, transfer: Callable[[], int]) -> int:
    """What `transfer` moves; through the page cache from now on where a file system with limits of its own refuses it past it."""
    try:
        return transfer()
    except OSError as error:
        if error.errno != errno.EINVAL or not _is_direct(descriptor):
            raise
        _set_direct(descriptor, on=False)
        return transfer()


class Stream:
    """The content of a `Reader` as a file object that reads forward only: what tarfile and parsers want."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces = pieces
        self._left = b""
        self._at = 0
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, fewer only at the end; all that is left where `size` is negative."""
        parts: list[bytes] = []
        wanted = size
        while wanted != 0:
            if self._at >= len(self._left):
                self._left, self._at = next(self._pieces, b""), 0
                if not self._left:
                    break
            part = self._left[self._at :] if wanted < 0 else self._left[self._at : self._at + wanted]
            self._at += len(part)
            wanted -= len(part) if wanted > 0 else 0
            parts.append(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self.position += len(data)
        return data


def hash_file(path: Path, *, past_cache: bool = False) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file as it lies on the disk; `past_cache` is the Reader's. Raises BackupError."""
    reader = Reader(path, compression="none", past_cache=past_cache)
    for __ in reader.pieces():
        pass
    digest = reader.digest()
    return digest.bytes, digest.sha256
