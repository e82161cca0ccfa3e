"""The loops over elements: copy, cast and FP8 block dequantisation, on bit patterns in NumPy arrays.

Values come and go as unsigned integers of their dtype's size, so that nothing on the way (a signalling NaN
loaded into a float register, say) can change a bit unasked. Every function takes any strides and unaligned
memory, lets go of the interpreter lock as NumPy does, and allocates at most `SCRATCH_BYTES` at a time.

A cast rounds once, to nearest even. A NaN that is cast becomes the quiet NaN of its sign with payload zero:
what a payload turns into depends on the processor, and the same plan has to give the same bytes everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, Literal, NamedTuple, TypeAlias

import ml_dtypes
import numkong
import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError
from ..tensors.arrays import Bits
from ..tensors.dtypes import BF16, F16, F32, F64, DType

#: The most memory that one call allocates beside its arguments, at any moment.
SCRATCH_BYTES = 1 << 20

# Bytes in and out of a tile: they stay in a core's L2 cache, and NaN throughout needs thrice as much scratch.
_TILE_BYTES = 320 << 10
_TILE_SIDE = 128
_CACHE_LINE = 64

_Tile: TypeAlias = tuple[slice, ...]
_NumKong: TypeAlias = Literal["e4m3", "float16", "bfloat16", "float32", "float64"]


class _Float(NamedTuple):
    """A float format: how NumPy reads it, NumKong's name, its masks (of the bits' own type), its sign bit's place."""

    numpy: np.dtype[Any]
    numkong: _NumKong
    magnitude: Any
    exponent: Any
    quiet_nan: Any
    sign_shift: int


def _float(numpy: Any, name: _NumKong, mantissa_bits: int) -> _Float:
    dtype = np.dtype(numpy)
    unsigned = np.dtype(f"u{dtype.itemsize}").type
    sign_shift = 8 * dtype.itemsize - 1
    exponent = (1 << sign_shift) - (1 << mantissa_bits)
    quiet_nan = exponent | 1 << (mantissa_bits - 1)
    return _Float(dtype, name, unsigned((1 << sign_shift) - 1), unsigned(exponent), unsigned(quiet_nan), sign_shift)


_FLOATS = {
    F16: _float(np.float16, "float16", 10),
    BF16: _float(ml_dtypes.bfloat16, "bfloat16", 7),
    F32: _float(np.float32, "float32", 23),
    F64: _float(np.float64, "float64", 52),
}

# Casts of NumKong's that give the bits that NumPy's do whatever the processor, NaN apart, and many times as fast: its
# others round subnormals, or lose NaN.
_BY_NUMKONG = {("bfloat16", "float16"), ("float32", "float16"), ("float16", "float32")}

# Elements of a tile of FP8 on its way through float32: it stays in L2, and its calls are long beside what it takes to
# get the interpreter lock back. Then the longest row of a tile, and the row of one that is transposed.
_F8_ELEMENTS = 112 << 10
_F8_ROW = 16 << 10
_F8_SIDE = 800

# Scales whose products with finite F8_E4M3 are all normal floats, far from any limit.
_TAME = np.float32(2.0**-100), np.float32(2.0**100)


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """NumPy's type for a dtype that it has; not by name alone, for MindSpore registers a bfloat16 of its own."""
    return np.dtype(getattr(ml_dtypes, dtype.numpy or "", dtype.numpy))


def copy(source: Bits, target: Bits) -> None:
    """Copy bit patterns as they are; both arrays have one shape and one item size, and they do not overlap.

    Raises:
        InternalError: the shapes or the item sizes differ.
    """
    _check_shapes(source, target)
    if source.itemsize != target.itemsize:
        raise InternalError(f"copy of {source.itemsize}-byte elements into {target.itemsize}-byte elements")
    if _fast_axis(source) == _fast_axis(target):
        np.copyto(target, source)
        return
    shape = _tile_shape(source, target)
    scratch = _Scratch(math.prod(shape), source.itemsize)
    for tile in _tiles(source, shape):
        scratch.turn(source[tile], target[tile])


