"""Blocks: fixed 16 MiB ranges of an output file, the unit of digest and of durability.

Boxes are written in any order; a block is done when all its bytes are. What arrives in order is digested from memory
on the way; the rest is read back, most of it from the page cache, when the block is complete.
"""

from __future__ import annotations

import threading
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import xxhash

from .tensors import Seal

BLOCK = 16 << 20
SEAL_BYTES = 4
_CHUNK = 1 << 20

Buffer = memoryview
ReadBack = Callable[[int, int], bytes]


@dataclass(slots=True)
class _Block:
    """One block: what of it is written, and its digest as far as its bytes came in order."""

    begin: int
    size: int
    written: int = 0
    hashed: int = 0
    digest: xxhash.xxh3_128 | None = None
    crc: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class BlockLedger:
    """Which bytes of one file are written, and the digests of its blocks.

    Args:
        size: bytes of the file.
        read_back: reads (offset, length) of the file as it is now.
        crc: keep a CRC-32 of every block too.
    """

    def __init__(self, size: int, read_back: ReadBack, crc: bool = False) -> None:
        self.size = size
        self._read_back = read_back
        self._crc = crc
        self._open: dict[int, _Block] = {}
        self._lock = threading.Lock()
        self.digests: dict[int, str] = {}
        self.crcs: dict[int, int] = {}

    @property
    def complete(self) -> bool:
        """Whether every byte is written."""
        return len(self.digests) == -(-self.size // BLOCK)

    def wrote(self, offset: int, data: Buffer) -> None:
        """Note that the bytes of `data` are in the file at `offset`. Every byte of the file is noted once."""
        begin = 0
        while begin < len(data):
            number, inside = divmod(offset + begin, BLOCK)
            end = min(len(data), begin + BLOCK - inside)
            self._add(number, inside, data[begin:end])
            begin = end

    def _add(self, number: int, inside: int, data: Buffer) -> None:
        with self._lock:
            if number not in self._open:
                begin = number * BLOCK
                self._open[number] = _Block(begin, min(BLOCK, self.size - begin))
            block = self._open[number]
        with block.lock:
            if block.hashed == inside:
                self._hash(block, data)
            block.written += len(data)
            if block.written == block.size:
                self._finish(number, block)

    def _hash(self, block: _Block, data: Buffer) -> None:
        if block.digest is None:
            block.digest = xxhash.xxh3_128()
        block.digest.update(data)
        if self._crc:
            block.crc = zlib.crc32(data, block.crc)
        block.hashed += len(data)

    def _finish(self, number: int, block: _Block) -> None:
        while block.hashed < block.size:
            length = min(_CHUNK, block.size - block.hashed)
            self._hash(block, memoryview(self._read_back(block.begin + block.hashed, length)))
        with self._lock:
            del self._open[number]
            self.digests[number] = block.digest.hexdigest() if block.digest else ""
            self.crcs[number] = block.crc

    def extend(self, count: int) -> None:
        """Note that `count` bytes were appended to a complete file: the blocks they lie in are digested anew."""
        first = self.size // BLOCK
        self.size += count
        for number in range(first, -(-self.size // BLOCK)):
            begin = number * BLOCK
            block = self._open[number] = _Block(begin, min(BLOCK, self.size - begin))
            self._finish(number, block)

    def ordered(self) -> list[str]:
        """The digests of all blocks, in order."""
        return [self.digests[number] for number in sorted(self.digests)]

    def total_crc(self) -> int:
        """CRC-32 of the whole file, once it is complete."""
        total = 0
        for number in sorted(self.crcs):
            total = combine_crc(total, self.crcs[number], min(BLOCK, self.size - number * BLOCK))
        return total


class SealedLedger:
    """The same for a file with seals: bytes are counted as they come, and digested when all are there.

    A seal has to be in the file before its block is digested, and most blocks have one: so the whole file is read back,
    once, in order.

    Args:
        size: bytes of the file.
        seals: in the file's order.
        read_back: reads (offset, length) of the file as it is now.
    """

    def __init__(self, size: int, seals: Sequence[Seal], read_back: ReadBack) -> None:
        self.size = size
        self._seals, self._read_back = seals, read_back
        self._written = 0
        self._lock = threading.Lock()

    @property
    def complete(self) -> bool:
        """Whether every byte is written, but for the seals."""
        return self._written == self.size

    def wrote(self, offset: int, data: Buffer) -> None:
        """Note that the bytes of `data` are in the file at `offset`. Every byte of the file is noted once."""
        with self._lock:
            self._written += len(data)

    def seal(self, write: Callable[[int, Buffer], None]) -> list[str]:
        """Write the seals; the digests of all blocks, in order."""
        digests, crcs, at = _Digests(), array("I"), 0
        for seal in self._seals:
            self._pass(at, seal.begin, digests)
            crcs.append(self._pass(seal.begin, seal.end, digests))
            self._pass(seal.end, seal.near, digests)
            at = _put(seal.near, crcs[-1], digests, write)
        for seal, crc in zip(self._seals, crcs, strict=True):
            self._pass(at, seal.far, digests)
            at = _put(seal.far, crc, digests, write)
        self._pass(at, self.size, digests)
        return digests.end()

    def _pass(self, begin: int, end: int, digests: _Digests) -> int:
        """Digest a range; its CRC."""
        crc = 0
        for at in range(begin, end, _CHUNK):
            data = self._read_back(at, min(_CHUNK, end - at))
            digests.update(memoryview(data))
            crc = zlib.crc32(data, crc)
        return crc


def _put(place: int, crc: int, digests: _Digests, write: Callable[[int, Buffer], None]) -> int:
    """Write a seal, digest it too, and say where it ends."""
    data = memoryview(seal_bytes(crc))
    write(place, data)
    digests.update(data)
    return place + len(data)


class _Digests:
    """The digests of blocks whose bytes come in order."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._current, self._filled = xxhash.xxh3_128(), 0

    def update(self, data: Buffer) -> None:
        while len(data):
            part = data[: BLOCK - self._filled]
            self._current.update(part)
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == BLOCK:
                self._close()

    def end(self) -> list[str]:
        if self._filled:
            self._close()
        return self._done

    def _close(self) -> None:
        self._done.append(self._current.hexdigest())
        self._current, self._filled = xxhash.xxh3_128(), 0


def seal_bytes(crc: int) -> bytes:
    """A seal as it stands in the file."""
    return crc.to_bytes(SEAL_BYTES, "little")


def combine_crc(first: int, second: int, length: int) -> int:
    """CRC-32 of two byte strings one after the other, from the CRC of each and the length of the second.

    Appending a zero byte is a linear map of the 32 bits of a CRC; appending `length` of them is that map to the power
    of `length`, by squaring (polynomial 0xEDB88320, reflected, as zlib's).
    """
    step = [0xEDB88320, *(1 << bit for bit in range(31))]
    step = _square(_square(_square(step)))
    while length:
        if length & 1:
            first = _times(step, first)
        step = _square(step)
        length >>= 1
    return first ^ second


def _times(matrix: list[int], vector: int) -> int:
    total = 0
    for row in matrix:
        if not vector:
            break
        if vector & 1:
            total ^= row
        vector >>= 1
    return total


def _square(matrix: list[int]) -> list[int]:
    return [_times(matrix, row) for row in matrix]
