"""Regions: the memory that windows and boxes lie in, and how bytes in it have to lie for the device to take them."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from ..tensors.arrays import Bits, BitType
from .disk import ALIGNMENT

#: Bytes that a region is longer than its size: room to lie like the bytes in the file, and to read whole pages.
SLACK = 2 * ALIGNMENT


class Region:
    """Anonymous memory of a fixed size, used again and again; resident only where it was touched.

    In huge pages where there are any: a disk takes memory in few large pieces much faster than in many small ones
    (figures: `docs/performance.md`).
    """

    def __init__(self, size: int) -> None:
        # Private: shared anonymous pages would stay allocated after MADV_DONTNEED, only not count as ours any more.
        self._map = mmap.mmap(-1, size + SLACK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._used = False

    def array(self, count: int, dtype: BitType, offset: int = 0) -> Bits:
        """`count` elements from byte `offset` of it, as an array; byte 0 has an address that is aligned."""
        self._used = True
        return np.frombuffer(self._map, dtype, count, offset)

    def release(self) -> None:
        """Give its pages back."""
        if self._used:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._used = False


def phase(data: memoryview | Bits) -> int:
    """How a buffer lies in memory: its address, as a remainder of `ALIGNMENT`."""
    return int(np.asarray(data).__array_interface__["data"][0]) % ALIGNMENT
