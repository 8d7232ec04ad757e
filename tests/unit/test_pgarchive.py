# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The walk through PostgreSQL archives, on archives built here byte by byte; tests/integration walks pg_dump's own."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

import pytest
import zstandard
from agentmem_backup.formats import pgarchive
from agentmem_backup.formats.pgarchive import ArchiveError
from hypothesis import given, settings
from hypothesis import strategies as st

END = b"\\.\n\n\n"


def integer(value: int) -> bytes:
    return bytes([value < 0]) + abs(value).to_bytes(4, "little")


def string(text: str | None) -> bytes:
    return integer(-1) if text is None else integer(len(text.encode())) + text.encode()


def entry(archive: tuple[int, int], dump_id: int, tag: str, kind: str, copy: str, has_data: bool) -> bytes:
    parts = [integer(dump_id), integer(has_data), string("1259"), string("0"), string(tag), string(kind), integer(3), string("")]
    parts += [string(None), string(copy), string("public"), string("")]
    parts += [string("heap")] if archive >= (1, 14) else []
    parts += [integer(ord("r"))] if archive >= (1, 16) else []
    parts += [string("owner"), string("false"), string("7"), string(None), bytes([1 if has_data else 3]), bytes(8)]
    return b"".join(parts)


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(integer(len(piece)) + piece for piece in pieces) + integer(0)


def packed(pieces: list[bytes], compression: str) -> bytes:
    """The chunks of one table or large object, as pg_dump would write them."""
    if compression == "none":
        return chunked(pieces)
    joined = b"".join(pieces)
    data = zlib.compress(joined) if compression == "gzip" else zstandard.ZstdCompressor().compress(joined)
    return chunked([data[:7], data[7:]])


def archive(
    tables: dict[str, list[bytes]],
    objects: tuple[bytes, ...] = (),
    *,
    version: tuple[int, int] = (1, 14),
    compression: str = "none",
    copy: str = "COPY public.t (a, b) FROM stdin;\n",
) -> bytes:
    head = b"PGDMP" + bytes([*version, 0, 4, 8, 1])
    if version >= (1, 15):
        head += bytes([{"none": 0, "gzip": 1, "lz4": 2, "zstd": 3}[compression]])
    else:
        head += integer(0 if compression == "none" else -1)
    head += b"".join(map(integer, (1, 2, 3, 4, 5, 126, 0))) + string("agentmem") + string("15.3") + string("15.3 (Debian)")
    entries = [entry(version, 1, "public", "SCHEMA", "", False)]
    entries += [entry(version, 10 + number, name, "TABLE DATA", copy, True) for number, name in enumerate(tables)]
    entries += [entry(version, 5, "BLOBS", "BLOBS", "", True)] if objects else []
    body = b""
    for number, rows in enumerate(tables.values()):
        body += b"\x01" + integer(10 + number) + packed([*rows, END], compression)
    if objects:
        body += b"\x03" + integer(5)
        body += b"".join(integer(100 + number) + packed([one], compression) for number, one in enumerate(objects)) + integer(0)
    return head + integer(len(entries)) + b"".join(entries) + body


def split(content: bytes, size: int) -> Iterator[bytes]:
    return (content[at : at + size] for at in range(0, len(content), size))


TABLES = {"memories": [b"1\tx\n", b"2\t\\N\n", b"3\tlong " + b"y" * 3000 + b"\n"], "empty": [], "no columns": [b"\n", b"\n"]}
ROWS = {("public", "memories"): 3, ("public", "empty"): 0, ("public", "no columns"): 2}
VARIANTS = [((1, 12), "none"), ((1, 14), "none"), ((1, 14), "gzip"), ((1, 15), "none"), ((1, 16), "gzip"), ((1, 16), "zstd")]


@pytest.mark.parametrize(("version", "compression"), VARIANTS)
@pytest.mark.parametrize("size", [1, 7, 100, 10**6])
def test_rows_and_large_objects_are_counted(version: tuple[int, int], compression: str, size: int) -> None:
    content = archive(TABLES, (b"a" * 5000, b"line\n"), version=version, compression=compression)
    walked = pgarchive.walk(split(content, size))
    assert walked.rows() == ROWS and walked.large_objects() == 2 and walked.faults == []
    assert (walked.version, walked.compression, walked.database) == (version, compression, "agentmem")
    assert pgarchive.major(walked.dump_version) == 15 and walked.owners() == {"owner"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=40), max_size=6), max_size=4), st.integers(1, 300))
def test_rows_are_what_went_in_whatever_the_pieces(tables: list[list[bytes]], size: int) -> None:
    clean = {str(i): [row.replace(b"\n", b" ").replace(b"\\", b"/") + b"\n" for row in rows] for i, rows in enumerate(tables)}
    walked = pgarchive.walk(split(archive(clean), size))
    assert walked.rows() == {("public", name): len(rows) for name, rows in clean.items()}


@pytest.mark.parametrize(("version", "compression"), VARIANTS)
def test_an_archive_cut_anywhere_is_found(version: tuple[int, int], compression: str) -> None:
    content = archive(TABLES, (b"object",), version=version, compression=compression)
    for end in range(len(content)):
        try:
            assert pgarchive.walk(split(content[:end], 64)).faults, end
        except ArchiveError as error:
            assert "\n" not in str(error)


