# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The walker of Redis dumps, on files built here byte by byte: also those that the installed server does not write."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Iterator

import pytest
from agentmem_backup.formats import rdb
from hypothesis import given
from hypothesis import strategies as st

POLYNOMIAL = 0xAD93D23594C935A9  # Jones, as Redis's crc64.c names it


def crc64(data: bytes) -> int:
    """The definition, bit by bit: reflected in and out, nothing before and nothing after."""
    register = 0
    for byte in data:
        for bit in range(8):
            top = register >> 63 ^ (byte >> bit & 1)
            register = (register << 1 & (1 << 64) - 1) ^ (POLYNOMIAL if top else 0)
    return int(f"{register:064b}"[::-1], 2)


def length(number: int) -> bytes:
    if number < 64:
        return bytes([number])
    if number < 16384:
        return struct.pack(">H", number | 0x4000)
    return b"\x80" + struct.pack(">I", number) if number < 1 << 32 else b"\x81" + struct.pack(">Q", number)


def string(text: bytes) -> bytes:
    return length(len(text)) + text


def aux(name: bytes, value: bytes) -> bytes:
    return b"\xfa" + string(name) + string(value)


def dump(*parts: bytes, magic: bytes = b"REDIS0011", checksum: bool = True) -> bytes:
    body = magic + b"".join(parts) + b"\xff"
    return body + struct.pack("<Q", crc64(body) if checksum else 0)


def key(kind: int, value: bytes, name: bytes = b"a key") -> bytes:
    return bytes([kind]) + string(name) + value


def pieces(data: bytes, size: int = 1 << 20) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


SMALL = dump(
    aux(b"redis-ver", b"7.2.4"),
    b"\xfa\x05ctime\xc2" + struct.pack("<i", 1_700_000_000),
    b"\xf5" + string(b"#!lua name=f\n"),
    b"\xfe\x00\xfb\x03\x01",
    key(0, string(b"value"), b"k1"),
    b"\xfc" + struct.pack("<q", 4_000_000_000_000) + key(2, length(2) + string(b"a") + b"\xc0\x07", b"k2"),
    b"\xfe\x05",
    key(4, length(1) + string(b"f") + b"\xc3\x04\x09\x00a\x20\x00", b"k3"),
)


def test_checksum_has_the_check_value_of_redis() -> None:
    for kind in [rdb.FoldedCrc64, *([rdb.FastCrc64] if rdb.fast_crc is not None else [])]:
        crc = kind()
        crc.update(b"123456789")
        assert crc.value() == 0xE9C6D914C4B8D9CA  # Redis's own test of crc64.c
    assert crc64(b"123456789") == 0xE9C6D914C4B8D9CA


def test_folding_rests_on_a_true_congruence() -> None:
    def power(exponent: int) -> int:
        result = 1
        for __ in range(exponent):
            result = result << 1 ^ (POLYNOMIAL | 1 << 64 if result >> 63 else 0)
        return result

    total = 0
    for exponent in rdb._POWERS:
        total ^= power(exponent)
    assert power(rdb._BLOCK_BITS) == total
    assert rdb._BLOCK_BITS % 8 == 0


@pytest.mark.parametrize("size", [0, 1, rdb._BLOCK - 1, rdb._BLOCK, rdb._BLOCK + 1, 3 * rdb._BLOCK + 77])
def test_folded_checksum_is_the_same_however_the_bytes_come(size: int) -> None:
    rng = random.Random(size)
    data = rng.randbytes(size)
    crc = rdb.FoldedCrc64()
    at = 0
    while at < size:
        step = rng.randrange(1, 60_000)
        crc.update(data[at : at + step])
        at += step
    assert crc.value() == crc64(data)


def test_small_dump_is_counted() -> None:
    summary = rdb.walk(iter([SMALL]))
    assert summary.faults == [] and summary.notes == []
    assert summary.counted and summary.checksum
    assert summary.databases == {0: {"string": 1, "set": 1}, 5: {"hash": 1}}
    assert summary.expiring == {0: {"set": 1}}
    assert summary.first_expiry == 4_000_000_000_000
    assert summary.functions == 1
    assert summary.keys == 3
    assert summary.size == len(SMALL)
    assert summary.server == "Redis 7.2.4"
    assert rdb.saved_at(SMALL) == 1_700_000_000


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100])
def test_pieces_may_end_anywhere(size: int) -> None:
    assert rdb.walk(pieces(SMALL, size)) == rdb.walk(iter([SMALL]))


def test_every_cut_is_found() -> None:
    for end in range(len(SMALL)):
        assert rdb.walk(pieces(SMALL[:end], 16)).faults, f"cut after {end} bytes"


