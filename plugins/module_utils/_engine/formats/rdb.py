# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file that Redis and Valkey save their data in (RDB), walked through from its first byte to its last.

`walk` counts what is in it and checks that it is whole: no value is built, memory stays flat whatever the size. The
format is that of Redis 2.4 to 8 and Valkey 7.2 to 9, read in their `rdb.c`, `rdb.h` and `crc64.c`.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import one_line
from . import listpack

try:
    import anycrc  # type: ignore[import-not-found, import-untyped, unused-ignore]

    fast_crc: Any = anycrc.Model("CRC64-REDIS")
except ImportError:  # not installed, or no wheel for this machine: the same sum, more slowly
    fast_crc = None

# ---------------------------------------------------------------------------------------------------------- checksum

_REFLECTED = 0x95AC9329AC4BC9B5  # Jones' polynomial 0xad93d23594c935a9 with its bits in reverse (Redis: crc64.c)
# A sparse multiple of that polynomial: x^341376 ≡ the sum of x to these powers. Multiplying by x^341376 is then six
# shifts of one large number, which Python does at the speed of memory; a unit test proves the congruence.
_BLOCK_BITS = 341376
_POWERS = (2918, 2339, 1638, 1479, 1256, 368)
_BLOCK = _BLOCK_BITS // 8
_OVER = max(_POWERS)
_SHIFTS = tuple(_OVER - power for power in _POWERS)
_OVER_MASK = (1 << _OVER) - 1
_FOLDED = _BLOCK_BITS - 2 * _OVER


def _table() -> tuple[int, ...]:
    rows = []
    for row in range(256):
        for __ in range(8):
            row = (row >> 1) ^ (_REFLECTED if row & 1 else 0)
        rows.append(row)
    return tuple(rows)


_TABLE = _table()


class FoldedCrc64:
    """CRC-64 of Redis in plain Python, about 200 MB/s: blocks are folded into one, which a table reduces at the end."""

    def __init__(self) -> None:
        self._folded = 0
        self._pending = b""

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(self._pending + bytes(data)) if self._pending else memoryview(data)
        whole = len(view) // _BLOCK * _BLOCK
        folded = self._folded
        for start in range(0, whole, _BLOCK):
            wide = 0
            for shift in _SHIFTS:
                wide ^= folded << shift
            over = wide & _OVER_MASK  # what became longer than a block: folded once more
            folded = (wide >> _OVER) ^ int.from_bytes(view[start : start + _BLOCK], "little")
            for shift in _SHIFTS:
                folded ^= over << (_FOLDED + shift)
        self._folded = folded
        self._pending = bytes(view[whole:])

    def value(self) -> int:
        """The checksum of everything so far."""
        crc = 0
        folded = self._folded.to_bytes(_BLOCK, "little") if self._folded else b""
        for byte in folded + self._pending:
            crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
        return crc


class FastCrc64:
    """The same by the C library anycrc, at several GB/s."""

    def __init__(self) -> None:
        self._crc = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._crc = fast_crc.calc(bytes(data), self._crc)

    def value(self) -> int:
        """The checksum of everything so far."""
        return self._crc


def new_crc() -> FoldedCrc64 | FastCrc64:
    """A checksum of nothing yet, by the fastest means at hand."""
    return FoldedCrc64() if fast_crc is None else FastCrc64()


# ------------------------------------------------------------------------------------------------------------ summary

NEWEST_REDIS, OLDEST_VALKEY, NEWEST_VALKEY = 12, 80, 81
"""Format versions known here; 12 to 79 are Redis's own, Valkey went on at 80 (valkey: rdb.h)."""


@dataclass
class Summary:
    """What a walk found. `faults` are sentences: the file is not whole; `notes` are worth knowing and no fault.

    The counts are only those of the whole file where `counted` is true.
    """

    version: int = 0
    aux: dict[str, str] = field(default_factory=dict)
    databases: dict[int, Counter[str]] = field(default_factory=dict)
    """Database → type → keys."""
    expiring: dict[int, Counter[str]] = field(default_factory=dict)
    """The same of the keys that have an expiry."""
    expired: dict[int, Counter[str]] = field(default_factory=dict)
    """The same of the keys that are gone by the moment that `walk` was asked about: their own expiry has come, or that of
    the last of a hash's fields."""
    expired_expiring: dict[int, Counter[str]] = field(default_factory=dict)
    """The same of those among them that have an expiry of their own."""
    emptied: int = 0
    """How many of them are hashes without a field: a server may leave these out without a word when it loads the file."""
    expired_by: int | None = None
    first_expiry: int | None = None
    """When the first key goes, in ms since 1970."""
    functions: int = 0
    modules: set[str] = field(default_factory=set)
    size: int = 0
    counted: bool = False
    checksum: bool = False
    """Whether the file carries a checksum (`rdbchecksum no` leaves it out) and it is right."""
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def keys(self) -> int:
        """Keys in all databases."""
        return sum(types.total() for types in self.databases.values())

    @property
    def server(self) -> str:
        """The server that wrote the file, as far as it says."""
        if "valkey-ver" in self.aux:
            return f"Valkey {self.aux['valkey-ver']}"
        return f"Redis {self.aux['redis-ver']}" if "redis-ver" in self.aux else "an unnamed server"


