"""Quantised tensors for tests: described by hand, in memory and on disk, and decoded by NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamconv.engine.dequantise import Window, dequantise
from streamconv.engine.scales import Part
from streamconv.tensors.dtypes import BF16, F8_E4M3, F32, I32, U8, DType
from streamconv.tensors.quantised import Block, Blocks, Code, Codes, Packing, Parts, Quantised, QuantisedRef
from streamconv.tensors.refs import TensorRef

Array = NDArray[Any]

E4M3 = Code("e4m3", 8)

#: As the engine has them, and so small that everything small has many tiles and bands.
TILES: tuple[dict[str, int], ...] = (
    {"_ROW": 16 << 10},
    {
        "_ROOM": 6300,
        "_OF_BLOCK": 0,
        "_TURNED": 1400,
        "_ELEMENTS_WITH_FACTORS": 300,
        "_ROW": 150,
        "_TURNED_ROW": 60,
        "_SIDE": 60,
        "_LEAST_ROW": 40,
    },
)


def fp8_in_blocks(weight: TensorRef, scale: TensorRef, block: Block = (128, 128)) -> QuantisedRef:
    """An FP8 matrix on disk, and the scales of its blocks."""
    parts = Parts(_Fp8(weight.shape, block), (weight, scale))
    return QuantisedRef(weight.name, BF16, weight.shape, (), parts=parts)


class _Fp8(NamedTuple):
    """Matrices of FP8 with scales of blocks."""

    codes_shape: tuple[int, ...]
    block: Block
    title: str = "FP8"

    def quantised(self, tensors: Sequence[TensorRef | None]) -> Quantised:
        weight, scale = tensors
        assert weight is not None and scale is not None
        factor = Blocks(Codes(scale, scale.shape), self.block)
        return Quantised(self.title, Codes(weight, weight.shape, E4M3), (factor,))


def nowhere(dtype: DType, shape: tuple[int, ...]) -> TensorRef:
    """A tensor that nobody reads."""
    return TensorRef("nowhere", dtype, shape, ())


def dequantise_fp8(
    weight: Array,
    scale: Array,
    target: Array,
    dtype: DType,
    row: int = 0,
    column: int = 0,
    block: Block = (128, 128),
) -> int:
    """A box of an FP8 matrix that begins at a row and a column; `scale` is that of the blocks that it touches."""
    rows, columns = row + weight.shape[0], column + weight.shape[1]
    grid = -(-rows // block[0]), -(-columns // block[1])
    factor = Blocks(Codes(nowhere(F32, grid), grid), block)
    codes = Codes(nowhere(F8_E4M3, (rows, columns)), (rows, columns), E4M3)
    box = (row, rows), (column, columns)
    scales = Part(scale.view(np.uint32), row // block[0], column // block[1])
    window = Window(Quantised("FP8", codes, (factor,)), box, Part(weight, row, column), (scales,))
    return dequantise(window, box, target, dtype)


def dequantise_packed(words: Array, code: Code, packing: Packing, scale: Array, target: Array) -> int:
    """A matrix of packed codes, each 32 along the axis of its words with a scale."""
    groups = (1, 32) if packing.axis == 1 else (32, 1)
    dtypes = {1: U8, 4: I32}
    codes = Codes(nowhere(dtypes[words.itemsize], words.shape), target.shape, code, packing)
    factor = Blocks(Codes(nowhere(F32, scale.shape), scale.shape), groups)
    box = tuple((0, size) for size in target.shape)
    window = Window(Quantised("packed", codes, (factor,)), box, Part(words, 0, 0), (Part(scale.view(np.uint32), 0, 0),))
    return dequantise(window, box, target, BF16)
