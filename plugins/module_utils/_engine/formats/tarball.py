# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tar archives as streams of bytes: read forward only, to their very end, and written with sizes known beforehand.

Python's tarfile takes an archive that was cut between two members for a whole one, and cannot read the sparse members
that GNU tar and Qdrant write. Here an archive is whole only when its two zero blocks are there and nothing but
zeros follows. Formats: ustar, GNU (long names, base-256 numbers, old sparse members) and pax (POSIX.1-2017, pax).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ..errors import VerificationError

BLOCK = 512
TRAILER = bytes(2 * BLOCK)
"""What ends an archive: two blocks of zeros."""
_LONGEST_EXTENSION = 1024 * 1024  # of a name or a pax header: real ones have some hundred bytes
_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "device",
    b"4": "device",
    b"5": "directory",
    b"6": "fifo",
}


@runtime_checkable
class Readable(Protocol):
    """What is read from: `pipeline.Stream`, an open file, BytesIO."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, fewer only at the end."""


class Forward:
    """Pieces of bytes as a stream that reads forward only, and without copying what lies in one piece."""

    def __init__(self, pieces: Iterator[bytes | memoryview]):
        self._pieces = pieces
        self._view = memoryview(b"")

    def some(self, limit: int) -> memoryview:
        """What is at hand, at most `limit` bytes; empty only at the end."""
        while not self._view:
            piece = next(self._pieces, None)
            if piece is None:
                return self._view
            self._view = memoryview(piece)
        taken, self._view = self._view[:limit], self._view[limit:]
        return taken

    def read(self, size: int, /) -> bytes:
        """Exactly `size` bytes, fewer only at the end."""
        parts = []
        while size > 0 and (part := self.some(size)):
            parts.append(part)
            size -= len(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True)
class Member:
    """One member as its header tells it. `size` is what its content takes in the archive, in bytes; `raw` are its header
    blocks as they stand there (extended headers and sparse maps included)."""

    name: str
    kind: str
    """file, directory, symlink, hardlink, device, fifo, or other."""
    size: int
    mode: int
    linkname: str
    raw: bytes = field(repr=False)
    sparse: bool = False

    @property
    def unsafe(self) -> bool:
        """Whether the name would leave the directory that the archive is unpacked in."""
        return self.name.startswith("/") or ".." in self.name.split("/") or "\0" in self.name


def header(name: str, size: int, *, mode: int = 0o600, mtime: int = 0) -> bytes:
    """The header blocks of a regular file whose `size` bytes, and `padding(size)`, follow. GNU format."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, mode, mtime
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """What fills the last block of a content of `size` bytes."""
    return bytes(-size % BLOCK)


def _start_of_header(raw: bytes) -> int:
    """Where in `raw` the header proper starts, behind the extended ones."""
    at = 0
    while raw[at + 156 : at + 157] in (b"L", b"K", b"x", b"g", b"X"):
        size = _number(raw[at + 124 : at + 136])
        at += BLOCK + size + -size % BLOCK
    return at


def _checksum(block: bytes) -> int:
    """The sum of a header's bytes, those of the sum itself counted as spaces."""
    return sum(block) - sum(block[148:156]) + 8 * 32


def _number(octets: bytes) -> int:
    """A number of a header: octal digits, or base 256 where the highest bit is set (GNU). Raises ValueError."""
    if octets[0] & 0x80:
        return int.from_bytes(bytes([octets[0] & 0x7F]) + octets[1:], "big")
    digits = octets.split(b"\0", 1)[0].strip() or b"0"
    if not digits.isdigit():  # int() would take a sign and underscores
        raise ValueError(digits)
    return int(digits, 8)


def _text(octets: bytes) -> str:
    return octets.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax_records(content: bytes) -> dict[str, str]:
    """The records `length key=value\\n` of a pax header. Raises ValueError."""
    records: dict[str, str] = {}
    at = 0
    while at < len(content) and content[at] != 0:
        length = int(content[at : content.index(b" ", at)])
        if length < 5 or at + length > len(content) or content[at + length - 1 : at + length] != b"\n":
            raise ValueError("a record of another length than it says")
        key, __, value = content[content.index(b" ", at) + 1 : at + length - 1].partition(b"=")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at += length
    return records