def cast(source: Bits, target: Bits, source_dtype: DType, target_dtype: DType) -> int:
    """Cast floats with one rounding to nearest even; equal dtypes are copied to the bit.

    Args:
        source: the elements' bits, of `source_dtype`'s item size.
        target: where the result's bits go; same shape, `target_dtype`'s item size, no overlap with `source`.

    Returns:
        How many finite values became infinite.

    Raises:
        InternalError: the shapes differ, or a dtype is no float that can be cast.
    """
    _check_shapes(source, target)
    if source_dtype == target_dtype:
        copy(source, target)
        return 0
    _check_cast(source_dtype, target_dtype)
    if source.ndim == 0:
        source, target = source[np.newaxis], target[np.newaxis]
    axes = sorted(range(source.ndim), key=lambda axis: -abs(source.strides[axis]))
    source, target = source.transpose(axes), target.transpose(axes)
    formats = _FLOATS[source_dtype], _FLOATS[target_dtype]
    shape = _tile_shape(source, target)
    tiles = _tiles(source, shape)
    with np.errstate(all="ignore"):
        if _fast_axis(source) == _fast_axis(target):
            return sum(_convert(source[tile], target[tile], *formats) for tile in tiles)
        scratch = _Scratch(math.prod(shape), target.itemsize)
        return sum(_convert_transposed(source[tile], target[tile], *formats, scratch) for tile in tiles)


def dequantise(
    weight: NDArray[np.uint8],
    scale: NDArray[np.float32],
    target: Bits,
    target_dtype: DType,
    row: int,
    column: int,
    block: tuple[int, int] = (128, 128),
) -> int:
    """FP8 weights times the scale of their block, the float32 product rounded once to bfloat16, then cast.

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
    _check_shapes(weight, target)
    _check_cast(BF16, target_dtype)
    offsets = row % block[0], column % block[1]
    touched = tuple(-(-(o + n) // b) for o, n, b in zip(offsets, weight.shape, block, strict=True))
    if weight.size and scale.shape != touched:
        raise InternalError(f"the box touches {touched} blocks, and the scales given are {scale.shape}")
    if weight.size == 0:
        return 0
    transposed = _fast_axis(weight) != _fast_axis(target)
    elements = min(weight.size, _F8_ELEMENTS if target_dtype == BF16 else _F8_ELEMENTS // 3)
    scratch = np.empty(elements, np.float32), np.empty(elements, np.uint16)
    overflows = 0
    with np.errstate(all="ignore"):
        for columns in _cuts(weight.shape[1], _F8_SIDE if transposed else _F8_ROW):
            across = list(_pieces(offsets[1] + columns.start, columns.stop - columns.start, block[1], _F8_ROW))
            widths = [piece.stop - piece.start for _, piece in across]
            for i, rows in _pieces(offsets[0], weight.shape[0], block[0], _TILE_SIDE):
                scales = scale[i, [j for j, _ in across]]
                strip = weight[rows, columns], np.repeat(scales, widths), target[rows, columns]
                overflows += _dequantise_strip(*strip, target_dtype, _are_tame(scales), *scratch)
    return overflows


def _dequantise_strip(
    weight: NDArray[np.uint8],
    factors: NDArray[np.float32],
    target: Bits,
    target_dtype: DType,
    tame: bool,
    products: NDArray[np.float32],
    rounded: NDArray[np.uint16],
) -> int:
    """`dequantise` for rows that share their blocks, with a factor for each column, and flat scratch for a few rows.

    As few calls as can be: each lets go of the interpreter lock, and to get it back may take as long as the call.
    """
    in_place = target_dtype == BF16 and target.flags.c_contiguous
    has_nan = not tame or bool(weight.max() == 0xFF or weight.view(np.int8).max() == 0x7F)
    overflows = 0
    for rows in _cuts(len(weight), max(1, len(products) // weight.shape[1])):
        tile = weight[rows]
        values = products[: tile.size].reshape(tile.shape)
        bits = target[rows] if in_place else rounded[: tile.size].reshape(tile.shape)
        numkong.astype(_tensor(tile, "e4m3"), "float32", out=values)
        np.multiply(values, factors, out=values)
        if tame:
            numkong.astype(values, "bfloat16", out=_tensor(bits, "bfloat16"))
        else:
            np.copyto(bits.view(_FLOATS[BF16].numpy), values, casting="unsafe")
        if has_nan:
            _set_nans(values, tile, bits)
        if in_place:
            continue
        if target_dtype == BF16:
            # Rows of the scratch are no power of two apart, as `_Scratch` would have them.
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
    bits <<= _FLOATS[BF16].sign_shift
    bits |= _FLOATS[BF16].quiet_nan
    np.copyto(target, bits, where=found, casting="same_kind")


def _tensor(array: Bits, dtype: _NumKong) -> numkong.Tensor:
    """NumKong's view of an array: NumPy has no name for some of these dtypes, so only the address can be passed."""
    address = array.__array_interface__["data"][0]
    strides = None if array.flags.c_contiguous else array.strides
    return numkong.from_pointer(address, array.shape, dtype, strides=strides, owner=array)


