"""Blocks: the same digests whatever the order of writes, and a CRC put together from parts."""

from __future__ import annotations

import itertools
import random
import threading
import zlib
from itertools import pairwise

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from isal.isal_zlib import crc32, crc32_combine

from streamconv.output import blocks, checksums
from streamconv.output import digests as block_digests
from streamconv.output.blocks import Blocks
from streamconv.output.digests import BlockDigests
from streamconv.tensors.refs import ChecksumSlot, OutputFile
from support import helpers

SMALL = 64


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    """16 MiB are the same as 64 bytes here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", SMALL)
        for module in (checksums, block_digests):
            patch.setattr(module, "CHUNK", 10)
        yield


class File:
    """A file in memory, with its digests."""

    def __init__(
        self, size: int, slots: tuple[ChecksumSlot, ...] = (), texts: tuple[tuple[int, bytes], ...] = ()
    ) -> None:
        self.data = bytearray(size)
        self.file = OutputFile("file", size, texts, {}, slots)
        self.reads = self.behind = 0
        self.told: dict[int, tuple[bytes, int]] = {}
        self.begin(Blocks(size))

    def begin(self, blocks: Blocks) -> None:
        """A run that resumes from these blocks."""
        self.digests = BlockDigests(self.file, blocks, self._read_back, self._put, self._tell)

    def _tell(self, number: int, digest: bytes, crc: int) -> None:
        assert number not in self.told
        self.told[number] = digest, crc

    def _read_back(self, offset: int, length: int) -> bytes:
        self.reads += length
        return bytes(self.data[offset : offset + length])

    def _put(self, offset: int, piece: memoryview) -> None:
        self.data[offset : offset + len(piece)] = piece

    def write(self, offset: int, piece: bytes) -> None:
        self.behind += self.digests.digest(offset, memoryview(piece))
        self._put(offset, memoryview(piece))
        self.digests.wrote(offset, len(piece))

    def parts(self, content: bytes, cuts: set[int], left: set[int]) -> list[tuple[int, bytes]]:
        """What is to be written of the content, in parts that end at these places, and at blocks but within tensors.

        Checksums are not, nor the literals that begin at the places `left`; the others come with bytes of tensors.
        """
        spans = [(offset, offset + len(data)) for offset, data in self.file.literals_between_slots()]
        holes = [(at, at + slot.length) for at, slot in self.file.slot_offsets()]
        holes = sorted(holes + [span for span in spans if span[0] in left])
        inside = {place for begin, end in spans for place in range(begin + 1, end)}
        of_literals = {place for begin, end in spans for place in range(begin, end)}
        blocks_in = {place for place in range(0, len(content), SMALL) if {place - 1, place} & of_literals}
        found = []
        for begin, end in zip([0, *(b for _, b in holes)], [*(a for a, _ in holes), len(content)], strict=True):
            edges = sorted({begin, end, *(cut for cut in (cuts - inside) | blocks_in if begin < cut < end)})
            found += [(a, content[a:b]) for a, b in pairwise(edges) if {*range(a, b)} - of_literals]
        return found


@st.composite
def files(draw: st.DrawFn) -> tuple[File, bytes]:
    """A file with checksums of ranges, some of which follow their range and all of which stand again at the end."""
    ranges, at, extra = [], draw(st.integers(0, 20)), draw(st.booleans())
    for size in draw(st.lists(st.integers(1, 200), max_size=8)):
        ranges.append((at, at + size))
        at += size + 4 * extra + draw(st.integers(0, 30))
    firsts = [end for _, end in ranges] if extra else []
    lasts = list(itertools.accumulate((4 + draw(st.integers(0, 9)) for _ in ranges), initial=at))[: len(ranges)]
    copies = list(zip(*filter(None, (firsts, lasts)), strict=True))
    slots = tuple(ChecksumSlot(*one, places, 4, "big") for one, places in zip(ranges, copies, strict=True))
    size = max([at, *(place + 4 for place in lasts)]) + draw(st.integers(0, 100))
    taken = {place + i for slot in slots for place in slot.at for i in range(4)}
    places = sorted(draw(st.sets(st.integers(0, size), max_size=12)))
    held = taken | {place for span in list(pairwise(places))[::2] for place in range(*span)}
    edges = sorted(place for place in range(size + 1) if (place in held) != (place - 1 in held))
    content = bytearray(draw(st.randoms(use_true_random=False)).randbytes(size))
    for slot in slots:
        for place in slot.at:
            content[place : place + 4] = bytes(4)
    texts = tuple((begin, bytes(content[begin:end])) for begin, end in zip(edges[::2], edges[1::2], strict=True))
    content = helpers.with_checksums(OutputFile("file", size, (), {}, slots), bytes(content))
    return File(size, slots, texts), content


@st.composite
def parts_of(draw: st.DrawFn, file: File, content: bytes) -> list[tuple[int, bytes]]:
    """What is written of a file, in any order; it may leave out literals."""
    cuts = draw(st.sets(st.integers(0, len(content)), max_size=12))
    left = {offset for offset, data in file.file.literals_between_slots() if len(data) and draw(st.booleans())}
    return draw(st.permutations(file.parts(content, cuts, left)))


def digests(data: bytes) -> list[str]:
    return [xxhash.xxh3_128(data[i : i + SMALL]).hexdigest() for i in range(0, len(data), SMALL)]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(files(), st.data())
def test_digests_and_checksums_do_not_depend_on_the_order_of_writes(made, data) -> None:
    file, content = made
    for offset, piece in data.draw(parts_of(file, content)):
        file.write(offset, piece)
    file.digests.finish_ready()
    assert file.digests.complete
    assert file.data == content
    assert file.digests.hexdigests() == digests(content)
    assert file.behind == file.reads, "what is not digested when it is written is what is read back"


def test_what_comes_in_order_is_not_read_again() -> None:
    content = random.Random(0).randbytes(300)
    file = File(300)
    for offset in range(0, 300, 7):
        file.write(offset, content[offset : offset + 7])
    assert file.digests.hexdigests() == digests(content)
    assert file.reads == 0


def test_a_block_is_digested_as_soon_as_it_is_full() -> None:
    file = File(3 * SMALL)
    file.write(SMALL, bytes(SMALL))
    assert list(file.told) == [1]
    file.write(0, bytes(SMALL - 1))
    assert list(file.told) == [1]
    file.write(SMALL - 1, bytes(1))
    assert sorted(file.told) == [0, 1]


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(files(), st.data())
def test_a_file_is_resumed(made, data) -> None:
    """Some parts are written and counted, some of the finished blocks are known; the rest comes in any order."""
    file, content = made
    parts = data.draw(parts_of(file, content))
    count = data.draw(st.integers(0, len(parts)))
    for offset, piece in parts[:count]:
        file.write(offset, piece)
    known = Blocks(len(content))
    for number, (digest, crc) in file.told.items():
        if data.draw(st.booleans()):
            known.put(number, digest, crc)
    before, file.told = file.told, {}
    skipped = {number for number in before if number in known}
    file.begin(known)
    on_record = data.draw(st.integers(0, count))
    for offset, piece in parts[:on_record]:
        file.digests.note_resumed(offset, len(piece))
        assert file.digests.finished_earlier(offset, len(piece)) == all(
            number in skipped for number in range(offset // SMALL, -(-(offset + len(piece)) // SMALL))
        )
    for offset, piece in parts[on_record:]:
        for low, high in file.digests.to_write(offset, len(piece)):
            assert not skipped & set(range((offset + low) // SMALL, (offset + high - 1) // SMALL + 1))
            file.write(offset + low, piece[low:high])
    file.digests.finish_ready()
    assert file.digests.complete
    assert file.data == content
    assert file.digests.hexdigests() == digests(content)
    assert file.told.keys() == set(range(known.count)) - skipped


def test_a_checksum_waits_for_the_blocks_that_decide_it() -> None:
    content = random.Random(3).randbytes(3 * SMALL)
    file = File(
        3 * SMALL + 8, (ChecksumSlot(0, 3 * SMALL, (3 * SMALL + 2,), 4, "little"),), ((3 * SMALL + 2, bytes(4)),)
    )
    for offset in (2 * SMALL, 3 * SMALL, 3 * SMALL + 6, 0):
        file.write(offset, content[offset : offset + SMALL] if offset < 3 * SMALL else b"xx")
    assert sorted(file.told) == [0, 2]
    file.write(SMALL, content[SMALL : 2 * SMALL])
    assert sorted(file.told) == [0, 1, 2, 3]
    assert file.data[-8:] == b"xx" + zlib.crc32(content).to_bytes(4, "little") + b"xx"
    assert file.reads == len(b"xx"), "nothing but what follows the checksum in its block"


def test_a_block_of_nothing_but_a_checksum_is_finished_too() -> None:
    file = File(SMALL + 3, (ChecksumSlot(0, SMALL - 1, (SMALL - 1,), 4, "big"),), ((SMALL - 1, bytes(4)),))
    file.write(0, bytes(SMALL - 1))
    assert file.digests.complete
    assert file.data[-4:] == zlib.crc32(bytes(SMALL - 1)).to_bytes(4, "big")


@pytest.mark.parametrize("slots", [(), (ChecksumSlot(0, 6, (6,), 4, "big"),)])
def test_what_cannot_be_read_back_is_an_error(slots) -> None:
    file = OutputFile("file", 10, ((6, bytes(4)),) if slots else (), {}, slots)
    found = BlockDigests(file, Blocks(10), lambda offset, length: b"", lambda offset, data: None)
    with pytest.raises(OSError, match="shorter than what was written"):
        found.note_resumed(0, 6 if slots else 10)


def test_an_empty_file_is_complete() -> None:
    found = File(0).digests
    assert found.complete
    assert found.hexdigests() == []


def test_many_threads() -> None:
    content = random.Random(1).randbytes(SMALL * 50 + 13)
    pieces = [(i, content[i : i + 5]) for i in range(0, len(content), 5)]
    random.Random(2).shuffle(pieces)
    file = File(len(content) + 4, (ChecksumSlot(0, len(content), (len(content),), 4, "big"),))

    def work(number: int) -> None:
        for offset, piece in pieces[number::8]:
            file.write(offset, piece)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.data == content + zlib.crc32(content).to_bytes(4, "big")
    assert file.digests.hexdigests() == digests(bytes(file.data))


@given(st.binary(max_size=5000), st.integers(0, 5000))
def test_crcs_are_those_of_zlib(data, cut) -> None:
    """Zip archives and torch hold zlib's; both halves of the data also begin where nothing is aligned."""
    assert crc32(memoryview(data)[cut:], crc32(memoryview(data)[:cut])) == zlib.crc32(data)


@settings(deadline=None)
@given(st.binary(max_size=100), st.binary(max_size=100))
def test_two_crcs_make_one(first, second) -> None:
    assert crc32_combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_two_crcs_make_one_over_gigabytes() -> None:
    """Zeros, doubled from a MiB to 16 GiB; then the same 16 GiB in other parts."""
    crcs = {20: zlib.crc32(bytes(1 << 20))}
    for power in range(20, 34):
        crcs[power + 1] = crc32_combine(crcs[power], crcs[power], 1 << power)
    assert crcs[24] == zlib.crc32(bytes(1 << 24))
    large = crc32_combine(crcs[33], crcs[32], 1 << 32)
    assert crc32_combine(large, crcs[32], 1 << 32) == crc32_combine(crcs[32], large, 3 << 32) == crcs[34]


def test_the_real_block_is_16_mib() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 16 << 20)
        file = File((16 << 20) + 1)
        file.write(0, bytes((16 << 20) + 1))
    assert len(file.told) == 2
