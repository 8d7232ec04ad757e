# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's custom archive format (`pg_dump -Fc`), read as a stream and without PostgreSQL.

An archive carries no integrity of its own: `pg_restore --list` reads nothing but the table of contents, and a table cut
short restores without a word. So we walk every block, count the rows of every table and look at where the file ends.

The format, from pg_backup_archiver.c and pg_backup_custom.c of PostgreSQL 9.2 to 18 (archive versions 1.12 to 1.16):
header, table of contents, then blocks until the end of the file. An integer is a sign byte and `int_size` bytes, lowest
first; a string is an integer length (-1: none) and its bytes. A data block is a byte 1, the integer ID of its entry and
chunks (integer length, bytes) up to a chunk of length 0; a block of large objects is a byte 3, the ID, and for each
object its OID and chunks, up to OID 0. Compressed data is one stream over all chunks of a table or large object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import IO, Any

from ..errors import VerificationError
from ..pipeline import fast_zlib

OLDEST, NEWEST = (1, 12), (1, 16)
"""Archive versions that are understood: pg_dump 9.2 to 18."""

_MAGIC = b"PGDMP"
_CUSTOM = 1
_DATA, _LARGE_OBJECTS = 1, 3
_OFFSET_SET, _NO_DATA = 2, 3
_ALGORITHMS = {0: "none", 1: "gzip", 2: "lz4", 3: "zstd"}
_END_OF_ROWS = b"\\.\n\n\n"
_NEWLINE = 10
_PLAUSIBLE_STRING = 64 << 20  # a damaged length must not make us read a gigabyte into memory


class ArchiveError(VerificationError):
    """The archive itself is damaged, cut off or none at all (and not: what it lies in cannot be read)."""


Sink = Callable[[bytes], object]
"""Takes the next bytes of a table's rows, as COPY writes them."""


@dataclass
class Entry:
    """One entry of the table of contents. `offset_at` is where in the file its data's position can be written; `needs` are the
    dump IDs of the entries that must be restored before it; `tablespace` is empty for the database's own."""

    dump_id: int
    tag: str
    kind: str
    definition: str
    copy: str
    namespace: str
    owner: str
    has_data: bool
    offset_at: int
    needs: tuple[int, ...] = ()
    tablespace: str = ""


@dataclass
class Block:
    """The data of one entry: where it begins in the file, its size in bytes, and what it holds.

    `rows` is None where they cannot be counted (INSERT statements, lz4); `objects` counts large objects.
    """

    entry: Entry
    position: int
    size: int = 0
    rows: int | None = None
    objects: int = 0


@dataclass
class Archive:
    """What an archive says of itself, and after a walk what it holds."""

    version: tuple[int, int]
    compression: str
    database: str
    server_version: str
    dump_version: str
    int_size: int
    offset_size: int
    entries: list[Entry] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def rows(self) -> dict[tuple[str, str], int | None]:
        """Rows of each table with a data block, by (schema, table)."""
        return {(b.entry.namespace, b.entry.tag): b.rows for b in self.blocks if b.entry.kind == "TABLE DATA"}

    def large_objects(self) -> int:
        """How many large objects the walk met."""
        return sum(block.objects for block in self.blocks)

    def owners(self) -> set[str]:
        """The roles that own what is in the archive."""
        return {entry.owner for entry in self.entries if entry.owner}

    def extensions(self) -> list[str]:
        """The extensions that a restore creates."""
        return [entry.tag for entry in self.entries if entry.kind == "EXTENSION"]


def major(version: str) -> int:
    """The major of a PostgreSQL version as an archive or program tells it: 15 of `15.14 (Debian …)`; 0 of nonsense."""
    found = re.match(r"\s*(\d+)", version)
    return int(found[1]) if found else 0


