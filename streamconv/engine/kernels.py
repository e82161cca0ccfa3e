"""The loops over elements: copies and casts of bit patterns in NumPy arrays.

Values come and go as unsigned integers of their dtype's size, so that nothing on the way (a signalling NaN
loaded into a float register, say) can change a bit unasked. Every function takes any strides and unaligned
memory, releases the interpreter lock as NumPy does, and allocates at most `SCRATCH_BYTES` at a time.

A cast rounds once, to nearest even. A NaN that is cast becomes the quiet NaN of its sign with payload zero:
what a payload turns into depends on the processor, and the same plan has to give the same bytes everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import numkong
import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError, UnsupportedError
from ..tensors.arrays import Bits
from ..tensors.dtypes import BF16, F64, INTEGER, DType
from .floats import FLOATS, Floats, check_cast, check_shapes, numpy_dtype
from .tiles import Scratch, cut_tiles, fast_axis, tile_shape

#: The most memory that one call allocates besides its arguments, at any moment; holds for `dequantise` too.
SCRATCH_BYTES = 2 << 20

# Casts of NumKong's that give the bits that NumPy's do whatever the processor, NaN apart, and many times as fast. Not
# bfloat16 to float32: some processors round subnormals, and ml_dtypes is as fast.
_BY_NUMKONG = {
    ("bfloat16", "float16"),
    ("float16", "bfloat16"),
    ("float16", "float32"),
    ("float32", "bfloat16"),
    ("float32", "float16"),
}
# But of this one subnormals, on processors that convert many at a time, and some NaNs become zero.
_LOSES_TO_ZERO = ("float32", "bfloat16")


def copy(source: Bits, target: Bits) -> None:
    """Copy bit patterns as they are; both arrays have one shape and one item size, and they do not overlap.

    Raises:
        InternalError: the shapes or the item sizes differ.
    """
    check_shapes(source, target)
    if source.itemsize != target.itemsize:
        raise InternalError(f"copy of {source.itemsize}-byte elements into {target.itemsize}-byte elements")
    if fast_axis(source) == fast_axis(target):
        np.copyto(target, source)
        return
    shape = tile_shape(source, target, is_long=True)
    scratch = Scratch(np.empty(math.prod(shape), source.dtype))
    for tile in cut_tiles(source, shape):
        scratch.turn(source[tile], target[tile])


def cast(source: Bits, target: Bits, source_dtype: DType, target_dtype: DType) -> int:
    """Cast floats with one rounding to nearest even, integers unchanged; equal dtypes are copied to the bit.

    Args:
        source: the elements' bits, of `source_dtype`'s item size.
        target: where the result's bits go; same shape, `target_dtype`'s item size, no overlap with `source`.

    Returns:
        How many finite values became infinite.

    Raises:
        InternalError: the shapes differ, or a dtype is no float that can be cast.
        UnsupportedError: an integer does not fit into the other dtype.
    """
    check_shapes(source, target)
    if source_dtype == target_dtype:
        copy(source, target)
        return 0
    if source.ndim == 0:
        source, target = source[np.newaxis], target[np.newaxis]
    if source_dtype.kind == target_dtype.kind == INTEGER:
        values, result = source.view(numpy_dtype(source_dtype)), target.view(numpy_dtype(target_dtype))
        _cast_integers(values, result, target_dtype)
        return 0
    check_cast(source_dtype, target_dtype)
    axes = sorted(range(source.ndim), key=lambda axis: -abs(source.strides[axis]))
    source, target = source.transpose(axes), target.transpose(axes)
    one, other = Floats(source, FLOATS[source_dtype]), Floats(target, FLOATS[target_dtype])
    with np.errstate(all="ignore"):
        if fast_axis(source) != fast_axis(target):
            return _cast_transposed(one, other)
        shape = tile_shape(source, target, is_long=not _takes_scratch(one, other))
        return sum(_convert(one.tile(tile), other.tile(tile)) for tile in cut_tiles(source, shape))


def _cast_integers(source: NDArray[Any], target: NDArray[Any], target_dtype: DType) -> None:
    for tile in cut_tiles(source, tile_shape(source, target)):
        np.copyto(target[tile], source[tile], casting="unsafe")
        if (target[tile] != source[tile]).any():
            raise UnsupportedError(f"an integer of the source does not fit into {target_dtype}, which the model has")


def _cast_transposed(source: Floats, target: Floats) -> int:
    """Cast where the target lies in memory in another order than the source."""
    shape = tile_shape(source.bits, target.bits)
    scratch = Scratch(np.empty(math.prod(shape), target.bits.dtype))
    overflows = 0
    for tile in cut_tiles(source.bits, shape):
        part = source.tile(tile)
        between = Floats(scratch.like(part.bits), target.format)
        overflows += _convert(part, between)
        np.copyto(target.bits[tile], between.bits)
    return overflows


def _is_by_numkong(source: Floats, target: Floats) -> bool:
    return (source.format.numkong, target.format.numkong) in _BY_NUMKONG


def _takes_scratch(source: Floats, target: Floats) -> bool:
    """Whether a cast of a tile takes scratch, NaN and infinity apart."""
    if _is_by_numkong(source, target):
        return not target.bits.flags.c_contiguous
    return source.format is FLOATS[F64]


def _convert(source: Floats, target: Floats) -> int:
    """Cast one tile, and return how many finite values became infinite."""
    if _is_by_numkong(source, target):
        _convert_by_numkong(source, target)
    else:
        values: NDArray[Any] = source.numpy
        if source.format is FLOATS[F64] and target.format is FLOATS[BF16]:
            values = _round_to_odd(values)
        np.copyto(target.numpy, values, casting="unsafe")
    # Nearly every tile of a real model ends here.
    if _is_done(source, target):
        return 0
    tiles = cut_tiles(source.bits, tile_shape(source.bits, target.bits))
    return sum(_repair(source.tile(tile), target.tile(tile)) for tile in tiles)


def _convert_by_numkong(source: Floats, target: Floats) -> None:
    """NumKong writes to contiguous memory only."""
    is_direct = target.bits.flags.c_contiguous
    out = target if is_direct else Floats(np.empty(target.bits.shape, target.bits.dtype), target.format)
    numkong.astype(source.tensor, target.format.numkong, out=out.tensor)
    if not is_direct:
        np.copyto(target.bits, out.bits)


def _loses_to_zero(source: Floats, target: Floats) -> bool:
    return (source.format.numkong, target.format.numkong) == _LOSES_TO_ZERO


def _is_done(source: Floats, target: Floats) -> bool:
    """Whether a cast tile has no NaN, nothing that became infinite, and nothing that NumKong lost."""
    if source.format.largest <= target.format.largest:
        return source.are_finite()
    if _loses_to_zero(source, target) and target.have_zero():
        return False
    return target.are_finite()


def _repair(source: Floats, target: Floats) -> int:
    """Give the NaNs of a cast tile their one pattern, and return how many finite values became infinite."""
    before, after, bits = source.format, target.format, target.bits
    if _loses_to_zero(source, target):
        is_zero = (bits & after.magnitude) == 0
        np.copyto(target.numpy, source.numpy, where=is_zero, casting="unsafe")
    if before.largest <= after.largest:
        found = (source.bits & before.exponent) == before.exponent
    else:
        found = (bits & after.exponent) == after.exponent
    magnitude = source.bits[found]
    canonical = (magnitude >> before.sign_shift).astype(bits.dtype, copy=False)
    canonical <<= after.sign_shift
    canonical |= after.quiet_nan
    magnitude &= before.magnitude
    is_nan = magnitude > before.exponent
    overflows = np.count_nonzero(magnitude < before.exponent)
    repaired = bits[found]
    np.copyto(repaired, canonical, where=is_nan)
    bits[found] = repaired
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
