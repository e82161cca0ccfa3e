"""The digests of a file's blocks, made while the file is written in any order.

A block is done when all its bytes are written. What arrives in order is digested from memory on the way; the rest is
read back when the block is complete, most of it from the page cache. Literals come with the tensors around them, or are
put in their place when all those of the block are there. A checksum is put into its slot when the block of the slot is
digested, which waits for the blocks that decide it. Of a file that an earlier run began, the blocks it
finished are known, and what else it left is counted without being looked at.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from heapq import merge
from operator import itemgetter

import xxhash
from msgspec import Struct, field

from ..tensors.literals import Literals
from ..tensors.refs import OutputFile
from ..units import CHUNK
from .blocks import Blocks, block_at, by_block
from .checksums import RangeChecksums, ReadBack

Write = Callable[[int, memoryview], None]
OnBlock = Callable[[int, bytes, int], None]
"""Told of a finished block: its number, its digest, its CRC-32 (`Blocks`)."""


class _Block(Struct):
    """One block: how many bytes of tensors are missing in it, and its digest and CRC as far as bytes came in order."""

    begin: int
    end: int
    missing: int
    hashed_to: int
    digest: xxhash.xxh3_128 | None = None
    crc: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class BlockDigests:
    """Which bytes of one file are written, and the digests of its blocks. Used by several threads at once.

    Args:
        file: what the file has to be.
        blocks: the blocks that are finished already.
        read_back: reads (offset, length) of the file as it is now; fewer bytes where it ends.
        write: writes a checksum into the file.
        on_block: called for each block that is finished.
        mine: the blocks that are written; all where absent.
    """

    def __init__(
        self,
        file: OutputFile,
        blocks: Blocks,
        read_back: ReadBack,
        write: Write,
        on_block: OnBlock | None = None,
        mine: range | None = None,
    ) -> None:
        self._blocks, self._read, self._write, self._on_block = blocks, read_back, write, on_block
        self._checksums = RangeChecksums(file, blocks, self._read_back)
        self._literals = Literals(file, blocks.nbytes)
        self._are_there = bytearray(len(self._literals))
        self._has_slots = bool(file.slots)
        self._open: dict[int, _Block] = {}
        self._lock = threading.Lock()
        self._newly_finished: list[int] = []
        # Blocks of an earlier run are not written again; those of this one nobody writes twice.
        self._skipped = _skipped(blocks, mine)
        self._unfinished = self._skipped.count(0) if self._skipped else blocks.count
        #: Blocks that have all bytes of their tensors, with the first block that decides one of their checksums.
        self._filled = {
            number: self._checksums.first_needed(number)
            for number in range(blocks.count)
            if not (self._skipped and self._skipped[number]) and not self._bytes_of_tensors(*blocks.bounds(number))
        }

    @property
    def complete(self) -> bool:
        """Whether every byte of the blocks that are written is there."""
        return not self._unfinished

    def hexdigests(self) -> list[str]:
        """Return the digests of all blocks, in order."""
        return self._blocks.hexdigests()

    def head(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the literals that the file begins with, in blocks that tensors follow in: bytes come in order then."""
        for number in self._literals.head():
            offset, data = self._literals[number]
            if self._bytes_of_tensors(*self._blocks.bounds(block_at(offset))):
                yield offset, data

    def take_finished(self) -> list[tuple[int, int]]:
        """Return the blocks finished since the last call, as (offset, length); they are not read again."""
        with self._lock:
            numbers, self._newly_finished = sorted(self._newly_finished), []
        bounds = (self._blocks.bounds(number) for number in numbers)
        return [(begin, end - begin) for begin, end in bounds]

    def to_write(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield the bytes that are still to be written, as (low, high) counted from `offset`."""
        begin = 0
        for span in by_block(offset, length) if self._skipped else ():
            if self._skipped[span.number]:
                if begin < span.low:
                    yield begin, span.low
                begin = span.high
        if begin < length:
            yield begin, length

    def finished_earlier(self, offset: int, length: int) -> bool:
        """Return whether nothing is written to the blocks that these bytes lie in: they are finished, or another's."""
        return bool(self._skipped) and all(self._skipped[block_at(offset) : block_at(offset + length - 1) + 1])

    def note_resumed(self, offset: int, length: int) -> None:
        """Note that an earlier run wrote these bytes, which are not in memory."""
        for low, high in self.to_write(offset, length):
            self.wrote(offset + low, high - low)

    def digest(self, offset: int, data: memoryview) -> int:
        """Digest bytes that are about to be written at `offset`, as far as what comes before them is digested.

        Returns:
            How many of them, at the beginning, are not digested: these will be read back.
        """
        behind = 0
        for span in by_block(offset, len(data)):
            block = self._block(span.number)
            with block.lock:
                if block.hashed_to == offset + span.low:
                    self._hash(block, data[span.low : span.high])
                else:
                    behind = span.high
        return behind

    def wrote(self, offset: int, length: int) -> None:
        """Note that `length` bytes are in the file at `offset`. Every byte of a tensor is noted once.

        Raises:
            OSError: a block is complete and cannot be read back.
        """
        for number in self._literals.numbers(offset, offset + length):
            self._are_there[number] = 1
        for span in by_block(offset, length):
            begin, end = offset + span.low, offset + span.high
            of_tensors = end - begin - self._literals.bytes_in(begin, end)
            if not of_tensors:
                continue
            block = self._block(span.number)
            with block.lock:
                block.missing -= of_tensors
                is_filled = not block.missing
            if is_filled:
                with self._lock:
                    self._filled[span.number] = self._checksums.first_needed(span.number)
                self.finish_ready()

    def finish_ready(self) -> None:
        """Finish the blocks that are filled and whose checksums are decided.

        Raises:
            OSError: one cannot be read back.
        """
        while (number := self._take_ready()) is not None:
            self._finish(number, self._block(number))

    def _take_ready(self) -> int | None:
        with self._lock:
            for number, first in self._filled.items():
                if self._blocks.are_finished(first, number):
                    del self._filled[number]
                    return number
        return None

    def _block(self, number: int) -> _Block:
        with self._lock:
            if number not in self._open:
                begin, end = self._blocks.bounds(number)
                self._open[number] = _Block(begin, end, self._bytes_of_tensors(begin, end), begin)
            return self._open[number]

    def _bytes_of_tensors(self, begin: int, end: int) -> int:
        return end - begin - self._checksums.bytes_in(begin, end) - self._literals.bytes_in(begin, end)

    def _hash(self, block: _Block, data: memoryview) -> None:
        block.digest = block.digest or xxhash.xxh3_128()
        block.digest.update(data)
        if self._has_slots:
            block.crc = self._checksums.add(block.hashed_to, data, block.crc)
        block.hashed_to += len(data)

    def _finish(self, number: int, block: _Block) -> None:
        self._fill(block)
        self._hash_up_to(block, block.end)
        digest = block.digest.digest() if block.digest else b""
        with self._lock:
            del self._open[number]
            self._blocks.put(number, digest, block.crc)
            self._newly_finished.append(number)
            self._unfinished -= 1
        if self._on_block is not None:
            self._on_block(number, digest, block.crc)

    def _fill(self, block: _Block) -> None:
        """Put literals that are not there and checksums in their place, each when all before it is digested."""
        numbers = (n for n in self._literals.numbers(block.begin, block.end) if not self._are_there[n])
        literals = ((*self._literals[n], None) for n in numbers)
        slots = ((at, memoryview(b""), slot) for at, slot in self._checksums.copies(block.begin, block.end))
        for at, literal, slot in merge(literals, slots, key=itemgetter(0)):
            self._hash_up_to(block, at)
            data = literal if slot is None else self._checksums.encoded(slot)
            low, high = max(at, block.begin), min(at + len(data), block.end)
            self._write(low, data[low - at : high - at])
            self._hash(block, data[low - at : high - at])

    def _hash_up_to(self, block: _Block, end: int) -> None:
        while block.hashed_to < end:
            self._hash(block, memoryview(self._read_back(block.hashed_to, min(CHUNK, end - block.hashed_to))))

    def _read_back(self, offset: int, length: int) -> bytes:
        data = self._read(offset, length)
        if len(data) < length:
            raise OSError(errno.EIO, "it is shorter than what was written to it")
        return data


def _skipped(blocks: Blocks, mine: range | None) -> bytes:
    """Return for each block 1 if it is not written: finished, or not ours; nothing where all of them are."""
    if mine is None:
        return blocks.finished() if blocks else b""
    return bytes(done or number not in mine for number, done in enumerate(blocks.finished()))
