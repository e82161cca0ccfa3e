"""Any single bit that is flipped, in any file that a manifest names, is found, and the message says where it is."""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

import streamconv
from streamconv.checks import against_manifest
from streamconv.errors import StreamconvError, VerificationError
from streamconv.formats.catalog import open_catalog
from streamconv.output import blocks, manifest
from support import running

#: Small, so that small files have many.
BLOCK = 2048
FLIPS = 25
KINDS = {
    "directory": ("dest", {"max_shard_size": 5000}),
    "ckpt": ("dest.ckpt", {}),
    "ckpt with crc": ("dest.ckpt", {"crc": True}),
    "hf": ("dest", {"model": "raw", "format": "hf", "max_shard_size": 5000}),
    "torch": ("dest.pt", {"model": "raw"}),
}


@pytest.fixture(scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (blocks, manifest, against_manifest):
            patch.setattr(module, "BLOCK", BLOCK)
        # All tensors of a block, so that the flipped one is among them.
        patch.setattr(against_manifest, "_SHOWN", 1000)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.tiny(tmp_path_factory.mktemp("flips") / "source")


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, source: Path, small_blocks: None) -> Path:
    name, arguments = KINDS[request.param]
    folder = source.parent / request.param
    folder.mkdir()
    streamconv.convert(source, folder / name, **arguments)
    return folder / name


def flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def named(dest: Path) -> list[Path]:
    """The files that the manifest names."""
    if dest.is_file():
        return [dest]
    return sorted(p for p in dest.iterdir() if p.name not in ("config.json", "streamconv.json"))


def tensor_at(dest: Path, path: Path, position: int) -> tuple[str, int] | None:
    """The tensor that a byte belongs to, and its number in that."""
    for name, ref in open_catalog(dest).items():
        before = 0
        for extent in ref.extents:
            if extent.file.path == path and extent.offset <= position < extent.offset + extent.length:
                return name, before + position - extent.offset
            before += extent.length
    return None


def test_any_bit(made: Path, source: Path) -> None:
    files = named(made)
    ends = list(accumulate(p.stat().st_size for p in files))
    draw = random.Random(2024)
    for _ in range(FLIPS):
        at = draw.randrange(ends[-1])
        number = bisect_right(ends, at)
        path, position, bit = files[number], at - (ends[number - 1] if number else 0), draw.randrange(8)
        tensor = tensor_at(made, path, position)
        flip(path, position, bit)
        with pytest.raises(VerificationError) as by_manifest:
            streamconv.verify(made)
        with pytest.raises(
            VerificationError, match=rf"{path.name} differs .* at byte {position} of the file \("
        ) as by_source:
            streamconv.verify(made, source=source)
        flip(path, position, bit)
        names_the_place(str(by_manifest.value), path, position, tensor)
        assert tensor is None or f"(byte {tensor[1]} of tensor {tensor[0]})" in str(by_source.value)
    streamconv.verify(made)
    streamconv.verify(made, source=source)


def names_the_place(message: str, path: Path, position: int, tensor: tuple[str, int] | None) -> None:
    """The file, a block with the byte, and, if that is a tensor's, the tensor with the bytes that lie there."""
    block = re.search(rf"{path.name} differs from its manifest between byte (\d+) and byte (\d+)", message)
    assert block and int(block[1]) <= position < int(block[2]) <= int(block[1]) + BLOCK
    if tensor:
        part = re.search(rf"{re.escape(tensor[0])}, (?:bytes (\d+) to (\d+) of its|all of its) (\d+)", message)
        assert part, message
        assert int(part[1] or 0) <= tensor[1] < int(part[2] or part[3]) <= int(part[3])


def test_a_tensor_of_several_blocks_is_named_with_the_bytes_that_lie_there(tmp_path: Path, small_blocks: None) -> None:
    source = running.tiny(tmp_path / "source", vocab_size=1000)
    streamconv.convert(source, tmp_path / "dest.ckpt")
    ref = open_catalog(tmp_path / "dest.ckpt")["lm_head.weight"]
    flip(tmp_path / "dest.ckpt", ref.extents[0].offset + 9000, 0)
    low = (ref.extents[0].offset + 9000) // BLOCK * BLOCK - ref.extents[0].offset
    with pytest.raises(VerificationError, match=rf"lm_head.weight, bytes {low} to {low + BLOCK} of its 40000\)"):
        streamconv.verify(tmp_path / "dest.ckpt")


def test_a_bit_of_the_manifest_itself(source: Path, tmp_path: Path) -> None:
    """A digest, a size, a name that is not as it was is no proof; the rest tells how the checkpoint was made."""
    dest = tmp_path / "dest"
    streamconv.convert(source, dest)
    place = dest / "streamconv.json"
    text = place.read_text()
    begin, end = text.index('"files"'), text.index('"tensors"')
    for position in range(begin, end, 3):
        flip(place, position, position % 7)
        changed = place.read_text()
        if changed[begin:end].split() != text[begin:end].split():
            with pytest.raises(StreamconvError) as caught:
                streamconv.verify(dest)
            assert caught.value.exit_code in (3, 7), changed[position - 5 : position + 5]
        flip(place, position, position % 7)
    assert streamconv.verify(dest)
