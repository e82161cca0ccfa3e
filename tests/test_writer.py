"""Writing: every byte in its place, in any order, by several threads; blocks and CRC digested on the way."""

from __future__ import annotations

import os
import random
import threading
import zlib
from pathlib import Path

import golden
import helpers
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from streamconv import blocks, dtypes, layout
from streamconv.blocks import BLOCK
from streamconv.errors import StorageError
from streamconv.formats import ckpt
from streamconv.layout import CKPT, MS_SAFETENSORS
from streamconv.tensors import TensorSpec
from streamconv.writer import FileSink, OpenFile, pieces

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


def written(folder: Path, placed: layout.Layout, parts: list[tuple[str, int, bytes]]) -> dict[str, list[str]]:
    sink = FileSink(placed, folder, False, helpers.Fresh(placed.files))
    for name, offset, data in parts:
        assert sink.put(name, offset, memoryview(data)) in {file.name for file in placed.files}
    digests = sink.finish()
    sink.close()
    return digests


@pytest.mark.parametrize("kind", [CKPT, MS_SAFETENSORS])
@pytest.mark.parametrize("size", [1, 13, 4096])
@pytest.mark.parametrize("crc", [False, True])
def test_any_order_gives_the_same_file(kind: str, size: int, crc: bool, tmp_path: Path) -> None:
    placed = layout.lay_out(SPECS, kind, "a.ckpt", 1000, crc and kind == CKPT)
    data = {spec.name: golden.golden_bytes(spec) for spec in SPECS}
    digests = written(tmp_path, placed, boxes(SPECS, size, size))
    for file in placed.files:
        golden.write(tmp_path / "expected", file, data)
        expected = (tmp_path / "expected").read_bytes()
        if file.crc_tail:
            expected = expected[:-17] + ckpt.crc_tail(zlib.crc32(expected[:-17]))
        assert (tmp_path / file.name).read_bytes() == expected
        assert digests[file.name] == [xxhash.xxh3_128_hexdigest(expected)]


@pytest.mark.parametrize("size", [4 * BLOCK // 3, 1 << 20])
@pytest.mark.parametrize("crc", [False, True])
def test_threads_and_blocks(size: int, crc: bool, tmp_path: Path) -> None:
    specs = [TensorSpec("a", dtypes.F32, (3, 1 << 21)), TensorSpec("b", dtypes.F32, (1 << 21, 2))]
    placed = layout.lay_out(specs, CKPT, "a.ckpt", 1, crc)
    sink, parts = FileSink(placed, tmp_path, False, helpers.Fresh(placed.files)), boxes(specs, size, 1)

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
        assert data[-17:] == ckpt.crc_tail(zlib.crc32(data[:-17]))
    for ref in golden.open_catalog(tmp_path / "a.ckpt").values():
        assert golden.stored_bytes(ref) == golden.golden_bytes(TensorSpec(ref.name, ref.dtype, ref.shape))


@pytest.mark.parametrize("body", [BLOCK - 17, BLOCK - 16, BLOCK - 1, BLOCK, BLOCK + 1])
def test_a_crc_across_the_edge_of_a_block(body: int, tmp_path: Path) -> None:
    head = ckpt.lay_out("a.ckpt", [TensorSpec("a", U8, (BLOCK,))]).size - BLOCK
    spec = TensorSpec("a", U8, (body - head,))
    placed = layout.lay_out([spec], CKPT, "a.ckpt", 1, crc=True)
    assert placed.files[0].size == body + 17
    digests = written(tmp_path, placed, [("a", 0, golden.golden_bytes(spec))])["a.ckpt"]
    data = (tmp_path / "a.ckpt").read_bytes()
    assert digests == [xxhash.xxh3_128_hexdigest(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]
    assert data[-17:] == ckpt.crc_tail(zlib.crc32(data[:-17]))


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_crcs_are_joined(one: bytes, two: bytes) -> None:
    assert blocks.combine_crc(zlib.crc32(one), zlib.crc32(two), len(two)) == zlib.crc32(one + two)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_pieces_cover_what_is_asked(lengths: list[int], data: st.DataObject) -> None:
    total = sum(lengths)
    extents = tuple((1000 * number, length) for number, length in enumerate(lengths))
    flat = [place + i for place, length in extents for i in range(length)]
    offset = data.draw(st.integers(0, total))
    count = data.draw(st.integers(0, total - offset))
    found = pieces(extents, offset, count)
    assert [place + i for place, low, high in found for i in range(high - low)] == flat[offset : offset + count]
    assert [i for _, low, high in found for i in range(low, high)] == list(range(count))


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
    sink = FileSink(placed, tmp_path, False, helpers.Fresh(placed.files))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match=r"cannot write .*a\.ckpt: No space left on device; make room"):
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
    sink = FileSink(placed, tmp_path / "a.ckpt.partial", True, helpers.Fresh(placed.files))
    for name, offset, data in boxes(SPECS[:2], 4096, 0):
        sink.put(name, offset, memoryview(data))
    sink.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt.partial"]


def test_an_old_and_longer_file_is_cut(tmp_path: Path) -> None:
    placed = layout.lay_out(SPECS[:1], CKPT, "a.ckpt", 1, False)
    (tmp_path / "a.ckpt").write_bytes(bytes(100_000))
    file = OpenFile(tmp_path / "a.ckpt", placed.files[0], helpers.Fresh(placed.files))
    file.close()
    assert (tmp_path / "a.ckpt").stat().st_size == placed.files[0].size