class Damaged(Exception):
    """The file cannot be what it says; the text is a sentence."""


class Unknown(Exception):
    """Something newer than this walker; the text names it."""


# -------------------------------------------------------------------------------------------------------------- bytes

_AHEAD = 64  # the longest run of bytes that is looked at as a whole: opcodes, lengths, a stream's fixed-size ids
_TEXT_KEPT = 4096


class _Window:
    """A forward-only view of the file; everything that is passed goes into the checksum."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces = pieces
        self._start = 0  # the offset in the file of the window's first byte
        self._counted = 0  # up to here the window's bytes are in the checksum
        self.crc = new_crc()
        self.data = b""
        self.at = 0

    @property
    def offset(self) -> int:
        return self._start + self.at

    def _count(self, until: int) -> None:
        if until > self._counted:
            self.crc.update(memoryview(self.data)[self._counted : until])
            self._counted = until

    def more(self, wanted: int) -> bool:
        """Make `wanted` bytes visible from here on; False where the file ends before."""
        while len(self.data) - self.at < wanted:
            piece = next(self._pieces, b"")
            if not piece:
                return False
            self._count(self.at)
            self._start += self.at
            self.data = self.data[self.at :] + piece
            self.at = self._counted = 0
        return True

    def take(self, size: int) -> bytes:
        at = self.at
        if at + size > len(self.data):
            if not self.more(size):
                raise Damaged(f"the file ends too early, after {self._start + len(self.data)} bytes")
            at = self.at
        self.at = at + size
        return self.data[at : at + size]

    def skip(self, size: int) -> None:
        at = self.at + size
        if at <= len(self.data):
            self.at = at
            return
        size -= len(self.data) - self.at
        while True:
            self._count(len(self.data))
            self._start += len(self.data)
            self.at = self._counted = 0
            self.data = next(self._pieces, b"")
            if not self.data:
                raise Damaged(f"the file ends too early, after {self._start} bytes")
            if size <= len(self.data):
                self.at = size
                return
            size -= len(self.data)

    def byte(self) -> int:
        at = self.at
        if at >= len(self.data):
            return self.take(1)[0]
        self.at = at + 1
        return self.data[at]

    def checksum(self) -> int:
        """The checksum of all bytes passed so far."""
        self._count(self.at)
        return self.crc.value()

    def drain(self) -> tuple[int, bytes]:
        """Go on to the end of the file: the checksum of all but its last eight bytes, and these."""
        tail = b""
        while True:
            data = tail + self.data[self.at :]
            self._count(self.at)
            self.crc.update(data[:-8])
            tail = data[-8:]
            self._start += len(self.data)
            self.data = next(self._pieces, b"")
            self.at = self._counted = 0
            if not self.data:
                return self.crc.value(), tail


# ------------------------------------------------------------------------------------------------------------- values

_ENCODED = {0: 1, 1: 2, 2: 4}  # 8, 16 and 32 bit integers in place of a string
_LZF = 3


def _length(window: _Window) -> int:
    """A number in Redis's own notation (rdb.c: rdbLoadLenByRef)."""
    first = window.byte()
    kind = first >> 6
    if kind == 0:
        return first
    if kind == 1:
        return (first & 0x3F) << 8 | window.byte()
    if first == 0x80:
        return int.from_bytes(window.take(4), "big")
    if first == 0x81:
        return int.from_bytes(window.take(8), "big")
    raise Damaged(f"a length is expected at byte {window.offset - 1}, and 0x{first:02x} is none")