class Tar:
    """A walk through an archive: iterate over it for its members, and over `content()` for those of the present one.

    What is not read of a member is passed over. The walk ends only where the archive ends as it must; else
    VerificationError says where it is damaged. `what` names the archive in that sentence. Without `trailer` it may also end
    behind a member: so do the archives of Qdrant's segments, whose length is known from the archive around them.
    """

    def __init__(self, source: Forward | Readable | Iterator[bytes | memoryview], what: str, *, trailer: bool = True):
        if not isinstance(source, Forward):
            source = Forward(_pieces(source) if isinstance(source, Readable) else source)
        self._source = source
        self._what = what
        self._trailer = trailer
        self._left = 0
        self._padding = 0
        self._position = 0

    def damaged(self, why: str) -> VerificationError:
        """The error to raise for a fault at the present position."""
        return VerificationError(f"{self._what} is damaged: {why} (tar archive, at byte {self._position})")

    def _take(self, size: int) -> bytes:
        data = self._source.read(size)
        self._position += len(data)
        if len(data) < size:
            raise self.damaged("it ends too early")
        return data

    def content(self) -> Iterator[memoryview]:
        """The content of the present member that was not read yet, as it is stored."""
        while self._left:
            piece = self._source.some(self._left)
            if not piece:
                raise self.damaged("it ends too early")
            self._left -= len(piece)
            self._position += len(piece)
            yield piece

    def extents(self, member: Member) -> tuple[list[tuple[int, int]], int]:
        """Where the content of a file belongs in it (offset and length, in bytes), and how large it is. What lies between are
        holes. Of the sparse forms only GNU's old one, which Qdrant writes. Raises VerificationError.

        Format: GNU tar's manual, "Basic Tar Format" (oldgnu_header, sparse_header).
        """
        at = _start_of_header(member.raw)
        block, more = member.raw[at : at + BLOCK], member.raw[at + BLOCK :]
        if block[156:157] != b"S":
            if member.sparse:
                raise self.damaged(f"its sparse member {member.name!r} is of a form that is not known here")
            return [(0, member.size)], member.size
        entries = [block[start : start + 24] for start in range(386, 482, 24)]
        for extension in range(0, len(more), BLOCK):
            entries += [more[extension + start : extension + start + 24] for start in range(0, 504, 24)]
        try:
            found = [(_number(entry[:12]), _number(entry[12:])) for entry in entries if entry[0]]
            size = _number(block[483:495])
        except ValueError:
            raise self.damaged(f"the map of its sparse member {member.name!r} holds no numbers") from None
        if sum(length for __, length in found) != member.size or any(start + length > size for start, length in found):
            raise self.damaged(f"the map of its sparse member {member.name!r} does not fit its content")
        return found, size

    def read(self, limit: int = _LONGEST_EXTENSION) -> bytes:
        """The rest of the present member at once; VerificationError where it has more than `limit` bytes."""
        if self._left > limit:
            raise self.damaged(f"a member of {self._left} bytes is larger than the {limit} that it may have")
        return b"".join(self.content())

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def _next(self) -> Member | None:
        for __ in self.content():
            pass
        if self._padding and any(self._take(self._padding)):
            raise self.damaged("the space between two members is not empty")
        self._padding = 0
        raw, long_name, long_link, records = b"", "", "", dict[str, str]()
        while True:
            if not (block := self._source.read(BLOCK)) and not self._trailer and not raw:
                return None
            self._position += len(block)
            if len(block) < BLOCK:
                raise self.damaged("it ends too early")
            if not any(block):
                if raw:
                    raise self.damaged("an extended header has no member")
                self._end()
                return None
            raw += block
            try:
                size, kind, written = _number(block[124:136]), block[156:157], _number(block[148:156])
            except ValueError:
                raise self.damaged("a member's header holds no numbers") from None
            if written != _checksum(block):
                raise self.damaged("a member's header does not match its checksum")
            if kind not in (b"L", b"K", b"x", b"g", b"X"):
                break
            extension = self._extension(size)
            raw += extension
            if kind == b"L":
                long_name = _text(extension)
            elif kind == b"K":
                long_link = _text(extension)
            elif kind != b"g":
                try:
                    records = _pax_records(extension)
                    size_again = int(records.get("size", "0"))
                except ValueError as error:
                    raise self.damaged(f"a pax header has {error}") from None
                if size_again < 0:
                    raise self.damaged("a pax header tells a negative size")
        return self._member(
            block, raw, kind, long_name or records.get("path", ""), long_link or records.get("linkpath", ""), records
        )

    def _extension(self, size: int) -> bytes:
        if size > _LONGEST_EXTENSION:
            raise self.damaged("an extended header is longer than any real one")
        return self._take(size + -size % BLOCK)

    def _member(self, block: bytes, raw: bytes, kind: bytes, name: str, link: str, records: dict[str, str]) -> Member:
        size = int(records["size"]) if "size" in records else _number(block[124:136])
        sparse = kind == b"S" or any(key.startswith("GNU.sparse.") for key in records)
        if kind == b"S" and block[482]:
            while True:  # the old GNU sparse map goes on in blocks of its own
                more = self._take(BLOCK)
                raw += more
                if not more[504]:
                    break
        if not name:
            name = _text(block[:100])
            if block[257:265] == b"ustar\x0000" and (prefix := _text(block[345:500])):
                name = f"{prefix}/{name}"
        what = _KINDS.get(kind, "other")
        if what != "file":
            size = 0 if what != "other" else size
        self._left, self._padding = size, -size % BLOCK
        try:
            mode = _number(block[100:108])
        except ValueError:
            raise self.damaged("a member's header holds no numbers") from None
        return Member(name, what, size, mode, link or _text(block[157:257]), raw, sparse)

    def _end(self) -> None:
        if any(self._take(BLOCK)):
            raise self.damaged("its end is one block of zeros where two belong")
        while piece := self._source.some(1 << 20):
            if piece.tobytes().strip(b"\0"):
                raise self.damaged("something follows its end")
            self._position += len(piece)


def _pieces(source: Readable) -> Iterator[bytes]:
    while piece := source.read(1 << 20):
        yield piece
