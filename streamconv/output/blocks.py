"""Blocks: fixed 16 MiB ranges of an output file, the unit of digest and of durability.

Boxes are written in any order; a block is done when all its bytes are. What arrives in order is digested from memory
on the way; the rest is read back when the block is complete, most of it from the page cache. Of a file that an earlier
run began, the blocks it finished are known, and what else it left is counted without being looked at.
"""

from __future__ import annotations

import errno
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import xxhash

from ..tensors.refs import Seal

BLOCK = 16 << 20
SEAL_BYTES = 4
_DIGEST_BYTES = 16
_CHUNK = 1 << 20

Buffer = memoryview
ReadBack = Callable[[int, int], bytes]
OnBlock = Callable[[int, bytes, int], None]
"""Told of a finished block: its number, its digest, its CRC-32 (0 where none is wanted)."""


class Blocks:
    """The finished blocks of a file of `size` bytes, each with its digest and CRC-32: 21 bytes a block."""

    def __init__(self, size: int) -> None:
        self.count = -(-size // BLOCK)
        self._digests = bytearray(_DIGEST_BYTES * self.count)
        self._crcs = array("I", bytes(4 * self.count))
        self._done = bytearray(self.count)

    def __contains__(self, number: int) -> bool:
        return bool(self._done[number])

    def __bool__(self) -> bool:
        return any(self._done)

    def put(self, number: int, digest: bytes, crc: int) -> None:
        """Note that a block is finished."""
        self._digests[_DIGEST_BYTES * number : _DIGEST_BYTES * (number + 1)] = digest
        self._crcs[number] = crc
        self._done[number] = 1

    def finished(self) -> bytes:
        """For each block 1 if it is finished now, else 0."""
        return bytes(self._done)

    def crc(self, number: int) -> int:
        """The CRC-32 of a finished block."""
        return self._crcs[number]

    def hexdigests(self) -> list[str]:
        """The digests of all blocks, in order."""
        return [self._digests[at : at + _DIGEST_BYTES].hex() for at in range(0, len(self._digests), _DIGEST_BYTES)]


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
        size: bytes of the file, but for what is appended in the end.
        blocks: the blocks that are finished already.
        read_back: reads (offset, length) of the file as it is now; fewer bytes where it ends.
        crc: keep a CRC-32 of every block too.
        on_block: told of each block that is finished.
    """

    def __init__(
        self, size: int, blocks: Blocks, read_back: ReadBack, crc: bool = False, on_block: OnBlock | None = None
    ) -> None:
        self.size = size
        self._read_back = read_back
        self._crc = crc
        self._on_block = on_block
        self._open: dict[int, _Block] = {}
        self._lock = threading.Lock()
        self._fresh: list[int] = []
        self._blocks = blocks
        self._missing = sum(number not in blocks for number in range(-(-size // BLOCK)))
        # Blocks of an earlier run are not written again; those of this one nobody writes twice.
        self._skipped = blocks.finished() if blocks else b""

    @property
    def complete(self) -> bool:
        """Whether every byte is written."""
        return not self._missing

    def fresh(self) -> list[tuple[int, int]]:
        """The blocks that were finished since this was last asked, as (offset, length): nobody reads them again."""
        with self._lock:
            numbers, self._fresh = sorted(self._fresh), []
        return [(number * BLOCK, BLOCK) for number in numbers]

    def wanted(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Which of these bytes are to be written, as (low, high) counted from `offset`: no block of an earlier run."""
        begin = at = 0
        while self._skipped and at < length:
            number, inside = divmod(offset + at, BLOCK)
            end = min(length, at + BLOCK - inside)
            if self._skipped[number]:
                if begin < at:
                    yield begin, at
                begin = end
            at = end
        if begin < length:
            yield begin, length

    def has(self, offset: int, length: int) -> bool:
        """Whether an earlier run finished all blocks that these bytes lie in."""
        return bool(self._skipped) and all(self._skipped[offset // BLOCK : -(-(offset + length) // BLOCK)])

    def held(self, offset: int, length: int) -> None:
        """Note that an earlier run wrote these bytes, which are not in memory."""
        for low, high in self.wanted(offset, length):
            self.wrote(offset + low, high - low)

    def digest(self, offset: int, data: Buffer) -> int:
        """Digest bytes that are about to be written at `offset`, as far as what comes before them is digested.

        Returns:
            How many of them, at the beginning, are not: these will be read back.
        """
        behind = 0
        for number, inside, low, high in _by_block(offset, len(data)):
            block = self._block(number)
            with block.lock:
                if block.hashed == inside:
                    self._hash(block, data[low:high])
                else:
                    behind = high
        return behind

    def wrote(self, offset: int, count: int) -> None:
        """Note that `count` bytes are in the file at `offset`. Every byte of the file is noted once."""
        for number, _, low, high in _by_block(offset, count):
            block = self._block(number)
            with block.lock:
                block.written += high - low
                if block.written == block.size:
                    self._finish(number, block)

    def _block(self, number: int) -> _Block:
        with self._lock:
            if number not in self._open:
                begin = number * BLOCK
                self._open[number] = _Block(begin, min(BLOCK, self.size - begin))
            return self._open[number]

    def _hash(self, block: _Block, data: Buffer) -> None:
        if block.digest is None:
            block.digest = xxhash.xxh3_128()
        block.digest.update(data)
        if self._crc:
            block.crc = zlib.crc32(data, block.crc)
        block.hashed += len(data)

    def _finish(self, number: int, block: _Block) -> None:
        digest = self._digest(block)
        with self._lock:
            del self._open[number]
            self._blocks.put(number, digest, block.crc)
            self._fresh.append(number)
            self._missing -= 1
        if self._on_block is not None:
            self._on_block(number, digest, block.crc)

    def _digest(self, block: _Block) -> bytes:
        """The digest of a block of which every byte is in the file."""
        while block.hashed < block.size:
            at = block.begin + block.hashed
            self._hash(block, memoryview(_exactly(self._read_back, at, min(_CHUNK, block.size - block.hashed))))
        return block.digest.digest() if block.digest else b""

    def extend(self, count: int) -> None:
        """Note that `count` bytes were appended to a complete file: the blocks they lie in are digested anew."""
        first = self.size // BLOCK
        self.size += count
        for number in range(first, -(-self.size // BLOCK)):
            begin = number * BLOCK
            block = _Block(begin, min(BLOCK, self.size - begin))
            self._blocks.put(number, self._digest(block), block.crc)

    def ordered(self) -> list[str]:
        """The digests of all blocks, in order."""
        return self._blocks.hexdigests()

    def total_crc(self) -> int:
        """CRC-32 of the whole file, once it is complete."""
        total = 0
        for number in range(-(-self.size // BLOCK)):
            total = combine_crc(total, self._blocks.crc(number), min(BLOCK, self.size - number * BLOCK))
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

    def fresh(self) -> list[tuple[int, int]]:
        """Blocks that are finished: none before the end."""
        return []

    def digest(self, offset: int, data: Buffer) -> int:
        """Digest bytes that are about to be written: none, and all will be read back."""
        return len(data)

    def wrote(self, offset: int, count: int) -> None:
        """Note that `count` bytes are in the file at `offset`. Every byte of the file is noted once."""
        with self._lock:
            self._written += count

    def wanted(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Which of these bytes are to be written: all of them."""
        yield 0, length

    def has(self, offset: int, length: int) -> bool:
        """Whether blocks with these bytes are finished: none is before the end."""
        return False

    def held(self, offset: int, length: int) -> None:
        """Note that an earlier run wrote these bytes."""
        with self._lock:
            self._written += length

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
            data = _exactly(self._read_back, at, min(_CHUNK, end - at))
            digests.update(memoryview(data))
            crc = zlib.crc32(data, crc)
        return crc


def _by_block(offset: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut `count` bytes at `offset` where blocks begin: block, place in it, low and high counted from `offset`."""
    low = 0
    while low < count:
        number, inside = divmod(offset + low, BLOCK)
        high = min(count, low + BLOCK - inside)
        yield number, inside, low, high
        low = high


def _exactly(read_back: ReadBack, offset: int, length: int) -> bytes:
    """Bytes that were written, read again."""
    data = read_back(offset, length)
    if len(data) < length:
        raise OSError(errno.EIO, "it is shorter than what was written to it")
    return data


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
