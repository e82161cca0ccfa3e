"""Writing: every byte in its place, in any order, by several threads; blocks and CRC digested on the way."""

from __future__ import annotations

import os
import random
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from streamconv.errors import StorageError
from streamconv.formats import ckpt, layout
from streamconv.formats.layout import CKPT, MS_SAFETENSORS
from streamconv.output import blocks
from streamconv.output.file_writer import FileWriter
from streamconv.output.paths import ResultPaths
from streamconv.output.writer import FileSink
from streamconv.storage import access, device, disk
from streamconv.storage.access import Access
from streamconv.storage.regions import Region
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec, file_spans
from streamconv.units import BLOCK
from support import golden, helpers

U8 = dtypes.from_safetensors("U8", "here")
SPECS = [TensorSpec("a", dtypes.F32, (100, 7)), TensorSpec("b", dtypes.BF16, ()), TensorSpec("c", U8, (0, 3))]


def boxes(specs: list[TensorSpec], size: int, seed: int) -> list[tuple[str, int, bytes]]:
    """All bytes in parts of so many, shuffled."""
    parts = [
        (spec.name, begin, golden.golden_bytes(spec)[begin : begin + size])
        for spec in specs
        for begin in range(0, spec.nbytes, size)
    ]
    random.Random(seed).shuffle(parts)
    return parts


def written(
    folder: Path, placed: layout.FileLayout, parts: list[tuple[str, int, bytes]], access: Access = Access.READ
) -> dict[str, list[str]]:
    sink = FileSink(placed, ResultPaths(folder, False), helpers.Fresh(placed.files), access)
    for name, offset, data in parts:
        lying = in_phase(data, sink.placement(name, offset, len(data)))
        assert sink.put(name, offset, lying) in {file.name for file in placed.files}
    digests = sink.finish()
    sink.close()
    return digests


def in_phase(data: bytes, phase: int | None) -> memoryview:
    """The bytes as they are to lie in memory."""
    lying = Region(len(data)).array(len(data), np.dtype("<u1"), phase or 0)
    lying[...] = np.frombuffer(data, np.uint8)
    return lying.data