class _Cursor:
    """Reads values from a stream of pieces and knows its position in the file."""

    def __init__(self, pieces: Iterable[bytes]):
        self._pieces = iter(pieces)
        self.data = b""
        self.at = 0
        self._start = 0
        self.int_size = 4

    @property
    def position(self) -> int:
        return self._start + self.at

    def more(self) -> bool:
        """Bring in the next piece; False at the end of the file."""
        for piece in self._pieces:
            if piece:
                self._start += self.at
                self.data = self.data[self.at :] + piece if self.at < len(self.data) else piece
                self.at = 0
                return True
        return False

    def ended(self) -> bool:
        return self.at >= len(self.data) and not self.more()

    def take(self, size: int) -> bytes:
        while len(self.data) - self.at < size:
            if not self.more():
                raise self.cut()
        self.at += size
        return self.data[self.at - size : self.at]

    def cut(self) -> ArchiveError:
        return ArchiveError(f"the PostgreSQL dump is cut off after {self._start + len(self.data)} bytes")

    def bad(self, what: str) -> ArchiveError:
        return ArchiveError(f"the PostgreSQL dump is damaged at byte {self.position}: {what}")

    def byte(self) -> int:
        return self.take(1)[0]

    def integer(self) -> int:
        raw = self.take(1 + self.int_size)
        if raw[0] > 1:
            raise self.bad("no number where one must be")
        value = int.from_bytes(raw[1:], "little")
        return -value if raw[0] else value

    def string(self) -> str:
        size = self.integer()
        if size > _PLAUSIBLE_STRING:
            raise self.bad("a text of impossible length")
        return self.take(size).decode(errors="surrogateescape") if size > 0 else ""

    def optional(self) -> str | None:
        size = self.integer()
        if size > _PLAUSIBLE_STRING:
            raise self.bad("a text of impossible length")
        return None if size < 0 else self.take(size).decode(errors="surrogateescape")


def _head(cursor: _Cursor) -> Archive:
    try:
        magic = cursor.take(len(_MAGIC))
    except ArchiveError:
        magic = b""
    if magic != _MAGIC:
        raise ArchiveError("this is no PostgreSQL dump in custom format (pg_dump -Fc)")
    version = (cursor.byte(), cursor.byte())
    cursor.byte()  # revision
    if version < OLDEST or version > NEWEST:
        age = "newer" if version > NEWEST else "older"
        shown = ".".join(map(str, version))
        raise ArchiveError(f"the PostgreSQL dump has archive version {shown}: a pg_dump {age} than 9.2 to 18 made it")
    cursor.int_size, offset_size = cursor.byte(), cursor.byte()
    if cursor.int_size not in (4, 8) or offset_size not in (4, 8):
        raise cursor.bad("numbers of an unknown size")
    if cursor.byte() != _CUSTOM:
        raise ArchiveError("this PostgreSQL dump is no custom-format archive (pg_dump -Fc)")
    # A byte names the algorithm since 1.15; before, a level stood there, and there was only one algorithm.
    compression = _ALGORITHMS.get(cursor.byte(), "unknown") if version >= (1, 15) else ("none", "gzip")[cursor.integer() != 0]
    for __ in range(7):
        cursor.integer()  # local time of the dump: second, minute, hour, day, month, year, daylight saving
    return Archive(
        version=version,
        compression=compression,
        database=cursor.string(),
        server_version=cursor.string(),
        dump_version=cursor.string(),
        int_size=cursor.int_size,
        offset_size=offset_size,
    )


def _entry(cursor: _Cursor, archive: Archive) -> Entry:
    dump_id = cursor.integer()
    has_data = cursor.integer() != 0
    cursor.string(), cursor.string()  # catalogue's table and row
    tag, kind = cursor.string(), cursor.string()
    cursor.integer()  # section
    definition = cursor.string()
    cursor.string()  # DROP statement
    copy, namespace = cursor.string(), cursor.string()
    tablespace = cursor.string()
    if archive.version >= (1, 14):
        cursor.string()  # access method
    if archive.version >= (1, 16):
        cursor.integer()  # kind of relation
    owner = cursor.string()
    cursor.string()  # whether with OIDs: not for decades
    needs = []
    while (needed := cursor.optional()) is not None:
        needs += [int(needed)] if needed.isdecimal() else []
    offset_at = cursor.position
    has_data = cursor.byte() != _NO_DATA and has_data
    cursor.take(archive.offset_size)
    return Entry(dump_id, tag, kind, definition, copy, namespace, owner, has_data, offset_at, tuple(needs), tablespace)


def _contents(cursor: _Cursor) -> Archive:
    archive = _head(cursor)
    count = cursor.integer()
    if count < 0:
        raise cursor.bad("a negative number of entries")
    archive.entries = [_entry(cursor, archive) for __ in range(count)]
    return archive


def contents(pieces: Iterable[bytes]) -> Archive:
    """The header and table of contents alone: reads no further than that. Raises ArchiveError."""
    return _contents(_Cursor(pieces))