def _skip_string(window: _Window) -> None:
    first = window.byte()
    kind = first >> 6
    if kind == 0:
        window.skip(first)
    elif kind == 1:
        window.skip((first & 0x3F) << 8 | window.byte())
    elif kind == 3:
        encoding = first & 0x3F
        if encoding == _LZF:
            compressed = _length(window)
            _length(window)
            window.skip(compressed)
        elif encoding in _ENCODED:
            window.skip(_ENCODED[encoding])
        else:
            raise Damaged(f"the string at byte {window.offset - 1} has the unknown encoding {encoding}")
    else:
        window.at -= 1
        window.skip(_length(window))


def _text(window: _Window) -> str:
    """A short string; of one that is long or compressed only that it is there."""
    first = window.byte()
    if first >> 6 == 3 and first & 0x3F in _ENCODED:
        return str(int.from_bytes(window.take(_ENCODED[first & 0x3F]), "little", signed=True))
    window.at -= 1
    if first >> 6 == 3:
        _skip_string(window)
        return "…"
    size = _length(window)
    if size > _TEXT_KEPT:
        window.skip(size)
        return "…"
    return window.take(size).decode(errors="backslashreplace")


def _content(window: _Window) -> bytes:
    """A short string as it was before it was compressed; raises ValueError where that cannot be told."""
    first = window.byte()
    if first >> 6 == 3 and first & 0x3F == _LZF:
        compressed, size = _length(window), _length(window)
        return listpack.decompress(window.take(compressed), size)
    window.at -= 1
    return window.take(_length(window))


def _strings(each: int) -> Callable[[_Window], None]:
    """Skips a collection of elements that are `each` strings long."""

    def skip(window: _Window) -> None:
        for __ in range(_length(window) * each):
            _skip_string(window)

    return skip


def _scored_as_text(window: _Window) -> None:
    for __ in range(_length(window)):
        _skip_string(window)
        size = window.byte()
        if size < 253:  # 253 to 255 are not-a-number and the infinities
            window.skip(size)


def _scored(window: _Window) -> None:
    for __ in range(_length(window)):
        _skip_string(window)
        window.skip(8)


def _quicklist(window: _Window) -> None:
    for __ in range(_length(window)):
        _length(window)  # whether the node is packed or plain
        _skip_string(window)


# A hash whose fields expire goes with the last of them, without an expiry of its own. These give when that is, in ms
# since 1970; None where a field stays.


def _last(moments: Iterable[int | None]) -> int | None:
    last, stays = 0, False
    for moment in moments:
        if moment is None:
            stays = True
        elif moment > last:
            last = moment
    return None if stays else last


def _hash_with_expiry(window: _Window) -> int | None:
    earliest = int.from_bytes(window.take(8), "little")  # the others are counted from one before it
    return _hash_with_absolute_expiry(window, earliest - 1)


def _hash_with_absolute_expiry(window: _Window, since: int = 0) -> int | None:
    def moments() -> Iterator[int | None]:
        for __ in range(_length(window)):
            expiry = _length(window)
            _skip_string(window)
            _skip_string(window)
            yield since + expiry if expiry else None

    return _last(moments())


def _valkey_hash_with_expiry(window: _Window) -> int | None:
    def moments() -> Iterator[int | None]:
        for __ in range(_length(window)):
            _skip_string(window)
            _skip_string(window)
            expiry = int.from_bytes(window.take(8), "little", signed=True)
            yield expiry if expiry >= 0 else None

    return _last(moments())


def _packed_with_absolute_expiry(window: _Window) -> int | None:
    at = window.offset
    try:
        return _last(int(expiry) or None for expiry in itertools.islice(listpack.elements(_content(window)), 2, None, 3))
    except ValueError as error:
        raise Damaged(f"the hash at byte {at} cannot be read: {error}") from None


def _packed_with_expiry(window: _Window) -> int | None:
    window.skip(8)  # the earliest of a field: the list has it, too
    return _packed_with_absolute_expiry(window)


def _stream(generation: int) -> Callable[[_Window], None]:
    """Skips a stream: listpacks, ids, groups with pending entries and consumers (rdb.c: rdbLoadObject)."""

    def skip(window: _Window) -> None:
        for __ in range(_length(window)):
            _skip_string(window)
            _skip_string(window)
        for __ in range(3 if generation == 1 else 8):  # length and last id; first id, last deleted id, entries added
            _length(window)
        for __ in range(_length(window)):
            _skip_string(window)
            for __ in range(2 if generation == 1 else 3):  # last delivered id; entries read
                _length(window)
            for __ in range(_length(window)):
                window.skip(16 + 8)
                _length(window)
            for __ in range(_length(window)):
                _skip_string(window)
                window.skip(8 if generation < 3 else 16)  # seen; active
                for __ in range(_length(window)):
                    window.skip(16)

    return skip


