"""Tiles: parts of arrays that stay in the cache of a core."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import TypeAlias

import numpy as np

from ..tensors.arrays import Bits

#: The most rows of a band of a quantised matrix.
TILE_SIDE = 128

# Elements of a row of a tile in the target where that lies in another order than the source. Each of them is in another
# cache line of the scratch, which is read again for the next rows: so many lines stay in L1.
_RUN = 512

# Bytes in and out of a tile: they stay in a core's L2 cache, and NaN throughout needs thrice as much scratch. Then of
# one that takes only the scratch that turns it: threads wait for the interpreter lock after each call, so calls should
# be few. With runs of `_RUN`, rows of the scratch are then no power of two apart. Then the bytes of the narrower side
# of a tile that takes none: only that side is looked at again, for NaN, and it stays in L2.
_TILE_BYTES = 352 << 10
_TURNED_TILE_BYTES = 480 << 10
_LONG_SIDE_BYTES = 1344 << 10
_CACHE_LINE = 64

Tile: TypeAlias = tuple[slice, ...]


class Scratch:
    """Room in `flat` for a tile on its way from one order of axes to another.

    Only the last copy jumps: within the cache, and between rows that are no power of two apart. Those of a model's
    matrices are, so that a column of one falls into a single set of the cache, and costs six times as much.
    """

    def __init__(self, flat: Bits) -> None:
        self._flat = flat
        self._last: tuple[object, Bits] = None, flat

    def like(self, tile: Bits) -> Bits:
        """Return an array of the tile's shape and order of axes; where needed, with a cache line between its rows."""
        # Nearly every tile is like the one before, and threads wait for each other's Python.
        layout, found = self._last
        if layout != (tile.shape, tile.strides):
            found = self._like(tile)
            self._last = (tile.shape, tile.strides), found
        return found

    def _like(self, tile: Bits) -> Bits:
        order = sorted(range(tile.ndim), key=lambda axis: (tile.shape[axis] > 1, -abs(tile.strides[axis])))
        *rows, row = (tile.shape[axis] for axis in order)
        itemsize = self._flat.itemsize
        apart = row if row * itemsize % (2 * _CACHE_LINE) else row + _CACHE_LINE // itemsize
        if math.prod(rows) * apart > self._flat.size:
            apart = row
        found = self._flat[: math.prod(rows) * apart].reshape(*rows, apart)[..., :row]
        return found.transpose(np.argsort(order))

    def turn(self, source: Bits, target: Bits) -> None:
        """Copy one tile."""
        between = self.like(source)
        np.copyto(between, source)
        np.copyto(target, between)


def fast_axis(array: Bits) -> int:
    """Return the axis along which neighbours lie closest in memory; -1 where no axis has two elements."""
    axes = [axis for axis, length in enumerate(array.shape) if length > 1]
    return min(axes, key=lambda axis: (abs(array.strides[axis]), -axis), default=-1)


def cut_tiles(array: Bits, shape: list[int]) -> Iterator[Tile]:
    """Yield tiles of at most `shape` that cover the array once, of nearly equal size."""
    axes = [even_slices(length, step) for length, step in zip(array.shape, shape, strict=True)]
    return product(*axes)


def even_slices(length: int, step: int) -> list[slice]:
    """Cut `length` into as few slices of at most `step` as possible, of nearly equal size."""
    if length == 0:
        return []
    even = even_part(length, step)
    return [slice(start, min(start + even, length)) for start in range(0, length, even)]


def even_part(length: int, most: int) -> int:
    """Return the size of the parts if `length`, not 0, is cut into as few of at most `most` as possible."""
    return -(-length // -(-length // most))


def tile_shape(source: Bits, target: Bits, *, is_long: bool = False) -> list[int]:
    """Return the shape of a tile: long rows in the target where the fast axes differ, then grown along the source.

    A long tile is one that takes no scratch but that which turns it.
    """
    fast = fast_axis(target)
    is_turned = fast_axis(source) != fast
    widths = source.itemsize, target.itemsize
    if is_long and not is_turned:
        limit = _LONG_SIDE_BYTES // min(widths)
    else:
        limit = (_TURNED_TILE_BYTES if is_long else _TILE_BYTES) // sum(widths)
    tile = [1] * source.ndim
    if is_turned:
        tile[fast] = min(source.shape[fast], _RUN)
    for axis in sorted(range(source.ndim), key=lambda axis: abs(source.strides[axis])):
        room = limit * tile[axis] // max(1, math.prod(tile))
        tile[axis] = max(tile[axis], min(source.shape[axis], room))
    return tile
