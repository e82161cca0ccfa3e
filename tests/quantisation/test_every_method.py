"""Every quantisation method against a second decoder: random sizes, parts anywhere, any box of any view."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import streamconv
from streamconv.configs.quantisation import described
from streamconv.engine import bands, dequantise
from streamconv.engine.boxes import boxes, cells
from streamconv.engine.reader import Reader
from streamconv.engine.windows import numbers_in
from streamconv.formats.catalog import open_catalog
from streamconv.formats.header_room import HeaderRoom
from streamconv.planning.dequantising import Understood, understood
from streamconv.storage.access import Access
from streamconv.tensors import views
from streamconv.tensors.dtypes import BF16, F16, F32, DType
from streamconv.tensors.grids import Box, box_shape
from streamconv.tensors.view_nodes import View
from support import decoders
from support.decoders import METHODS, Dice, Raw, Sample, Size
from support.quantised import TILES

Bits = NDArray[Any]

QUIET = {BF16: 0x7FC0, F16: 0x7E00, F32: 0x7FC00000}


def opened(folder: Path) -> Understood:
    catalog = open_catalog(folder)
    config = json.loads((folder / "config.json").read_text())
    found = understood(catalog, described(config, folder, HeaderRoom()), numbers_in)
    assert (found.missing, found.wrong, dict(found.dropped)) == ((), (), {})
    return found


def cast(bf16: Bits, dtype: DType) -> tuple[Bits, int]:
    """BF16 in another dtype, NaN all the same, and how many finite numbers became infinite."""
    values = (bf16.astype(np.uint32) << 16).view(np.float32)
    if dtype == BF16:
        return bf16, 0
    if dtype == F32:
        return canonical(values.view(np.uint32), F32), 0
    with np.errstate(all="ignore"):
        halves = values.astype(np.float16)
    return canonical(halves.view(np.uint16), F16), int(np.count_nonzero(np.isinf(halves) & np.isfinite(values)))


def canonical(bits: Bits, dtype: DType) -> Bits:
    """The bits with one pattern for every NaN."""
    values = (bits.astype(np.uint32) << 16).view(np.float32) if dtype == BF16 else bits.view(f"f{bits.itemsize}")
    return np.where(np.isnan(values), QUIET[dtype], bits).astype(bits.dtype)


def read(reader: Reader, view: View, box: Box, dtype: DType) -> tuple[Bits, int]:
    target = np.full(int(np.prod(box_shape(box))), 0xA5A5, f"u{dtype.itemsize}")
    overflows = reader.fill(view, box, target, dtype)
    return canonical(target, dtype).reshape(box_shape(box)), overflows


def check_box(reader: Reader, view: View, box: Box, dtype: DType, expected: Bits) -> None:
    wanted, overflows = cast(expected[tuple(slice(*side) for side in box)], dtype)
    found, counted = read(reader, view, box, dtype)
    np.testing.assert_array_equal(found, wanted)
    assert counted == overflows


def check_all(view: View, expected: Bits, dtype: DType, region: int, access: Access = Access.READ) -> None:
    """Read a view as the engine does."""
    assert view.shape == expected.shape
    reader = Reader(region, access)
    try:
        for cell in cells(view):
            for box in boxes(view, cell, dtype.itemsize, region):
                check_box(reader, view, box, dtype, expected)
    finally:
        reader.close()


def sizes(rng: np.random.Generator) -> Size:
    rows, columns = (int(n) for n in rng.integers(1, 300, 2))
    group = int(rng.choice([7, 16, 20, 32, 64, 128]))
    return Size(rows, columns, group, (int(rng.choice([1, 7, 64, 128])), int(rng.choice([5, 64, 128]))))


# ---------------------------------------------------------------- a few of each


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_what_they_stand_for(method: str, tmp_path: Path) -> None:
    for seed in range(5):
        rng = np.random.default_rng([seed, *method.encode()])
        sample = METHODS[method](Dice(rng, wild=seed % 2 == 1), sizes(rng))
        folder = tmp_path / str(seed)
        folder.mkdir()
        decoders.save(folder, [sample], rng, files=1 + seed % 3)
        found = opened(folder)
        assert [*found.catalog] == [sample.weight]
        view = views.leaf(found.catalog[sample.weight])
        check_all(view, sample.expected, (BF16, F32, F16)[seed % 3], 4096 << seed)


# ---------------------------------------------------------------- at random

#: Few rows and columns, or many of one.
SHAPES = st.one_of(
    st.tuples(st.integers(1, 300), st.integers(1, 400)),
    st.tuples(st.integers(1, 3), st.integers(1, 4_000)),
    st.tuples(st.integers(1, 4_000), st.integers(1, 3)),
)
BLOCKS = st.tuples(st.sampled_from([1, 7, 16, 64, 128, 200]), st.sampled_from([1, 5, 16, 64, 128, 300]))
SIZES = st.builds(
    lambda shape, group, block: Size(*shape, group, block),
    SHAPES,
    st.sampled_from([16, 20, 32, 64, 128, 1000]),
    BLOCKS,
)


@st.composite
def samples(draw: st.DrawFn) -> tuple[Sample, np.random.Generator]:
    method, size = draw(st.sampled_from(sorted(METHODS))), draw(SIZES)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    return METHODS[method](Dice(rng, draw(st.booleans())), size), rng


def arranged(draw: st.DataObject, view: View, array: Bits) -> tuple[View, Bits]:
    """The view and the array after the same few operations."""
    for _ in range(draw.draw(st.integers(0, 3))):
        axis = draw.draw(st.integers(0, array.ndim - 1))
        n = array.shape[axis]
        match draw.draw(st.sampled_from(["permute", "cut", "merge", "split"])):
            case "permute":
                axes = draw.draw(st.permutations(range(array.ndim)))
                view, array = views.permute(view, axes), array.transpose(axes)
            case "cut":
                start, step = draw.draw(st.integers(0, n - 1)), draw.draw(st.integers(1, 3))
                stop = draw.draw(st.integers(start + 1, n))
                view = views.cut(view, axis, start, stop, step)
                array = array[(slice(None),) * axis + (slice(start, stop, step),)]
            case "merge" if axis + 1 < array.ndim:
                view = views.merge(view, axis)
                array = array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
            case "split" if array.ndim < 5:
                outer = draw.draw(st.sampled_from([k for k in (1, 2, 3, 4, 8, 16, n) if n % k == 0]))
                view = views.split(view, axis, outer)
                array = array.reshape(*array.shape[:axis], outer, n // outer, *array.shape[axis + 1 :])
    return view, array


def any_box(draw: st.DataObject, shape: Sequence[int]) -> Box:
    lows = [draw.draw(st.integers(0, n - 1)) for n in shape]
    return tuple((low, draw.draw(st.integers(low + 1, n))) for low, n in zip(lows, shape, strict=True))


@pytest.mark.slow
@settings(max_examples=100)
@given(samples(), st.data())
def test_any_box_of_any_view(made: tuple[Sample, np.random.Generator], data: st.DataObject) -> None:
    sample, rng = made
    region = data.draw(st.sampled_from([4 << 10, 12 << 10, 64 << 10, 1 << 20]))
    dtype, access = data.draw(st.sampled_from([BF16, F32, F16])), data.draw(st.sampled_from(Access))
    few = mock.patch.object(bands, "_MOST_FACTORS", data.draw(st.sampled_from([200, 16 << 10])))
    tiles = mock.patch.multiple(dequantise, **data.draw(st.sampled_from(TILES)))
    with tempfile.TemporaryDirectory() as name, tiles, few:
        decoders.save(Path(name), [sample], rng, data.draw(st.integers(1, 4)))
        whole = views.leaf(opened(Path(name)).catalog[sample.weight])
        view, expected = arranged(data, whole, sample.expected)
        reader = Reader(region, access, drops=data.draw(st.booleans()))
        try:
            for _ in range(3):
                check_box(reader, view, any_box(data, view.shape), dtype, expected)
        finally:
            reader.close()
        check_all(view, expected, dtype, region, access)


# ---------------------------------------------------------------- whole conversions


def written(folder: Path) -> dict[str, Bits]:
    with streamconv.open(folder) as found:
        assert {one.dtype_name for one in found.values()} == {"BF16"}
        return {one.name: canonical(one.numpy().view(np.uint16), BF16) for one in found.values()}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(2))
def test_conversions_with_the_smallest_shards(method: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng([seed, *method.encode()])
    size = sizes(rng)
    made = [
        METHODS[method](Dice(np.random.default_rng(seed), module=f"model.layers.{i}.mlp.up_proj"), size)
        for i in range(3)
    ]
    source = tmp_path / "source"
    source.mkdir()
    decoders.save(source, made, rng, files=4)
    streamconv.convert(source, tmp_path / "out", model="raw", format="hf", max_shard_size=1, max_mem="8G")
    expected: Mapping[str, Bits] = {one.weight: one.expected for one in made}
    found = written(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, bits in expected.items():
        np.testing.assert_array_equal(found[name], bits)


# ---------------------------------------------------------------- every code times many scales

_MANTISSAS = np.array([0, 1, 0x3FFFFF, 0x400000, 0x5A5A5A, 0x7F8000, 0x7FFFFF], np.uint32)
_POSITIVE = (np.arange(256, dtype=np.uint32)[:, None] << 23 | _MANTISSAS).ravel()
F32S = np.concatenate([_POSITIVE, _POSITIVE | np.uint32(1 << 31)])

#: Every pattern of a dtype; of F32 every exponent, with both signs and a few mantissas.
PATTERNS: Mapping[str, Bits] = {
    "F32": F32S,
    "I64": F32S.view(np.int32).astype(np.int64).view(np.uint64),
    "BF16": np.arange(1 << 16, dtype=np.uint16),
    "F16": np.arange(1 << 16, dtype=np.uint16),
    "F8_E4M3": np.arange(1 << 8, dtype=np.uint8),
    "F8_E8M0": np.arange(255, dtype=np.uint8),
    "U8": np.arange(255, dtype=np.uint8),
}


class Loaded(Dice):
    """Dice that show everything in its order, those scales alone which are wanted, and the preferred of several."""

    def __init__(self, preferred: Sequence[str | bool], tame: bool, first: int = 0) -> None:
        super().__init__(np.random.default_rng(0))
        self._preferred, self._tame, self._first = preferred, tame, first

    def one_of(self, *values: Any) -> Any:
        return next((one for one in values if isinstance(one, str | bool) and one in self._preferred), values[0])

    def bytes(self, *shape: int) -> NDArray[np.uint8]:
        return np.resize(np.arange(256, dtype=np.uint8), shape)

    def scales(self, dtype: str, *shape: int) -> Raw:
        bits = PATTERNS[dtype]
        if self._tame:
            values = np.abs(Raw(dtype, bits).values())
            bits = bits[(values >= 2.0**-100) & (values <= 2.0**100)]
        return Raw(dtype, np.resize(np.roll(bits, -self._first), shape))


#: Method and what it prefers -> rows and columns with which each scale meets every code.
EVERYTHING = {
    **{
        f"ct-{codes}-channel {one}{zeros}": (len(PATTERNS[one]), 256)
        for codes in ("F8_E4M3", "I8")
        for one in ("F32", "BF16", "F16")
        for zeros in ("", " zeros")
    },
    **{f"ct-pack-{bits} F32{zeros}": (len(F32S), 256) for bits in range(2, 9) for zeros in ("", " packed")},
    **{f"ct-padded-{bits} F32": (len(F32S), 256) for bits in (3, 5, 6, 7)},
    **{f"gptq-{bits} {one}": (1 << 16, 1 << max(bits, 5)) for bits in (2, 3, 4, 8) for one in ("F16", "BF16")},
    **{f"awq {one}": (1 << 16, 64) for one in ("F16", "BF16")},
    **dict.fromkeys(["fp8-mxfp8", "deepseek-fp4", "gpt-oss"], (16, 255 * 32)),
    **dict.fromkeys(["slim-static-F32", "slim-static-I64"], (len(F32S), 256)),
    **dict.fromkeys(["slim-W4A8_DYNAMIC", "slim-WFP8AFP8_DYNAMIC"], (len(F32S), 256)),
}


@pytest.mark.slow
@pytest.mark.parametrize("tame", [True, False], ids=["tame", "any"])
@pytest.mark.parametrize("case", EVERYTHING)
def test_every_code_times_many_scales(case: str, tame: bool, tmp_path: Path) -> None:
    """Subnormal, huge, zero, infinite and NaN; and without those, which takes another way."""
    (method, *preferred), (rows, columns) = case.split(), EVERYTHING[case]
    made = METHODS[method](Loaded([*preferred, True], tame, first=37), Size(rows, columns, columns, (1, 1)))
    decoders.save(tmp_path, [made], np.random.default_rng(0))
    check_all(views.leaf(opened(tmp_path).catalog[made.weight]), made.expected, BF16, 1 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["modelopt-nvfp4", "ct-nvfp4"])
def test_every_code_times_every_pair_of_scales(method: str, tmp_path: Path) -> None:
    for first in range(0, len(F32S), 97):
        folder = tmp_path / str(first)
        folder.mkdir()
        made = METHODS[method](Loaded([], tame=False, first=first), Size(2, 256 * 16, 16, (1, 1)))
        decoders.save(folder, [made], np.random.default_rng(0))
        check_all(views.leaf(opened(folder).catalog[made.weight]), made.expected, BF16, 1 << 20)