def _pieces(offset: int, length: int, block: int, most: int) -> Iterator[tuple[int, slice]]:
    """Cut `length` elements, the first at `offset` in a block: each block's index, and up to `most` elements in it."""
    start = 0
    while start < length:
        index = (offset + start) // block
        stop = min(length, (index + 1) * block - offset, start + most)
        yield index, slice(start, stop)
        start = stop


class _Scratch:
    """Room for a tile of up to `count` elements on its way from one order of axes to another.

    Only the last copy jumps: within the cache, and between rows that are no power of two apart. Those of a model's
    matrices are, so that a column of one falls into a single set of the cache, and costs six times as much.
    """

    def __init__(self, count: int, itemsize: int) -> None:
        gaps = count * _CACHE_LINE // (itemsize * _TILE_SIDE)
        self._flat = np.empty(count + gaps, f"u{itemsize}")

    def like(self, tile: Bits) -> Bits:
        """An array of the tile's shape and order of axes, its rows a cache line farther apart than they are long."""
        order = sorted(range(tile.ndim), key=lambda axis: (tile.shape[axis] > 1, -abs(tile.strides[axis])))
        *rows, row = (tile.shape[axis] for axis in order)
        apart = row + _CACHE_LINE // self._flat.itemsize
        if math.prod(rows) * apart > self._flat.size:
            apart = row
        found = self._flat[: math.prod(rows) * apart].reshape(*rows, apart)[..., :row]
        return found.transpose(np.argsort(order))

    def turn(self, source: Bits, target: Bits) -> None:
        """Copy one tile."""
        between = self.like(source)
        np.copyto(between, source)
        np.copyto(target, between)


def _convert_transposed(
    source: Bits, target: Bits, source_float: _Float, target_float: _Float, scratch: _Scratch
) -> int:
    """`_convert` for one tile whose target lies in memory in another order than the source."""
    between = scratch.like(source)
    overflows = _convert(source, between, source_float, target_float)
    np.copyto(target, between)
    return overflows


def _convert(source: Bits, target: Bits, source_float: _Float, target_float: _Float) -> int:
    """Cast one tile, and return how many finite values became infinite."""
    if (source_float.numkong, target_float.numkong) in _BY_NUMKONG:
        _convert_by_numkong(source, target, source_float, target_float)
    else:
        values: NDArray[Any] = source.view(source_float.numpy)
        if source_float is _FLOATS[F64] and target_float is _FLOATS[BF16]:
            values = _round_to_odd(values)
        np.copyto(target.view(target_float.numpy), values, casting="unsafe")
    # Nearly every tile of a real model ends here: NaN and infinity are what has all bits of the exponent set.
    if (target & target_float.exponent).max() < target_float.exponent:
        return 0
    return _repair(source, target, source_float, target_float)