def test_every_turned_bit_is_found() -> None:
    for position in range(len(SMALL)):
        for bit in range(8):
            damaged = bytearray(SMALL)
            damaged[position] ^= 1 << bit
            assert rdb.walk(iter([bytes(damaged)])).faults, f"bit {bit} of byte {position}"


def test_whatever_follows_the_end_is_found() -> None:
    for tail in (b"\x00", b"junk", SMALL, bytes(40)):
        (fault,) = rdb.walk(pieces(SMALL + tail, 64)).faults
        assert "something follows its end" in fault and f"{len(tail)} bytes" in fault


@given(st.binary(max_size=300))
def test_noise_is_never_a_whole_dump_and_never_an_exception(noise: bytes) -> None:
    assert rdb.walk(iter([noise])).faults
    assert rdb.walk(iter([b"REDIS0011" + noise])).faults


STREAM_HEAD = length(1) + string(bytes(16)) + string(b"listpack") + length(1) + length(5) + length(0)
STREAM_IDS = length(1) + length(0) + length(2) + length(0) + length(9)
PENDING = length(1) + bytes(16) + bytes(8) + length(3)


def listpack(*elements: bytes | int) -> bytes:
    """Short strings and numbers as Redis packs them: each with its size behind it."""
    packed = [
        b"\xf4" + struct.pack("<q", one) + b"\x09"
        if isinstance(one, int)
        else bytes([0x80 | len(one)]) + one + bytes([1 + len(one)])
        for one in elements
    ]
    body = b"".join(packed) + b"\xff"
    return struct.pack("<IH", 6 + len(body), len(elements)) + body


