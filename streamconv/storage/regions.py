"""Regions: reusable memory for windows and boxes, aligned as direct I/O needs it."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import NewType

import numpy as np

from ..tensors.arrays import Bits, BitType
from . import pages

#: What a placement is counted in: a multiple of the blocks of every device, for no kernel has larger ones.
UNIT = 64 << 10

Placement = NewType("Placement", int)
"""How a buffer lies in memory, as the device needs it: bytes from a multiple of `UNIT`."""

#: Bytes that a region is longer than its size: room for its first multiple of `UNIT`, any placement, and whole blocks.
SLACK = 3 * UNIT


class Region:
    """Anonymous memory of a fixed size that is used repeatedly; resident only where it was touched.

    It is in huge pages if the kernel gives any that are not larger than the region: a disk transfers few large pages
    much faster than many small ones (figures: `docs/performance.md`). To the kernel, regions side by side are one; a
    larger page would span several, and be resident and zeroed where one byte of one of them is touched.
    """

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size + SLACK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if takes_huge_pages(size):
            with suppress(AttributeError, OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._start = -_address(np.frombuffer(self._map, np.uint8, 1)) % UNIT

    def array(self, count: int, dtype: BitType, placement: Placement | None = None) -> Bits:
        """Return memory for `count` elements, placed as wanted; at a multiple of `UNIT` where that does not matter."""
        return self._array(count, dtype, placement or 0)

    def array_behind(self, length: int, count: int, dtype: BitType) -> Bits:
        """Return memory for `count` elements behind the first `length` bytes, wherever those are placed."""
        return self._array(count, dtype, UNIT + -(-length // dtype.itemsize) * dtype.itemsize)

    def memory(self, length: int) -> memoryview:
        """Return the first `length` bytes."""
        return self._array(length, np.dtype(np.uint8), 0).data

    def _array(self, count: int, dtype: BitType, offset: int) -> Bits:
        return np.frombuffer(self._map, dtype, count, self._start + offset)


def takes_huge_pages(size: int) -> bool:
    """Return whether a region of this size is to be in huge pages."""
    huge = pages.huge_page_bytes()
    return huge is not None and huge <= size


def placement_of(data: memoryview | Bits) -> Placement:
    """Return how a buffer is placed in memory."""
    return Placement(_address(np.asarray(data)) % UNIT)


def _address(data: Bits) -> int:
    return int(data.__array_interface__["data"][0])