@pytest.mark.parametrize("kind", [CKPT, MS_SAFETENSORS])
@pytest.mark.parametrize("size", [1, 13, 4096])
@pytest.mark.parametrize("crc", [False, True])
@pytest.mark.parametrize("way", list(Access))
def test_any_order_gives_the_same_file(
    kind: str, size: int, crc: bool, way: Access, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(access, "DIRECT_LEAST", 1)
    placed = layout.lay_out(SPECS, kind, "a.ckpt", 1000, crc and kind == CKPT)
    data = {spec.name: golden.golden_bytes(spec) for spec in SPECS}
    digests = written(tmp_path, placed, boxes(SPECS, size, size), way)
    for file in placed.files:
        golden.write(tmp_path / "expected", file, data)
        expected = (tmp_path / "expected").read_bytes()
        expected = helpers.with_checksums(file, expected)
        assert not crc or kind != CKPT or expected[-17:] == helpers.crc_tail(zlib.crc32(expected[:-17]))
        assert (tmp_path / file.name).read_bytes() == expected
        assert digests[file.name] == [xxhash.xxh3_128_hexdigest(expected)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [4 * BLOCK // 3, 1 << 20])
@pytest.mark.parametrize("crc", [False, True])
def test_threads_and_blocks(size: int, crc: bool, tmp_path: Path) -> None:
    specs = [TensorSpec("a", dtypes.F32, (3, 1 << 21)), TensorSpec("b", dtypes.F32, (1 << 21, 2))]
    placed = layout.lay_out(specs, CKPT, "a.ckpt", 1, crc)
    sink, parts = FileSink(placed, ResultPaths(tmp_path, False), helpers.Fresh(placed.files)), boxes(specs, size, 1)

    def work(mine: list[tuple[str, int, bytes]]) -> None:
        for name, offset, data in mine:
            sink.put(name, offset, memoryview(data))

    threads = [threading.Thread(target=work, args=(parts[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    digests = sink.finish()["a.ckpt"]
    data = (tmp_path / "a.ckpt").read_bytes()
    assert digests == [xxhash.xxh3_128_hexdigest(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]
    assert len(digests) == 3
    if crc:
        assert data[-17:] == helpers.crc_tail(zlib.crc32(data[:-17]))
    for ref in golden.open_catalog(tmp_path / "a.ckpt").values():
        assert golden.stored_bytes(ref) == golden.golden_bytes(TensorSpec(ref.name, ref.dtype, ref.shape))


@pytest.mark.slow
@pytest.mark.parametrize("body", [BLOCK - 17, BLOCK - 16, BLOCK - 1, BLOCK, BLOCK + 1])
def test_a_crc_across_the_edge_of_a_block(body: int, tmp_path: Path) -> None:
    head = ckpt.lay_out("a.ckpt", [TensorSpec("a", U8, (BLOCK,))]).size - BLOCK
    spec = TensorSpec("a", U8, (body - head,))
    placed = layout.lay_out([spec], CKPT, "a.ckpt", 1, crc=True)
    assert placed.files[0].size == body + 17
    digests = written(tmp_path, placed, [("a", 0, golden.golden_bytes(spec))])["a.ckpt"]
    data = (tmp_path / "a.ckpt").read_bytes()
    assert digests == [xxhash.xxh3_128_hexdigest(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]
    assert data[-17:] == helpers.crc_tail(zlib.crc32(data[:-17]))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_pieces_cover_what_is_asked(lengths: list[int], data: st.DataObject) -> None:
    total = sum(lengths)
    extents = tuple((1000 * number, length) for number, length in enumerate(lengths))
    flat = [place + i for place, length in extents for i in range(length)]
    offset = data.draw(st.integers(0, total))
    count = data.draw(st.integers(0, total - offset))
    found = list(file_spans(extents, offset, count))
    places = [span.offset + i for span in found for i in range(span.high - span.low)]
    assert places == flat[offset : offset + count]
    assert [i for span in found for i in range(span.low, span.high)] == list(range(count))


def test_files_without_a_byte_of_tensors_are_written_too(tmp_path: Path) -> None:
    placed = layout.lay_out([SPECS[2]], MS_SAFETENSORS, "", 1000, False)
    digests = written(tmp_path, placed, [])
    (name,) = digests
    assert digests[name] == [xxhash.xxh3_128_hexdigest((tmp_path / name).read_bytes())]


@pytest.mark.parametrize("call", ["open", "ftruncate", "pwrite", "fsync"])
def test_an_error_of_the_system_names_the_file(call: str, tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    placed = layout.lay_out(SPECS, CKPT, "a.ckpt", 1, False)
    before = len(list(Path("/proc/self/fd").iterdir()))
    sink = FileSink(placed, ResultPaths(tmp_path, False), helpers.Fresh(placed.files))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(
            StorageError, match=r"cannot write .*a\.ckpt: No space left on device\nhint: free some space"
        ):
            for name, offset, data in boxes(SPECS, 4096, 0):
                sink.put(name, offset, memoryview(data))
    sink.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_write_that_takes_only_a_part(tmp_path: Path, monkeypatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: whole(file, data[:5], offset))
    placed = layout.lay_out(SPECS, CKPT, "a.ckpt", 1, False)
    digests = written(tmp_path, placed, boxes(SPECS, 100, 0))
    assert digests["a.ckpt"] == [xxhash.xxh3_128_hexdigest((tmp_path / "a.ckpt").read_bytes())]
    assert len(golden.found(tmp_path / "a.ckpt")) == 3


def test_a_single_file_is_written_where_it_is_told(tmp_path: Path) -> None:
    placed = layout.lay_out(SPECS[:2], CKPT, "a.ckpt", 1, False)
    sink = FileSink(placed, ResultPaths(tmp_path / "a.ckpt.partial", True), helpers.Fresh(placed.files))
    for name, offset, data in boxes(SPECS[:2], 4096, 0):
        sink.put(name, offset, memoryview(data))
    sink.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt.partial"]


def test_an_old_and_longer_file_is_cut(tmp_path: Path) -> None:
    placed = layout.lay_out(SPECS[:1], CKPT, "a.ckpt", 1, False)
    (tmp_path / "a.ckpt").write_bytes(bytes(100_000))
    file = FileWriter(tmp_path / "a.ckpt", placed.files[0], helpers.Fresh(placed.files))
    file.close()
    assert (tmp_path / "a.ckpt").stat().st_size == placed.files[0].size


BIG = [TensorSpec("a", dtypes.F32, (3, 1 << 19)), TensorSpec("b", U8, (5_000_001,)), TensorSpec("c", U8, (17,))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CKPT, MS_SAFETENSORS])
@pytest.mark.parametrize("seed", range(3))
def test_long_runs_go_past_the_page_cache_and_their_edges_through_it(kind, seed, tmp_path, monkeypatch) -> None:
    """What lies before bytes that are written yet will be read back: that goes through it too."""
    monkeypatch.setattr(blocks, "BLOCK", 1 << 21)
    directly, write_blocks = [], device.write_blocks

    def noting(cached: int, direct: int, data: memoryview, offset: int, unit: int) -> None:
        directly.append((offset, len(data)))
        write_blocks(cached, direct, data, offset, unit)

    monkeypatch.setattr(device, "write_blocks", noting)
    placed = layout.lay_out(BIG, kind, "a.ckpt", 1, False)
    (tmp_path / "through").mkdir()
    (tmp_path / "past").mkdir()
    written(tmp_path / "through", placed, boxes(BIG, 2_500_000, seed))
    assert not directly
    digests = written(tmp_path / "past", placed, boxes(BIG, 2_500_000, seed), access=Access.DIRECT)
    for file in placed.files:
        content = (tmp_path / "past" / file.name).read_bytes()
        assert content == (tmp_path / "through" / file.name).read_bytes()
        blocked = [content[begin : begin + (1 << 21)] for begin in range(0, len(content), 1 << 21)]
        assert digests[file.name] == [xxhash.xxh3_128_hexdigest(block) for block in blocked]
    assert all(offset % disk.ALIGNMENT == count % disk.ALIGNMENT == 0 for offset, count in directly)
    with (tmp_path / "past" / placed.files[0].name).open("rb") as file:
        if (direct := device.open_direct(file.fileno(), os.O_RDONLY)) is not None:
            os.close(direct)
            assert directly


def test_bytes_that_do_not_lie_as_in_the_file_go_through_the_page_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(device, "write_blocks", None)
    spec = TensorSpec("a", U8, (3_000_000,))
    placed = layout.lay_out([spec], CKPT, "a.ckpt", 1, False)
    sink = FileSink(placed, ResultPaths(tmp_path, False), helpers.Fresh(placed.files), access=Access.DIRECT)
    wanted = sink.placement("a", 0, spec.nbytes)
    assert wanted is not None
    data = golden.golden_bytes(spec)
    sink.put("a", 0, in_phase(data, (wanted + 8) % disk.ALIGNMENT))
    sink.finish()
    sink.close()
    assert data in (tmp_path / "a.ckpt").read_bytes()


def test_anything_goes_where_nothing_is_written_directly(tmp_path: Path) -> None:
    placed = layout.lay_out(BIG, CKPT, "a.ckpt", 1, False)
    past = helpers.Fresh(placed.files)
    assert FileSink(placed, ResultPaths(tmp_path, False), past).placement("a", 0, 1 << 20) is None
    past_cache = FileSink(placed, ResultPaths(tmp_path, False), past, access=Access.DIRECT)
    assert past_cache.placement("a", 0, (1 << 20) - 1) is None
    assert past_cache.placement("a", 0, 1 << 20) is not None


def test_what_the_system_refuses_to_write_directly_is_written_through_the_page_cache(tmp_path, monkeypatch) -> None:
    """All of it, or from where it refuses on; and an error is an error."""
    write, calls = disk.write, [0]
    path = tmp_path / "file"
    cached = os.open(path, os.O_RDWR | os.O_CREAT)
    other = os.open(path, os.O_RDWR)
    data = in_phase(os.urandom(5 * disk.ALIGNMENT), 0)
    for number, count, error in ((0, 0, 22), (1, 4096, 22), (1, 8000, None), (2, 4096, 95)):

        def refusing(descriptor: int, part: memoryview, offset: int, most=count, after=number, code=error) -> int:
            if descriptor != other:
                return write(descriptor, part, offset)
            calls[0] += 1
            if code is not None and calls[0] > after:
                raise OSError(code, "no")
            return write(descriptor, part[:most], offset)

        calls[0] = 0
        monkeypatch.setattr(disk, "write", refusing)
        os.ftruncate(cached, 0)
        device.write_blocks(cached, other, data, disk.ALIGNMENT, disk.ALIGNMENT)
        assert path.read_bytes() == bytes(disk.ALIGNMENT) + bytes(data)

    def full(descriptor: int, part: memoryview, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(OSError, match="No space"):
        device.write_blocks(cached, other, data, 0, disk.ALIGNMENT)
    os.close(cached)
    os.close(other)
