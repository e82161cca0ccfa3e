"""Blocks: the same digests whatever the order of writes, and a CRC put together from parts."""

from __future__ import annotations

import random
import threading
import zlib
from itertools import pairwise

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.output import blocks
from streamconv.output.blocks import BlockLedger, Blocks, SealedLedger, combine_crc

SMALL = 64


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    """16 MiB are the same as 64 bytes here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", SMALL)
        patch.setattr(blocks, "_CHUNK", 10)
        yield


class File:
    """A file in memory, with its ledger."""

    def __init__(self, size: int, crc: bool = False, tail: int = 0) -> None:
        self.data = bytearray(size)
        self.reads = self.behind = 0
        self.told: dict[int, tuple[bytes, int]] = {}
        self._size, self._crc, self._tail = size, crc, tail
        self.begin(Blocks(size + tail))

    def begin(self, blocks: Blocks) -> None:
        """A run that goes on from these blocks."""
        self.ledger = BlockLedger(self._size, blocks, self._read_back, self._crc, self._tell)

    def _tell(self, number: int, digest: bytes, crc: int) -> None:
        assert number not in self.told
        self.told[number] = digest, crc

    def _read_back(self, offset: int, length: int) -> bytes:
        self.reads += length
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, piece: bytes) -> None:
        self.behind += self.ledger.digest(offset, memoryview(piece))
        self.data[offset : offset + len(piece)] = piece
        self.ledger.wrote(offset, len(piece))


def digests(data: bytes) -> list[str]:
    return [xxhash.xxh3_128(data[i : i + SMALL]).hexdigest() for i in range(0, len(data), SMALL)]


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=400), st.data())
def test_digests_and_crc_do_not_depend_on_the_order_of_writes(content, data) -> None:
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=12))})
    pieces = data.draw(st.permutations([(a, content[a:b]) for a, b in pairwise(cuts)]))
    file = File(len(content), crc=True)
    for offset, piece in pieces:
        assert not file.ledger.complete
        file.write(offset, piece)
    assert file.ledger.complete
    assert file.ledger.ordered() == digests(content)
    assert file.ledger.total_crc() == zlib.crc32(content)
    assert file.behind == file.reads, "what is not digested when it is written is what is read back"


def test_what_comes_in_order_is_not_read_again() -> None:
    content = random.Random(0).randbytes(300)
    file = File(300)
    for offset in range(0, 300, 7):
        file.write(offset, content[offset : offset + 7])
    assert file.ledger.ordered() == digests(content)
    assert file.reads == 0


def test_a_block_is_digested_as_soon_as_it_is_full() -> None:
    file = File(3 * SMALL)
    file.write(SMALL, bytes(SMALL))
    assert list(file.told) == [1]
    file.write(0, bytes(SMALL - 1))
    assert list(file.told) == [1]
    file.write(SMALL - 1, bytes(1))
    assert sorted(file.told) == [0, 1]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 150))
def test_what_is_appended_is_digested_too(size, count) -> None:
    content = random.Random(size).randbytes(size + count)
    file = File(size, crc=True, tail=count)
    file.write(0, content[:size])
    file.data += content[size:]
    file.ledger.extend(count)
    assert file.ledger.ordered() == digests(content)
    assert file.ledger.complete
    assert file.ledger.size == size + count
    assert len(file.told) == -(-size // SMALL)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=400), st.data())
def test_a_file_is_gone_on_with(content, data) -> None:
    """Some pieces are written and counted, some of the finished blocks are known; the rest comes in any order."""
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=12))})
    pieces = data.draw(st.permutations([(a, content[a:b]) for a, b in pairwise(cuts)]))
    file, count = File(len(content), crc=True), data.draw(st.integers(0, len(pieces)))
    for offset, piece in pieces[:count]:
        file.write(offset, piece)
    known = Blocks(len(content))
    for number, (digest, crc) in file.told.items():
        if data.draw(st.booleans()):
            known.put(number, digest, crc)
    before, file.told = file.told, {}
    skipped = {number for number in before if number in known}
    file.begin(known)
    on_record = data.draw(st.integers(0, count))
    for offset, piece in pieces[:on_record]:
        file.ledger.held(offset, len(piece))
        assert file.ledger.has(offset, len(piece)) == all(
            number in skipped for number in range(offset // SMALL, -(-(offset + len(piece)) // SMALL))
        )
    for offset, piece in pieces[on_record:]:
        for low, high in file.ledger.wanted(offset, len(piece)):
            assert not skipped & set(range((offset + low) // SMALL, (offset + high - 1) // SMALL + 1))
            file.write(offset + low, piece[low:high])
    assert file.ledger.complete
    assert file.ledger.ordered() == digests(content)
    assert file.ledger.total_crc() == zlib.crc32(content)
    assert file.told.keys() == set(range(known.count)) - skipped


@pytest.mark.parametrize("kind", [BlockLedger, SealedLedger])
def test_what_cannot_be_read_back_is_an_error(kind) -> None:
    ledger = (
        BlockLedger(10, Blocks(10), lambda offset, length: b"")
        if kind is BlockLedger
        else SealedLedger(10, [], lambda offset, length: b"")
    )
    with pytest.raises(OSError, match="shorter than what was written"):
        ledger.held(0, 10)
        ledger.seal(lambda offset, data: None)


def test_an_empty_file_is_complete() -> None:
    ledger = BlockLedger(0, Blocks(0), lambda offset, length: b"", crc=True)
    assert ledger.complete
    assert ledger.ordered() == []
    assert ledger.total_crc() == zlib.crc32(b"")


def test_many_threads() -> None:
    content = random.Random(1).randbytes(SMALL * 50 + 13)
    pieces = [(i, content[i : i + 5]) for i in range(0, len(content), 5)]
    random.Random(2).shuffle(pieces)
    file = File(len(content), crc=True)

    def work(number: int) -> None:
        for offset, piece in pieces[number::8]:
            file.write(offset, piece)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.ledger.ordered() == digests(content)
    assert file.ledger.total_crc() == zlib.crc32(content)


@settings(deadline=None)
@given(st.binary(max_size=100), st.binary(max_size=100))
def test_two_crcs_make_one(first, second) -> None:
    assert combine_crc(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_two_crcs_make_one_over_gigabytes() -> None:
    """Zeros, doubled from a MiB to 16 GiB; then the same 16 GiB in other parts."""
    crcs = {20: zlib.crc32(bytes(1 << 20))}
    for power in range(20, 34):
        crcs[power + 1] = combine_crc(crcs[power], crcs[power], 1 << power)
    assert crcs[24] == zlib.crc32(bytes(1 << 24))
    large = combine_crc(crcs[33], crcs[32], 1 << 32)
    assert combine_crc(large, crcs[32], 1 << 32) == combine_crc(crcs[32], large, 3 << 32) == crcs[34]


def test_the_real_block_is_16_mib() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 16 << 20)
        file = File((16 << 20) + 1)
        file.write(0, bytes((16 << 20) + 1))
    assert len(file.told) == 2
