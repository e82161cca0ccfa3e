"""CRC-32s of ranges of a file that is written in any order, put together from those of its blocks.

A block that is digested also gives the CRC of each range that ends in it, as far as that lies in the block, and of the
range that continues behind it. Both are joined without a look at the bytes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

from isal import isal_zlib

from ..tensors.refs import ChecksumSlot, OutputFile
from ..units import CHUNK
from .blocks import Blocks, block_at

ReadBack = Callable[[int, int], bytes]
"""Reads (offset, length) of a file as it is now; raises `OSError` where it ends before that."""

_UNKNOWN = -1


class RangeChecksums:
    """The CRC-32s that belong in the checksum slots of a file.

    Args:
        file: the file, with its slots.
        blocks: its finished blocks.
        read_back: reads what earlier runs wrote.
    """

    def __init__(self, file: OutputFile, blocks: Blocks, read_back: ReadBack) -> None:
        self._slots, self._blocks, self._read_back = file.slots, blocks, read_back
        self._begins = array("q", (slot.begin for slot in file.slots))
        self._offsets = array("q", (at for at, _ in file.slot_offsets()))
        # Per slot the CRC of its range, and of what of that lies in the block in which the range ends.
        self._values = array("q", [_UNKNOWN]) * len(file.slots)
        self._ends = array("q", [_UNKNOWN]) * len(file.slots)

    def copies(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield offset and slot of every copy of a checksum with a byte in a part of the file, ascending."""
        first = bisect_right(self._offsets, begin)
        if first and self._offsets[first - 1] + self._slot_of(first - 1).length > begin:
            first -= 1
        for copy in range(first, bisect_left(self._offsets, end)):
            yield self._offsets[copy], copy % len(self._slots)

    def _slot_of(self, copy: int) -> ChecksumSlot:
        return self._slots[copy % len(self._slots)]

    def bytes_in(self, begin: int, end: int) -> int:
        """Return the number of bytes in a part of the file that belong to slots."""
        lengths = ((at, at + self._slots[slot].length) for at, slot in self.copies(begin, end))
        return sum(min(high, end) - max(low, begin) for low, high in lengths)

    def first_needed(self, number: int) -> int:
        """Return the first block that decides a checksum in block `number`: it needs all from there on."""
        begins = (self._begins[slot] for _, slot in self.copies(*self._blocks.bounds(number)))
        return min(number, block_at(min(begins, default=self._blocks.size)))

    def add(self, offset: int, data: memoryview, crc: int) -> int:
        """Take bytes of a block, which come in order, into the checksums of the ranges that they lie in.

        Args:
            offset: where they lie in the file.
            data: the bytes.
            crc: what this gave for the bytes of the block before them; 0 for the first.

        Returns:
            The CRC of the range that continues behind them, as far as it lies in the block.
        """
        at, end = offset, offset + len(data)
        for number in range(max(0, bisect_right(self._begins, offset) - 1), len(self._slots)):
            slot = self._slots[number]
            if slot.begin >= end:
                break
            if slot.begin >= at:
                at, crc = slot.begin, 0
            if at < slot.end:
                stop = min(end, slot.end)
                crc = isal_zlib.crc32(data[at - offset : stop - offset], crc)
                at = stop
                if stop == slot.end:
                    self._ends[number] = crc
        return crc

    def encoded(self, number: int) -> memoryview:
        """Return a checksum as it stands in its slot; all bytes of its range are in the file and were added."""
        slot = self._slots[number]
        if self._values[number] == _UNKNOWN:
            copied = self._copied(number) if self._ends[number] == _UNKNOWN else None
            self._values[number] = self._joined(number) if copied is None else copied
        return memoryview(slot.encode(self._values[number]))

    def _copied(self, number: int) -> int | None:
        """The checksum from a copy in a block that an earlier run finished."""
        slot = self._slots[number]
        for at in slot.at:
            if self._blocks.are_finished(block_at(at), block_at(at + slot.length - 1) + 1):
                return int.from_bytes(self._read_back(at, slot.length), slot.order)
        return None

    def _joined(self, number: int) -> int:
        slot = self._slots[number]
        last, crc = block_at(slot.end - 1), 0
        for block in range(block_at(slot.begin), last):
            begin, end = self._blocks.bounds(block)
            crc = isal_zlib.crc32_combine(crc, self._blocks.crc(block), end - max(begin, slot.begin))
        begin = max(slot.begin, self._blocks.bounds(last)[0])
        if self._ends[number] == _UNKNOWN:
            self._ends[number] = self._read_crc(begin, slot.end)
        return isal_zlib.crc32_combine(crc, self._ends[number], slot.end - begin)

    def _read_crc(self, begin: int, end: int) -> int:
        crc = 0
        for at in range(begin, end, CHUNK):
            crc = isal_zlib.crc32(self._read_back(at, min(CHUNK, end - at)), crc)
        return crc
