"""The records of zip archives to be written, as torch 2.13 writes them (measured).

Names are UTF-8. The CRC of an entry that has bytes follows them, in a data descriptor.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from .zip_records import (
    CRC_IN_DIRECTORY,
    DESCRIBED,
    DESCRIPTOR_MAGIC,
    END,
    END_MAGIC,
    ENTRY,
    ENTRY_MAGIC,
    IN_ZIP64,
    IN_ZIP64_COUNT,
    LOCAL,
    LOCAL_MAGIC,
    LOCATOR,
    LOCATOR_MAGIC,
    NARROW_DESCRIPTOR,
    UTF8,
    WIDE_DESCRIPTOR,
    ZIP64_END,
    ZIP64_END_MAGIC,
    ZIP64_FIELD,
)


def local_header(name: bytes, at: int, size: int, alignment: int) -> bytes:
    """Return the header, at byte `at`, of an entry of `size` bytes, padded so that these are aligned.

    The padding is a field «FB» of Zs, and the zip64 field holds a large offset too, as torch writes them.

    Args:
        name: the entry's name.
        at: the offset of the header in the file.
        size: bytes of the entry.
        alignment: what the offset of the entry's bytes is a multiple of.
    """
    wide = _zip64_field([size, size] * (size >= IN_ZIP64) + [at] * (at >= IN_ZIP64))
    padding = -(at + LOCAL.size + len(name) + len(wide) + 4) % alignment
    extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    shown = IN_ZIP64 if size >= IN_ZIP64 else 0
    return LOCAL.pack(LOCAL_MAGIC, 0, _flags(size), 0, 0, 0, 0, shown, shown, len(name), len(extra)) + name + extra


def data_descriptor(size: int, wide: bool) -> bytes:
    """Return what follows an entry's bytes: its CRC-32 (0, to be filled in), and its size twice (8 bytes if wide)."""
    return (WIDE_DESCRIPTOR if wide else NARROW_DESCRIPTOR).pack(DESCRIPTOR_MAGIC, 0, size, size)


def directory(listed: Iterable[tuple[bytes, int, int]], begin: int) -> tuple[bytes, list[int]]:
    """Return the directory and end records, and the offset in the file of each entry's CRC (0 here).

    Args:
        listed: name, offset of the local header and size of each entry.
        begin: the offset of the directory.
    """
    data, places, count = bytearray(), [], 0
    for name, at, size in listed:
        places.append(begin + len(data) + CRC_IN_DIRECTORY)
        extra = _zip64_field([size, size] * (size >= IN_ZIP64) + [at] * (at >= IN_ZIP64))
        shown, place = min(size, IN_ZIP64), min(at, IN_ZIP64)
        lengths = len(name), len(extra), 0
        data += ENTRY.pack(ENTRY_MAGIC, 0, 0, _flags(size), 0, 0, 0, 0, shown, shown, *lengths, 0, 0, 0, place)
        data += name + extra
        count += 1
    length = len(data)
    data += ZIP64_END.pack(ZIP64_END_MAGIC, ZIP64_END.size - 12, 45, 45, 0, 0, count, count, length, begin)
    data += LOCATOR.pack(LOCATOR_MAGIC, 0, begin + length, 1)
    few, small = min(count, IN_ZIP64_COUNT), (min(length, IN_ZIP64), min(begin, IN_ZIP64))
    return bytes(data + END.pack(END_MAGIC, 0, 0, few, few, *small, 0)), places


def _flags(size: int) -> int:
    return UTF8 | (DESCRIBED if size else 0)


def _zip64_field(numbers: list[int]) -> bytes:
    return struct.pack(f"<2H{len(numbers)}Q", ZIP64_FIELD, 8 * len(numbers), *numbers) if numbers else b""