VALUES = {
    "string of 8 bits": (0, b"\xc0\xff", "string"),
    "string of 16 bits": (0, b"\xc1\xff\x01", "string"),
    "compressed string": (0, b"\xc3" + length(5) + length(100) + b"xxxxx", "string"),
    "string of 14 bits length": (0, string(b"x" * 1000), "string"),
    "string of 32 bits length": (0, string(b"x" * 20_000), "string"),
    "string of 64 bits length": (0, b"\x81" + struct.pack(">Q", 3) + b"abc", "string"),
    "list": (1, length(2) + string(b"a") + string(b"b"), "list"),
    "set": (2, length(1) + string(b"a"), "set"),
    "sorted set with text scores": (
        3, length(3) + string(b"a") + b"\x031.5" + string(b"b") + b"\xfe" + string(b"c") + b"\xff", "zset"
    ),
    "hash": (4, length(1) + string(b"f") + string(b"v"), "hash"),
    "sorted set": (5, length(1) + string(b"a") + struct.pack("<d", 1.5), "zset"),
    "module": (7, length(1 << 10) + b"\x01\x05\x02\x06\x03abcd\x04abcdefgh\x05" + string(b"s") + b"\x00", "AAAAAAAAB"),
    "zipmap": (9, string(b"zipmap"), "hash"),
    "list ziplist": (10, string(b"ziplist"), "list"),
    "intset": (11, string(b"intset"), "set"),
    "zset ziplist": (12, string(b"ziplist"), "zset"),
    "hash ziplist": (13, string(b"ziplist"), "hash"),
    "quicklist": (14, length(2) + string(b"one") + string(b"two"), "list"),
    "stream of 5.0": (15, STREAM_HEAD + length(0), "stream"),
    "stream of 5.0 with a group": (
        15,
        STREAM_HEAD + length(1) + string(b"g") + length(1) + length(0) + PENDING
        + length(1) + string(b"c") + bytes(8) + length(1) + bytes(16),
        "stream",
    ),
    "hash listpack": (16, string(b"listpack"), "hash"),
    "zset listpack": (17, string(b"listpack"), "zset"),
    "quicklist of 7.0": (18, length(2) + length(1) + string(b"plain") + length(2) + string(b"packed"), "list"),
    "stream of 7.0": (
        19,
        STREAM_HEAD + STREAM_IDS + length(1) + string(b"g") + length(1) + length(0) + length(4) + PENDING
        + length(1) + string(b"c") + bytes(8) + length(1) + bytes(16),
        "stream",
    ),
    "set listpack": (20, string(b"listpack"), "set"),
    "stream of 7.2": (
        21,
        STREAM_HEAD + STREAM_IDS + length(1) + string(b"g") + length(1) + length(0) + length(4) + PENDING
        + length(1) + string(b"c") + bytes(16) + length(1) + bytes(16),
        "stream",
    ),
    "hash with expiring fields, 7.4 RC": (22, length(1) + length(99) + string(b"f") + string(b"v"), "hash"),
    "hash listpack with expiring fields, 7.4 RC": (23, string(listpack(b"f", b"v", 99)), "hash"),
    "hash with expiring fields": (24, bytes(8) + length(1) + length(1) + string(b"f") + string(b"v"), "hash"),
    "hash listpack with expiring fields": (25, bytes(8) + string(listpack(b"f", b"v", 99)), "hash"),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_every_type_is_skipped_exactly(name: str) -> None:
    code, value, kind = VALUES[name]
    data = dump(b"\xfe\x00", key(code, value, b"before"), key(0, string(b"v"), b"after"), magic=b"REDIS0012")
    for size in (1, 1 << 20):
        summary = rdb.walk(pieces(data, size))
        assert summary.faults == [] and summary.counted
        assert summary.databases[0] == ({kind: 1, "string": 1} if kind != "string" else {"string": 2})


def test_valkey_9_has_a_type_of_its_own() -> None:
    value = length(1) + string(b"f") + string(b"v") + struct.pack("<q", -1)
    data = dump(aux(b"valkey-ver", b"9.0.0"), b"\xfe\x00", key(22, value), key(0, string(b"v")), magic=b"VALKEY080")
    summary = rdb.walk(iter([data]))
    assert summary.faults == [] and summary.databases[0] == {"hash": 1, "string": 1}
    assert summary.server == "Valkey 9.0.0"


def test_what_stands_before_a_key_is_skipped() -> None:
    before = b"\xf9\x07" + b"\xf8" + length(500) + b"\xfd" + struct.pack("<i", 4_000_000)
    others = b"\xf4\x01\x02\x03" + b"\xf7" + length(5 << 10) + b"\x02\x01\x05" + string(b"aux") + b"\x00"
    summary = rdb.walk(iter([dump(b"\xfe\x00", others, before, key(0, string(b"v")))]))
    assert summary.faults == [] and summary.expiring == {0: {"string": 1}}
    assert summary.first_expiry == 4_000_000_000
    assert summary.modules == {"AAAAAAAAF"}


def test_keys_that_expire_by_a_moment_are_counted_apart() -> None:
    keys = [b"\xfc" + struct.pack("<q", at) + key(0, string(b"v"), b"%d" % at) for at in (10, 20, 30)]
    summary = rdb.walk(iter([dump(b"\xfe\x00", *keys, key(0, string(b"v")))]), expired_by=20)
    assert summary.databases[0]["string"] == 4
    assert summary.expired == {0: {"string": 2}}


# What Redis 8.2.3 answered to DUMP, less version and checksum: eleven fields with numbers and strings of all sizes, all of
# which expire at 4000000000123, but one at 4000000000999; the same compressed; one whose other field is long and stays.
PACKED = [
    "197b409452a3030000417c7c0100002100816b02e05061626162616261626162616261626162616261626162616261626162616261626162616261"
    "6261626162616261626162616261626162616261626162616261626162616261626162616261626162616252f47b409452a303000009816a02f2ff"
    "ff7f04f47b409452a303000009816902e0647878787878787878787878787878787878787878787878787878787878787878787878787878787878"
    "7878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878"
    "66f47b409452a3030000098168028573686f727406f47b409452a303000009816702f4000000000000004009f47b409452a303000009816602f300"
    "00008005f47b409452a303000009816502f270110104f47b409452a303000009816402d44802f47b409452a303000009816202dfff02f47b409452"
    "a3030000098161020501f47b409452a303000009816302c12c02f4e7439452a303000009ff",
    "197b409452a3030000c3408d417c0c7c0100002100816b02e0506162e045011252f47b409452a303000009816a02f2ffff7f04e00211046902e064"
    "78e05a000066e002730868028573686f727406e00213036702f4008000014009e00216026602f32015018005e00212056502f2701101e003c30464"
    "02d44802e00221036202dfffe0030f0361020501e0021e076302c12c02f4e74381140109ff",
    "197b409452a3030000c3406053ac1bac13000006008161020101f47b409452a3030000098362696704f088201a0079e0ff00e0ff00e0ff00e0ff00"
    "e0ff00e0ff00e0ff00e0ff00e0ff00e0ff00e0ff00e0ff00e0ff00e0ff00e0ff00e0ff00e0ff00e0ff00e0ee0004278d0001ff",
]


TWENTY = struct.pack("<q", 20)


@pytest.mark.parametrize(("number", "last"), [(0, 4_000_000_000_999), (1, 4_000_000_000_999), (2, None)])
def test_a_small_hash_goes_with_the_last_of_its_fields(number: int, last: int | None) -> None:
    recorded = bytes.fromhex(PACKED[number])
    data = dump(b"\xfe\x00", key(recorded[0], recorded[1:]), key(0, string(b"v")), magic=b"REDIS0012")
    summary = rdb.walk(iter([data]))
    assert summary.faults == [] and summary.counted and summary.first_expiry == last and summary.expiring == {}


@pytest.mark.parametrize(
    ("code", "value", "last"),
    [
        (22, length(2) + length(30) + string(b"a") + string(b"v") + length(20) + string(b"b") + string(b"v"), 30),
        (22, length(2) + length(30) + string(b"a") + string(b"v") + length(0) + string(b"b") + string(b"v"), None),
        (23, string(listpack(b"a", b"v", 20, b"b", b"v", 30)), 30),
        (23, string(listpack(b"a", b"v", 20, b"b", b"v", 0)), None),
        (24, TWENTY + length(2) + length(1) + string(b"a") + string(b"v") + length(11) + string(b"b") + string(b"v"), 30),
        (24, TWENTY + length(2) + length(1) + string(b"a") + string(b"v") + length(0) + string(b"b") + string(b"v"), None),
        (25, TWENTY + string(listpack(b"a", b"v", 20, b"b", b"v", 30)), 30),
    ],
)  # fmt: skip
def test_a_hash_goes_with_the_last_of_its_fields(code: int, value: bytes, last: int | None) -> None:
    data = dump(b"\xfe\x00", key(code, value), magic=b"REDIS0012")
    for moment, gone in ((29, 0), (30, 1)):
        summary = rdb.walk(iter([data]), expired_by=moment)
        assert summary.faults == [] and summary.first_expiry == last
        assert summary.expired == ({0: {"hash": 1}} if last and gone else {}) and summary.expired_expiring == {}
        assert summary.emptied == (gone if last else 0)


def test_a_hash_of_valkey_goes_with_the_last_of_its_fields_or_at_its_own_expiry() -> None:
    fields = length(2) + string(b"a") + string(b"v") + struct.pack("<q", 20) + string(b"b") + string(b"v") + struct.pack("<q", 30)
    expiring = b"\xfc" + struct.pack("<q", 25) + key(22, fields, b"expires")
    data = dump(b"\xfe\x00", key(22, fields), expiring, magic=b"VALKEY080")
    found = []
    for moment in (24, 25, 30):
        summary = rdb.walk(iter([data]), expired_by=moment)
        assert summary.first_expiry == 25
        found.append((summary.expired.get(0, {}), summary.expired_expiring.get(0, {}), summary.emptied))
    assert found == [({}, {}, 0), ({"hash": 1}, {"hash": 1}, 0), ({"hash": 2}, {"hash": 1}, 2)]


def test_every_damage_of_a_packed_hash_is_a_fault_and_no_traceback() -> None:
    for text in PACKED:
        whole = bytes.fromhex(text)
        for place in range(1, len(whole)):
            for value in (whole[place] ^ 0xFF, whole[place] ^ 1, 0xFE, 0):
                changed = whole[:place] + bytes([value]) + whole[place + 1 :]
                rdb.walk(iter([dump(b"\xfe\x00", key(changed[0], changed[1:]), magic=b"REDIS0012")]))
            cut = rdb.walk(iter([dump(b"\xfe\x00", key(whole[0], whole[1:place]), magic=b"REDIS0012")]))
            assert cut.faults or cut.notes


def test_an_unknown_type_is_named_and_the_checksum_still_proves_the_bytes() -> None:
    data = dump(b"\xfe\x00", key(0, string(b"v")), key(77, b"who knows what this is"), magic=b"REDIS0019")
    summary = rdb.walk(pieces(data, 10))
    assert summary.faults == [] and not summary.counted and summary.checksum
    assert any("unknown type 77" in note and "not counted" in note for note in summary.notes)
    assert any("version 19" in note for note in summary.notes)
    damaged = bytearray(data)
    damaged[-12] ^= 1
    assert rdb.walk(iter([bytes(damaged)])).faults
    assert rdb.walk(iter([data + b"junk"])).faults
    assert rdb.walk(iter([data[:-1]])).faults


def test_a_missing_checksum_is_noted() -> None:
    summary = rdb.walk(iter([dump(b"\xfe\x00", key(0, string(b"v")), checksum=False)]))
    assert summary.faults == [] and not summary.checksum
    assert "no checksum" in summary.notes[0]


@pytest.mark.parametrize("data", [b"", b"REDIS", b"PK\x03\x04 some zip", b"REDISxxxx", b"REDIS0000\xff", b"VALKEYabc"])
def test_what_is_no_dump_is_said_to_be_none(data: bytes) -> None:
    (fault,) = rdb.walk(iter([data] if data else [])).faults
    assert "no Redis dump" in fault or "too early" in fault or "version 0" in fault


def test_memory_stays_flat_whatever_the_size() -> None:
    piece = bytes(1 << 20)
    huge = 300 * len(piece)
    head = b"REDIS0011\xfe\x00\x00\x01k\x81" + struct.pack(">Q", huge)

    def stream() -> Iterator[bytes]:
        yield head
        for __ in range(300):
            yield piece

    tracemalloc.start()
    try:
        summary = rdb.walk(stream())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert summary.faults == [f"the file ends too early, after {huge + len(head)} bytes"]
    assert peak < 8 * len(piece)
