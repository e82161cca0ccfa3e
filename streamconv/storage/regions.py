"""Regions: reusable memory for windows and boxes, aligned as direct I/O needs it."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from ..tensors.arrays import Bits, BitType
from .disk import ALIGNMENT

#: Bytes that a region is longer than its size, so that data can have the page offset it has in the file, and whole
#: pages can be read.
SLACK = 2 * ALIGNMENT


class Region:
    """Anonymous memory of a fixed size that is used repeatedly; resident only where it was touched.

    It is in huge pages if the kernel gives any: a disk transfers few large pages much faster than many small ones
    (figures: `docs/performance.md`).
    """

    def __init__(self, size: int) -> None:
        # Private: shared anonymous pages would stay allocated after MADV_DONTNEED, and only stop counting as resident.
        self._map = mmap.mmap(-1, size + SLACK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._used = False

    def array(self, count: int, dtype: BitType, offset: int = 0) -> Bits:
        """Return `count` elements from byte `offset` of the region as an array; byte 0 is aligned to a page."""
        self._used = True
        return np.frombuffer(self._map, dtype, count, offset)

    def release(self) -> None:
        """Give the pages back to the system."""
        if self._used:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._used = False


def phase(data: memoryview | Bits) -> int:
    """How a buffer lies in memory: its address, as a remainder of `ALIGNMENT`."""
    return int(np.asarray(data).__array_interface__["data"][0]) % ALIGNMENT