_MODULE_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _module_name(identity: int) -> str:
    """The name of a module's type: nine characters of six bits, above ten bits of version (module.c)."""
    return "".join(_MODULE_CHARACTERS[identity >> (10 + 6 * place) & 63] for place in range(8, -1, -1))


def _module_value(window: _Window) -> None:
    while opcode := _length(window):
        if opcode in (1, 2):
            _length(window)
        elif opcode == 3:
            window.skip(4)
        elif opcode == 4:
            window.skip(8)
        elif opcode == 5:
            _skip_string(window)
        else:
            raise Damaged(f"a module's value has the unknown part {opcode} before byte {window.offset}")


_VALUES: dict[int, tuple[str, Callable[[_Window], int | None]]] = {
    0: ("string", _skip_string),
    1: ("list", _strings(1)),
    2: ("set", _strings(1)),
    3: ("zset", _scored_as_text),
    4: ("hash", _strings(2)),
    5: ("zset", _scored),
    9: ("hash", _skip_string),
    10: ("list", _skip_string),
    11: ("set", _skip_string),
    12: ("zset", _skip_string),
    13: ("hash", _skip_string),
    14: ("list", _strings(1)),
    15: ("stream", _stream(1)),
    16: ("hash", _skip_string),
    17: ("zset", _skip_string),
    18: ("list", _quicklist),
    19: ("stream", _stream(2)),
    20: ("set", _skip_string),
    21: ("stream", _stream(3)),
}
_REDIS_VALUES = {
    **_VALUES,
    22: ("hash", _hash_with_absolute_expiry),
    23: ("hash", _packed_with_absolute_expiry),
    24: ("hash", _hash_with_expiry),
    25: ("hash", _packed_with_expiry),
}
_VALKEY_VALUES = {**_VALUES, 22: ("hash", _valkey_hash_with_expiry)}
_MODULE = 7

# --------------------------------------------------------------------------------------------------------------- walk

_SLOT_INFO, _FUNCTION, _MODULE_AUX, _IDLE, _FREQ, _AUX = 244, 245, 247, 248, 249, 250
_RESIZE, _EXPIRE_MS, _EXPIRE_S, _SELECT, _END = 251, 252, 253, 254, 255


def walk(pieces: Iterator[bytes], expired_by: int | None = None) -> Summary:
    """Walk through a whole file, given in pieces of any size, which are read to their end in every case.

    `expired_by` is a moment in milliseconds since 1970: keys that are gone by then are counted apart. What is
    wrong with the file is told in the summary, never raised; an error of `pieces` itself passes through.
    """
    summary = Summary(expired_by=expired_by)
    window = _Window(pieces)
    try:
        _header(window, summary)
        _body(window, summary)
        summary.counted = True
        _footer(window, summary)
    except Damaged as error:
        summary.faults.append(str(error))
        window.drain()
    except Unknown as error:
        _unknown(window, summary, str(error))
    summary.size = window.offset
    return summary


def saved_at(head: bytes) -> int | None:
    """When a dump was begun, in seconds since 1970, out of its first bytes (4 KiB will do); None where it does not say.

    The server writes its own clock into the head of the file, before any key (rdb.c: rdbSaveInfoAuxFields).
    """
    window, summary = _Window(iter([head])), Summary()
    with contextlib.suppress(Damaged, ValueError):
        _header(window, summary)
        while window.byte() == _AUX:
            _other(_AUX, window, summary, 0, None)
            if "ctime" in summary.aux:
                return int(summary.aux["ctime"])
    return None


def _header(window: _Window, summary: Summary) -> None:
    magic = window.take(9)
    name, digits = (magic[:6], magic[6:]) if magic[:6] == b"VALKEY" else (magic[:5], magic[5:])
    if name not in (b"REDIS", b"VALKEY") or not digits.isdigit():
        raise Damaged("it is no Redis dump: it does not begin with REDIS and a version")
    summary.version = int(digits)
    if summary.version < 1:
        raise Damaged("it says format version 0, which there never was")
    known = OLDEST_VALKEY <= summary.version <= NEWEST_VALKEY if name == b"VALKEY" else summary.version <= NEWEST_REDIS
    if not known:
        summary.notes.append(f"format version {summary.version} is newer than what is known here")