@dataclass
class _Flow:
    """What went by in the chunks of one table or large object."""

    size: int = 0
    newlines: int = 0
    tail: bytes = b""

    def rows(self) -> int:
        return self.newlines - _END_OF_ROWS.count(b"\n") if self.tail == _END_OF_ROWS else self.newlines


def _plain_chunks(cursor: _Cursor, sink: Sink | None) -> _Flow:
    """Chunks as `-Z0` writes them, one for each row: this loop runs once a row and must stay small.

    A chunk of rows ends with its only newline (pg_dump writes each CopyData message as a chunk, and COPY escapes newlines
    inside of values); what ends otherwise, and the end of the rows, is counted newline by newline.
    """
    flow = _Flow()
    header = Struct("<Bi" if cursor.int_size == 4 else "<Bq")
    unpack, width = header.unpack_from, header.size
    keep = len(_END_OF_ROWS)
    while True:
        data, at = cursor.data, cursor.at
        newlines, last, length = 0, 0, 1
        size = len(data)
        limit = size - width
        begin = at
        while at <= limit:
            sign, length = unpack(data, at)
            if sign or length <= 0:
                break
            end = at + width + length
            if end > size:
                break
            if data[end - 1] == _NEWLINE and length != keep:
                newlines += 1
            else:
                newlines += data.count(b"\n", at + width, end)
            if sink is not None:
                sink(data[at + width : end])
            last, at = length, end
        flow.newlines += newlines
        flow.size += at - begin
        if last:
            flow.tail = data[at - min(last, keep) : at]
        cursor.at = at
        if at <= limit and (sign or length < 0):
            raise cursor.bad("no length of a row where one must be")
        if at <= limit and length == 0:
            cursor.at = at + width
            return flow
        if at <= limit:
            _long_chunk(cursor, width, length, flow, sink)
        elif not cursor.more():
            raise cursor.cut()


def _long_chunk(cursor: _Cursor, width: int, length: int, flow: _Flow, sink: Sink | None) -> None:
    """A chunk that goes beyond what has been read: passed on piece by piece, since a row may have a gigabyte."""
    cursor.at += width
    while length:
        if cursor.ended():
            raise cursor.cut()
        part = cursor.take(min(length, len(cursor.data) - cursor.at))
        length -= len(part)
        flow.newlines += part.count(b"\n")
        flow.size += len(part)
        flow.tail = (flow.tail + part)[-len(_END_OF_ROWS) :]
        if sink is not None:
            sink(part)


def _inflater(compression: str) -> Any:
    if compression == "gzip":
        return fast_zlib.decompressobj(wbits=15)
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj()
    return None


def _packed_chunks(cursor: _Cursor, compression: str, sink: Sink | None) -> _Flow:
    """Chunks of one compressed stream."""
    flow = _Flow()
    decoder = _inflater(compression)
    inflated = _Flow()

    def inflate(packed: bytes) -> None:
        try:
            raw = decoder.decompress(packed)
        except Exception as error:
            raise cursor.bad(f"compressed rows cannot be read ({error})") from None
        inflated.size += len(raw)
        inflated.newlines += raw.count(b"\n")
        inflated.tail = (inflated.tail + raw)[-len(_END_OF_ROWS) :]
        if sink is not None and raw:
            sink(raw)

    while length := cursor.integer():
        if length < 0:
            raise cursor.bad("no length of a chunk where one must be")
        if decoder is None:
            _long_chunk(cursor, 0, length, flow, None)
        else:
            _long_chunk(cursor, 0, length, flow, inflate)
    if decoder is not None and flow.size and not decoder.eof:
        raise cursor.bad("compressed rows end too early")
    return inflated if decoder is not None else flow


def walk(pieces: Iterable[bytes], sink: Callable[[Entry], Sink | None] | None = None) -> Archive:
    """Read an archive from its first byte to its last and count what is in it.

    `sink` is asked at each table's data for what shall take its rows. What is missing or too much stands in the
    archive's `faults`; raises ArchiveError where the walk cannot go on (cut off, damaged, no archive at all).
    """
    cursor = _Cursor(pieces)
    archive = _contents(cursor)
    wanted = {entry.dump_id: entry for entry in archive.entries if entry.has_data}
    while not cursor.ended():
        position = cursor.position
        kind = cursor.byte()
        if kind not in (_DATA, _LARGE_OBJECTS):
            raise ArchiveError(f"something that is no PostgreSQL dump follows its end at byte {position}")
        entry = wanted.pop(cursor.integer(), None)
        if entry is None:
            raise ArchiveError(f"the PostgreSQL dump holds data at byte {position} that its table of contents does not name")
        archive.blocks.append(_block(cursor, archive, Block(entry, position), kind, sink(entry) if sink else None))
    for entry in wanted.values():
        archive.faults.append(f"the PostgreSQL dump ends before the data of {entry.kind.lower()} {entry.tag}")
    return archive


