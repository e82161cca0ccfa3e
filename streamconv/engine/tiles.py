"""Tiles: parts of arrays that stay in the cache of a core."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import TypeAlias

import numpy as np

from ..tensors.arrays import Bits

#: The longest side of a tile between two arrays whose axes lie in another order.
TILE_SIDE = 128

# Bytes in and out of a tile: they stay in a core's L2 cache, and NaN throughout needs thrice as much scratch. Then of
# one that takes no scratch: threads wait for the interpreter lock after each call, so calls should be few.
_TILE_BYTES = 320 << 10
_LONG_TILE_BYTES = 2 << 20
_CACHE_LINE = 64

Tile: TypeAlias = tuple[slice, ...]


class Scratch:
    """Room for a tile of up to `count` elements on its way from one order of axes to another.

    Only the last copy jumps: within the cache, and between rows that are no power of two apart. Those of a model's
    matrices are, so that a column of one falls into a single set of the cache, and costs six times as much.
    """

    def __init__(self, count: int, itemsize: int) -> None:
        gaps = count * _CACHE_LINE // (itemsize * TILE_SIDE)
        self._flat = np.empty(count + gaps, f"u{itemsize}")

    def like(self, tile: Bits) -> Bits:
        """Return an array of the tile's shape and order of axes, with a cache line between its rows."""
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


def tile_shape(source: Bits, target: Bits, is_long: bool = False) -> list[int]:
    """Return the shape of a tile: a square over the two fast axes where they differ, then grown along the source.

    A long tile is one that takes no scratch. The square comes first because both arrays need whole cache lines, and few
    lines of any page.
    """
    limit = (_LONG_TILE_BYTES if is_long else _TILE_BYTES) // (source.itemsize + target.itemsize)
    fast = {fast_axis(source), fast_axis(target)}
    square = fast if len(fast) > 1 else set()
    tile = [min(TILE_SIDE, length) if axis in square else 1 for axis, length in enumerate(source.shape)]
    for axis in sorted(range(source.ndim), key=lambda axis: abs(source.strides[axis])):
        room = limit * tile[axis] // max(1, math.prod(tile))
        tile[axis] = max(tile[axis], min(source.shape[axis], room))
    return tile
