"""Blocks: fixed 16 MiB ranges of an output file, the unit of digest and of durability."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from ..tensors.extents import Span
from ..units import BLOCK

_DIGEST_BYTES = 16


class Blocks:
    """The finished blocks of a file of `size` bytes, each with its digest and a CRC-32: 21 bytes a block.

    The CRC is that of the part of the block that lies in a range with a checksum and reaches the end of the block;
    ranges are continued from it (`checksums.RangeChecksums`).

    Attributes:
        size: bytes of the file.
        nbytes: bytes of a block, but for the last one.
        count: how many there are.
    """

    def __init__(self, size: int) -> None:
        self.size, self.nbytes = size, BLOCK
        self.count = -(-size // BLOCK)
        self._digests = bytearray(_DIGEST_BYTES * self.count)
        self._crcs = array("I", bytes(4 * self.count))
        self._done = bytearray(self.count)

    def __contains__(self, number: int) -> bool:
        return bool(self._done[number])

    def __bool__(self) -> bool:
        return any(self._done)

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the offsets where a block begins and ends."""
        return number * BLOCK, min(self.size, (number + 1) * BLOCK)

    def put(self, number: int, digest: bytes, crc: int) -> None:
        """Note that a block is finished."""
        self._digests[_DIGEST_BYTES * number : _DIGEST_BYTES * (number + 1)] = digest
        self._crcs[number] = crc
        self._done[number] = 1

    def finished(self) -> bytes:
        """Return for each block 1 if it is finished now, else 0."""
        return bytes(self._done)

    def are_finished(self, first: int, stop: int) -> bool:
        """Return whether all blocks from `first` up to, not including, `stop` are finished."""
        return self._done.find(0, first, stop) < 0

    def crc(self, number: int) -> int:
        """Return the CRC-32 of a finished block."""
        return self._crcs[number]

    def hexdigests(self) -> list[str]:
        """Return the digests of all blocks, in order."""
        return [self._digests[at : at + _DIGEST_BYTES].hex() for at in range(0, len(self._digests), _DIGEST_BYTES)]


def block_at(offset: int) -> int:
    """Return the number of the block that holds the byte at `offset`."""
    return offset // BLOCK


def by_block(offset: int, length: int) -> Iterator[Span]:
    """Cut `length` bytes at `offset` of a file where blocks begin; the spans lie in blocks, not in extents."""
    low = 0
    while low < length:
        number, inside = divmod(offset + low, BLOCK)
        high = min(length, low + BLOCK - inside)
        yield Span(number, inside, low, high)
        low = high