def _body(window: _Window, summary: Summary) -> None:
    values = _VALKEY_VALUES if summary.version >= OLDEST_VALKEY else _REDIS_VALUES
    expiry: int | None = None
    database = 0
    while True:
        if len(window.data) - window.at < _AHEAD:
            window.more(_AHEAD)  # rarely, so that most reads below need not ask
        opcode = window.byte()
        emptied: int | None = None
        if opcode in values:
            _skip_string(window)
            kind, skip = values[opcode]
            emptied = skip(window)
        elif opcode == _EXPIRE_MS:
            expiry = int.from_bytes(window.take(8), "little", signed=True)
            continue
        elif opcode == _MODULE:
            _skip_string(window)
            kind = _module_name(_length(window))
            summary.modules.add(kind)
            _module_value(window)
        elif opcode == _END:
            return
        else:
            database, expiry = _other(opcode, window, summary, database, expiry)
            continue
        _add(summary, database, kind, expiry)
        if expiry is not None or emptied is not None:
            _add_end(summary, database, kind, expiry, emptied)
        expiry = None


def _add(summary: Summary, database: int, kind: str, expiry: int | None) -> None:
    _types(summary.databases, database)[kind] += 1
    if expiry is not None:
        _types(summary.expiring, database)[kind] += 1


def _add_end(summary: Summary, database: int, kind: str, expiry: int | None, emptied: int | None) -> None:
    """A key that will go: because its own expiry comes, or because its last field's does."""
    end = min(moment for moment in (expiry, emptied) if moment is not None)
    if summary.first_expiry is None or end < summary.first_expiry:
        summary.first_expiry = end
    if summary.expired_by is None or end > summary.expired_by:
        return
    _types(summary.expired, database)[kind] += 1
    if expiry is not None:
        _types(summary.expired_expiring, database)[kind] += 1
    if emptied is not None and emptied <= summary.expired_by:
        summary.emptied += 1


def _types(counts: dict[int, Counter[str]], database: int) -> Counter[str]:
    types = counts.get(database)
    if types is None:
        types = counts[database] = Counter()
    return types


def _other(opcode: int, window: _Window, summary: Summary, database: int, expiry: int | None) -> tuple[int, int | None]:
    """Everything that is rare; gives the database and the expiry of the key that comes next."""
    if opcode == _EXPIRE_S:
        (seconds,) = struct.unpack("<i", window.take(4))
        return database, seconds * 1000
    if opcode == _SELECT:
        return _length(window), expiry
    if opcode == _AUX:
        name = _text(window)
        summary.aux[name] = one_line(_text(window), 200)
    elif opcode == _RESIZE:
        _length(window)
        _length(window)
    elif opcode == _IDLE:
        _length(window)
    elif opcode == _FREQ:
        window.skip(1)
    elif opcode == _SLOT_INFO:
        for __ in range(3):
            _length(window)
    elif opcode == _FUNCTION:
        _skip_string(window)
        summary.functions += 1
    elif opcode == _MODULE_AUX:
        summary.modules.add(_module_name(_length(window)))
        _module_value(window)
    else:
        raise Unknown(f"the unknown type {opcode} at byte {window.offset - 1}")
    return database, expiry


def _footer(window: _Window, summary: Summary) -> None:
    if summary.version >= 5:
        calculated = window.checksum()
        _judge(calculated, window.take(8), summary)
    if window.more(1):
        end = window.offset
        window.drain()
        raise Damaged(f"something follows its end: {window.offset - end} bytes after byte {end}")


def _judge(calculated: int, stored: bytes, summary: Summary) -> None:
    checksum = int.from_bytes(stored, "little")
    if checksum == 0 and calculated != 0:
        summary.notes.append("it carries no checksum of its own (the server runs with rdbchecksum no)")
    elif checksum != calculated:
        raise Damaged(f"its checksum is wrong: it says {checksum:016x}, and its bytes give {calculated:016x}")
    else:
        summary.checksum = True


def _unknown(window: _Window, summary: Summary, what: str) -> None:
    """Nothing after an unknown type can be told apart, but the checksum still proves or disproves the bytes."""
    calculated, tail = window.drain()
    try:
        _judge(calculated, tail, summary)
    except Damaged as error:
        summary.faults.append(f"{error} (and it has {what})")
        return
    if not summary.checksum:
        summary.faults.append(f"it has {what} and no checksum: nothing proves that it is whole")
    summary.notes.append(f"it has {what}, which is newer than this program: its keys are not counted")