def _convert_by_numkong(source: Bits, target: Bits, source_float: _Float, target_float: _Float) -> None:
    """NumKong writes to contiguous memory only."""
    out = target if target.flags.c_contiguous else np.empty(target.shape, target.dtype)
    numkong.astype(_tensor(source, source_float.numkong), target_float.numkong, out=_tensor(out, target_float.numkong))
    if out is not target:
        np.copyto(target, out)


def _repair(source: Bits, target: Bits, source_float: _Float, target_float: _Float) -> int:
    """Give the NaNs of a cast tile their one pattern, and return how many finite values became infinite."""
    found = (target & target_float.exponent) == target_float.exponent
    magnitude = source[found]
    canonical = (magnitude >> source_float.sign_shift).astype(target.dtype, copy=False)
    canonical <<= target_float.sign_shift
    canonical |= target_float.quiet_nan
    magnitude &= source_float.magnitude
    is_nan = magnitude > source_float.exponent
    overflows = np.count_nonzero(magnitude < source_float.exponent)
    repaired = target[found]
    np.copyto(repaired, canonical, where=is_nan)
    target[found] = repaired
    return int(overflows)


def _round_to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """float64 as float32, inexact results with their last bit set, so that a second rounding is right.

    ml_dtypes reaches bfloat16 through float32, and two roundings to nearest can differ from one: the first
    may land on a tie that the value was not on. Cutting towards zero and setting the last bit makes no tie.
    """
    nearest = values.astype(np.float32)
    inexact = nearest != values
    away_from_zero = np.abs(nearest) > np.abs(values)
    bits = nearest.view(np.uint32)
    bits -= away_from_zero
    bits |= inexact
    return nearest


def _check_shapes(source: Bits, target: Bits) -> None:
    if source.shape != target.shape:
        raise InternalError(f"elements of shape {source.shape} do not go into shape {target.shape}")


def _check_cast(source_dtype: DType, target_dtype: DType) -> None:
    if not {source_dtype, target_dtype} <= _FLOATS.keys():
        raise InternalError(f"there is no cast from {source_dtype} to {target_dtype}")


def _fast_axis(array: Bits) -> int:
    """The axis along which neighbours lie closest in memory; -1 where no axis has two elements."""
    axes = [axis for axis, length in enumerate(array.shape) if length > 1]
    return min(axes, key=lambda axis: (abs(array.strides[axis]), -axis), default=-1)


def _tiles(array: Bits, shape: list[int]) -> Iterator[_Tile]:
    """Cut an array into tiles of at most `shape` that cover it once, of nearly equal size."""
    axes = [_cuts(length, step) for length, step in zip(array.shape, shape, strict=True)]
    return product(*axes)


def _cuts(length: int, step: int) -> list[slice]:
    """`length` in as few pieces of at most `step` as there can be, and none of them a mere remainder."""
    if length == 0:
        return []
    count = -(-length // step)
    even = -(-length // count)
    return [slice(start, min(start + even, length)) for start in range(0, length, even)]


def _tile_shape(source: Bits, target: Bits) -> list[int]:
    """The shape of a tile: a square over the two fast axes where they differ, then grown along the source.

    The square comes first because both arrays need whole cache lines, and few lines of any page.
    """
    limit = _TILE_BYTES // (source.itemsize + target.itemsize)
    fast = {_fast_axis(source), _fast_axis(target)}
    square = fast if len(fast) > 1 else set()
    tile = [min(_TILE_SIDE, length) if axis in square else 1 for axis, length in enumerate(source.shape)]
    for axis in sorted(range(source.ndim), key=lambda axis: abs(source.strides[axis])):
        room = limit * tile[axis] // max(1, math.prod(tile))
        tile[axis] = max(tile[axis], min(source.shape[axis], room))
    return tile
