"""FP8 weights times the scales of their blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numkong
import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError
from ..tensors.arrays import Bits
from ..tensors.dtypes import BF16, DType
from .floats import FLOATS, check_cast, check_shapes, numkong_tensor
from .kernels import cast
from .tiles import TILE_SIDE, even_slices, fast_axis

# Elements of a tile of FP8 on its way through float32: it stays in L2, and its calls are long compared with
# what it takes to get the interpreter lock back. Then the longest row of a tile, and the row of one that is transposed.
_F8_ELEMENTS = 112 << 10
_F8_ROW = 16 << 10
_F8_SIDE = 800

# Scales whose products with finite F8_E4M3 are all normal floats, far from any limit.
_TAME = np.float32(2.0**-100), np.float32(2.0**100)


def dequantise(
    weight: NDArray[np.uint8],
    scale: NDArray[np.float32],
    target: Bits,
    target_dtype: DType,
    row: int,
    column: int,
    block: tuple[int, int] = (128, 128),
) -> int:
    """Multiply FP8 weights by the scale of their block; round the float32 product once to bfloat16, then cast that.

    Args:
        weight: `[r, c]` bits of F8_E4M3, a box of a larger matrix.
        scale: one float32 for each block that the box touches, in the blocks' order.
        target: `[r, c]` bits of `target_dtype`, no overlap with `weight`. A NaN gets the sign of the weight.
        target_dtype: what the bfloat16 is cast to.
        row: the box's first row, in the matrix or in its block: the remainder by the block's height counts.
        column: the same for columns.
        block: rows and columns of a block.

    Returns:
        How many finite bfloat16 became infinite in the cast.

    Raises:
        InternalError: the shapes do not fit each other, or there is no such cast.
    """
    check_shapes(weight, target)
    check_cast(BF16, target_dtype)
    offsets = row % block[0], column % block[1]
    if weight.size == 0:
        return 0
    _check_scales(weight, scale, offsets, block)
    transposed = fast_axis(weight) != fast_axis(target)
    elements = min(weight.size, _F8_ELEMENTS if target_dtype == BF16 else _F8_ELEMENTS // 3)
    scratch = np.empty(elements, np.float32), np.empty(elements, np.uint16)
    overflows = 0
    with np.errstate(all="ignore"):
        for columns in even_slices(weight.shape[1], _F8_SIDE if transposed else _F8_ROW):
            across = list(_pieces(offsets[1] + columns.start, columns.stop - columns.start, block[1], _F8_ROW))
            widths = [piece.stop - piece.start for _, piece in across]
            for i, rows in _pieces(offsets[0], weight.shape[0], block[0], TILE_SIDE):
                scales = scale[i, [j for j, _ in across]]
                part = weight[rows, columns], np.repeat(scales, widths), target[rows, columns]
                overflows += _dequantise_rows(*part, target_dtype, _are_tame(scales), *scratch)
    return overflows


def _check_scales(
    weight: NDArray[np.uint8], scale: NDArray[np.float32], offsets: tuple[int, int], block: tuple[int, int]
) -> None:
    touched = tuple(-(-(o + n) // b) for o, n, b in zip(offsets, weight.shape, block, strict=True))
    if scale.shape != touched:
        raise InternalError(f"the box touches {touched} blocks, but the scales have shape {scale.shape}")


def _dequantise_rows(
    weight: NDArray[np.uint8],
    factors: NDArray[np.float32],
    target: Bits,
    target_dtype: DType,
    tame: bool,
    products: NDArray[np.float32],
    rounded: NDArray[np.uint16],
) -> int:
    """`dequantise` for rows that share their blocks, with a factor for each column, and flat scratch for a few rows.

    As few calls as possible: each releases the interpreter lock, and getting it back may take as long as the call.
    """
    in_place = target_dtype == BF16 and target.flags.c_contiguous
    has_nan = not tame or bool(weight.max() == 0xFF or weight.view(np.int8).max() == 0x7F)
    overflows = 0
    for rows in even_slices(len(weight), max(1, len(products) // weight.shape[1])):
        tile = weight[rows]
        values = products[: tile.size].reshape(tile.shape)
        bits = target[rows] if in_place else rounded[: tile.size].reshape(tile.shape)
        numkong.astype(numkong_tensor(tile, "e4m3"), "float32", out=values)
        np.multiply(values, factors, out=values)
        if tame:
            numkong.astype(values, "bfloat16", out=numkong_tensor(bits, "bfloat16"))
        else:
            np.copyto(bits.view(FLOATS[BF16].numpy), values, casting="unsafe")
        if has_nan:
            _set_nans(values, tile, bits)
        if in_place:
            continue
        if target_dtype == BF16:
            # Rows of the scratch are no power of two apart, as `Scratch` would have them.
            np.copyto(target[rows], bits)
        else:
            overflows += cast(bits, target[rows], BF16, target_dtype)
    return overflows


def _are_tame(scales: NDArray[np.float32]) -> bool:
    """Whether NumKong may round the products: it loses NaN, and processors differ in what they make of subnormals."""
    magnitudes = np.abs(scales)
    return bool(magnitudes.min() >= _TAME[0] and magnitudes.max() <= _TAME[1])


def _set_nans(products: NDArray[np.float32], weight: NDArray[np.uint8], target: NDArray[np.uint16]) -> None:
    """Give the products that are NaN their one pattern, with the weight's sign; the products' memory is used up."""
    found = np.isnan(products)
    bits = products.view(np.uint32)
    np.copyto(bits, weight)
    bits >>= 7
    bits <<= FLOATS[BF16].sign_shift
    bits |= FLOATS[BF16].quiet_nan
    np.copyto(target, bits, where=found, casting="same_kind")


def _pieces(offset: int, length: int, block: int, most: int) -> Iterator[tuple[int, slice]]:
    """Cut `length` elements, the first at `offset` in a block: each block's index, and up to `most` elements in it."""
    start = 0
    while start < length:
        index = (offset + start) // block
        stop = min(length, (index + 1) * block - offset, start + most)
        yield index, slice(start, stop)
        start = stop