def test_a_missing_block_is_named() -> None:
    whole, shorter = archive(TABLES, (b"object",)), archive(TABLES)
    blocks = whole[whole.index(b"\x03" + integer(5)) :]
    assert pgarchive.walk([whole[: -len(blocks)]]).faults == ["the PostgreSQL dump ends before the data of blobs BLOBS"]
    assert pgarchive.walk([shorter]).faults == []


@pytest.mark.parametrize("junk", [b"\0", b"junk", b"PGDMP", bytes(4096), b"\x01" + integer(10) + chunked([])])
def test_what_follows_the_end_is_found(junk: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"follows its end|does not name"):
        pgarchive.walk([archive(TABLES) + junk])


def test_any_turned_bit_in_the_structure_ends_in_a_sentence_or_other_counts() -> None:
    """A bit inside a row changes no structure: SHA-256 finds it. Nothing may ever end in another exception."""
    content = archive({"t": [b"1\n", b"2\n"]}, (b"o",))
    for position in range(len(content)):
        for bit in (0x01, 0x80):
            turned = bytearray(content)
            turned[position] ^= bit
            try:
                pgarchive.walk([bytes(turned)]).rows()
            except ArchiveError as error:
                assert len(str(error)) < 300


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no PostgreSQL dump in custom format"),
        (b"-- PostgreSQL database dump\n", "no PostgreSQL dump in custom format"),
        (archive({}, version=(1, 17)), "archive version 1.17: a pg_dump newer than"),
        (archive({}, version=(1, 11)), "archive version 1.11: a pg_dump older than"),
        (b"PGDMP\x01\x0e\x00\x04\x08\x03", "no custom-format archive"),
        (b"PGDMP\x01\x0e\x00\x05\x08\x01", "numbers of an unknown size"),
    ],
)
def test_what_is_no_archive(content: bytes, sentence: str) -> None:
    with pytest.raises(ArchiveError, match=sentence.replace(".", r"\.")):
        pgarchive.walk([content])


def test_rows_that_cannot_be_counted_are_not_counted() -> None:
    assert pgarchive.walk([archive({"t": [b"INSERT INTO t VALUES ('a\nb');\n"]}, copy="")]).rows() == {("public", "t"): None}
    lz4 = archive({"t": [b"1\n"]}, version=(1, 16))
    position = lz4.index(b"PGDMP") + 11
    assert pgarchive.walk([lz4[:position] + b"\x02" + lz4[position + 1 :]]).rows() == {("public", "t"): None}


def test_contents_reads_no_further_than_the_table_of_contents() -> None:
    content = archive(TABLES)

    def pieces() -> Iterator[bytes]:
        yield content[: content.index(b"\x01" + integer(10) + integer(4))]
        raise AssertionError("read too far")

    entries = pgarchive.contents(pieces()).entries
    assert [one.tag for one in entries] == ["public", "memories", "empty", "no columns"]
    assert {one.needs for one in entries} == {(7,)}


def test_offsets_are_written_where_the_data_begins() -> None:
    content = archive(TABLES, (b"object",))
    file = io.BytesIO(content)
    pgarchive.write_offsets(file, pgarchive.walk([content]))
    again = pgarchive.walk([file.getvalue()])
    assert again.rows() == ROWS and len(file.getvalue()) == len(content)
    for block in again.blocks:
        flag, offset = file.getvalue()[block.entry.offset_at], file.getvalue()[block.entry.offset_at + 1 :][:8]
        assert (flag, int.from_bytes(offset, "little")) == (2, block.position)
        assert file.getvalue()[block.position] == (3 if block.objects else 1)


@pytest.mark.parametrize(
    ("statement", "columns"),
    [
        ("COPY public.memories (id, content) FROM stdin;\n", ["id", "content"]),
        ('COPY "tenant data"."order" ("group", "from") FROM stdin;\n', ["group", "from"]),
        ('COPY public."a (b)" ("x, y", "q""uoted", plain) FROM stdin;\n', ["x, y", 'q"uoted', "plain"]),
        ("COPY public.nothing  FROM stdin;\n", []),
    ],
)
def test_columns_of_a_copy_statement(statement: str, columns: list[str]) -> None:
    assert pgarchive.copy_columns(statement) == columns


@pytest.mark.parametrize("size", [1, 10**6])
def test_rows_as_csv(size: int) -> None:
    rows = [b"1\t\\N\n", b"2\t\n", b'3\ta"b\n', b"4\tx,y\n", b"5\tl1\\nl2\\tt\\\\n\\b\n", b"6\t\\\\.\n", "7\tü\n".encode()]
    out = io.BytesIO()
    count = pgarchive.rows_of(split(archive({"other": [b"9\t9\n"], "t": rows}), size), "public", "t", out)
    expected = b'a,b\n1,\n2,""\n3,"a""b"\n4,"x,y"\n5,"l1\nl2\tt\\n\b"\n6,\\.\n7,\xc3\xbc\n'
    assert (count, out.getvalue()) == (7, expected)
    assert pgarchive.rows_of(iter([archive({"t": rows})]), "public", "absent", io.BytesIO()) is None


def test_insert_statements_are_not_taken_for_rows() -> None:
    with pytest.raises(ArchiveError, match="extract them as sql"):
        pgarchive.rows_of(iter([archive({"t": [b"INSERT INTO t"]}, copy="")]), "public", "t", io.BytesIO())
