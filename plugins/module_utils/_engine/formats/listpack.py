# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A listpack, in which Redis keeps small values, and LZF, by which it compresses strings (redis: listpack.c, lzf_d.c).

Only what a walk through a dump must look into is read here: the expiries of a small hash's fields.
"""

from __future__ import annotations

from collections.abc import Iterator

_HEADER = 6  # total bytes, number of elements
_INTEGERS = {0xF1: 2, 0xF2: 3, 0xF3: 4, 0xF4: 8}
_END = 0xFF


def decompress(data: bytes, size: int) -> bytes:
    """What LZF made `data` of, which is `size` bytes long. Raises ValueError where it is not."""
    out = bytearray()
    at = 0
    try:
        while at < len(data):
            control = data[at]
            at += 1
            if control < 32:  # a run of bytes as they are
                out += data[at : at + control + 1]
                at += control + 1
                continue
            length = (control >> 5) + 2
            if length == 9:
                length += data[at]
                at += 1
            back = ((control & 31) << 8 | data[at]) + 1
            at += 1
            start = len(out) - back
            if start < 0:
                raise ValueError("an LZF string refers to what lies before it")
            piece = out[start : start + length]  # shorter where it goes on into what it writes: then it repeats itself
            out += (piece * -(-length // len(piece)))[:length]
            if len(out) > size:
                break
    except IndexError:
        raise ValueError("an LZF string ends too early") from None
    if len(out) != size:
        raise ValueError(f"an LZF string is {len(out)} bytes long and should be {size}")
    return bytes(out)


def elements(listpack: bytes) -> Iterator[int | bytes]:
    """The elements of a listpack, numbers and strings, in their order. Raises ValueError where it is none."""
    at = _HEADER
    try:
        while listpack[at] != _END:
            element, end = _element(listpack, at)
            yield element
            at = end + _length_of_length(end - at)
    except IndexError:
        raise ValueError("a listpack ends too early") from None
    if at + 1 != len(listpack):
        raise ValueError("a listpack goes on after its end")


def _element(data: bytes, at: int) -> tuple[int | bytes, int]:
    """The element that begins at `at`, and where it ends."""
    first = data[at]
    if first < 0x80:
        return first, at + 1
    if first < 0xC0:
        return _string(data, at + 1, first & 0x3F)
    if first < 0xE0:
        number = (first & 0x1F) << 8 | data[at + 1]
        return (number - (1 << 13) if number >= 1 << 12 else number), at + 2
    if first < 0xF0:
        return _string(data, at + 2, (first & 0x0F) << 8 | data[at + 1])
    if first == 0xF0:
        return _string(data, at + 5, int.from_bytes(data[at + 1 : at + 5], "little"))
    if first in _INTEGERS:
        size = _INTEGERS[first]
        return int.from_bytes(data[at + 1 : at + 1 + size], "little", signed=True), at + 1 + size
    raise ValueError(f"a listpack has an element of the unknown kind 0x{first:02x}")


def _string(data: bytes, start: int, size: int) -> tuple[bytes, int]:
    return data[start : start + size], start + size


def _length_of_length(size: int) -> int:
    """How many bytes tell an element's length, so that the list can be read backwards (lpEncodeBacklenBytes)."""
    return next((count for count, limit in ((1, 127), (2, 16383), (3, 2097151), (4, 268435455)) if size <= limit), 5)
