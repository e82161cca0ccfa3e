"""Regions: reusable memory for windows and boxes, aligned as direct I/O needs it."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import NewType

import numpy as np

from ..tensors.arrays import Bits, BitType
from .disk import ALIGNMENT

Placement = NewType("Placement", int)
"""How a buffer lies in memory, as the device needs it: bytes from the beginning of a page."""

#: Bytes that a region is longer than its size: room for any placement, and for whole pages.
SLACK = 2 * ALIGNMENT


class Region:
    """Anonymous memory of a fixed size that is used repeatedly; resident only where it was touched.

    It is in huge pages if the kernel gives any: a disk transfers few large pages much faster than many small ones
    (figures: `docs/performance.md`).
    """

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size + SLACK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):
            self._map.madvise(mmap.MADV_HUGEPAGE)

    def array(self, count: int, dtype: BitType, placement: Placement | None = None) -> Bits:
        """Return memory for `count` elements, placed as wanted; page-aligned where that does not matter."""
        return self._array(count, dtype, placement or 0)

    def array_behind(self, length: int, count: int, dtype: BitType) -> Bits:
        """Return memory for `count` elements behind the first `length` bytes, wherever those are placed."""
        return self._array(count, dtype, ALIGNMENT + -(-length // dtype.itemsize) * dtype.itemsize)

    def memory(self, length: int) -> memoryview:
        """Return the first `length` bytes."""
        return self._array(length, np.dtype(np.uint8), 0).data

    def _array(self, count: int, dtype: BitType, offset: int) -> Bits:
        return np.frombuffer(self._map, dtype, count, offset)


def page_offset(data: memoryview | Bits) -> Placement:
    """Return how a buffer is placed in memory."""
    return Placement(int(np.asarray(data).__array_interface__["data"][0]) % ALIGNMENT)