def _block(cursor: _Cursor, archive: Archive, block: Block, kind: int, sink: Sink | None) -> Block:
    def chunks() -> _Flow:
        if archive.compression == "none":
            return _plain_chunks(cursor, sink)
        return _packed_chunks(cursor, archive.compression, sink)

    if kind == _DATA:
        flow = chunks()
        block.size = flow.size
        if block.entry.copy and archive.compression in ("none", "gzip", "zstd"):
            block.rows = flow.rows()
        return block
    while cursor.integer():
        block.size += chunks().size
        block.objects += 1
    return block


def write_offsets(file: IO[bytes], archive: Archive) -> None:
    """Enter the positions of all data into the table of contents of a walked archive's seekable copy.

    pg_dump into a pipe leaves them out, and every worker of a parallel pg_restore then reads through the file for each table.
    """
    for block in archive.blocks:
        file.seek(block.entry.offset_at)
        file.write(bytes([_OFFSET_SET]) + block.position.to_bytes(archive.offset_size, "little"))
    file.seek(0, 2)


# ------------------------------------------------------------------------------------------------ rows of one table as CSV

_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_NAME = re.compile(r'"((?:[^"]|"")*)"|([^",()\s]+)')


def copy_columns(statement: str) -> list[str]:
    """The columns that a COPY statement of an archive names, unquoted: `COPY s.t (a, "b c") FROM stdin;`."""
    start = re.match(r'COPY (?:"(?:[^"]|"")*"|[^"\s(])+ \(', statement)
    if start is None:
        return []
    end = statement.rindex(") FROM stdin")
    return [
        (match[1].replace('""', '"') if match[1] is not None else match[2])
        for match in _NAME.finditer(statement, start.end(), end)
    ]


def _csv_field(raw: bytes) -> bytes:
    if raw == b"\\N":
        return b""
    if b"\\" in raw:
        raw = _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), raw)
    if not raw or any(mark in raw for mark in (b'"', b",", b"\n", b"\r")):
        return b'"' + raw.replace(b'"', b'""') + b'"'
    return raw


class CsvWriter:
    """A sink that writes rows in COPY's text form to `out` as CSV, like PostgreSQL: NULL is empty, an empty text is `""`."""

    def __init__(self, out: IO[bytes], columns: list[str]):
        self._out = out
        self._begun = b""
        self._ended = False
        self.rows = 0
        out.write(b",".join(_csv_field(name.encode().replace(b"\\", b"\\\\")) for name in columns) + b"\n")

    def __call__(self, piece: bytes) -> None:
        """Take the next bytes of the rows."""
        *lines, self._begun = (self._begun + piece).split(b"\n")
        for line in lines:
            self._ended = self._ended or line == b"\\."
            if not self._ended:
                self._out.write(b",".join(map(_csv_field, line.split(b"\t"))) + b"\n")
                self.rows += 1


def rows_of(pieces: Iterator[bytes], schema: str, table: str, out: IO[bytes]) -> int | None:
    """Write a table's rows to `out` as CSV; how many, or None where the archive has no rows of that table.

    Raises ArchiveError where the archive is damaged, or where its rows are not in COPY's form.
    """
    writers: list[CsvWriter] = []

    def sink(entry: Entry) -> Sink | None:
        if entry.kind != "TABLE DATA" or (entry.namespace, entry.tag) != (schema, table):
            return None
        if not entry.copy:
            raise ArchiveError(f"the rows of {schema}.{table} are stored as INSERT statements: extract them as sql")
        writers.append(CsvWriter(out, copy_columns(entry.copy)))
        return writers[0]

    archive = walk(pieces, sink)
    if archive.compression not in ("none", "gzip", "zstd"):
        raise ArchiveError(f"the dump's rows are compressed by {archive.compression}: extract them as sql")
    return writers[0].rows if writers else None
