"""Literals: the bytes of a file that belong to no tensor and to no checksum, such as headers and records' heads."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .extents import bytes_before
from .refs import OutputFile


class Literals:
    """The literals of a file by their place.

    Args:
        file: the file.
        block: those that lie in several blocks of so many bytes are cut where these begin.
    """

    def __init__(self, file: OutputFile, block: int) -> None:
        # Numbers only: there may be a literal for every tensor, and objects would be many times as large.
        self._literals = file.literals
        self._offsets, self._sums, self._of = array("q"), array("q", [0]), array("q")
        number = 0
        for offset, data in file.literals_between_slots():
            while number + 1 < len(file.literals) and file.literals[number + 1][0] <= offset:
                number += 1
            for begin in range(offset - offset % block, offset + len(data), block):
                low, high = max(begin, offset), min(begin + block, offset + len(data))
                if low < high:
                    self._offsets.append(low)
                    self._sums.append(self._sums[-1] + high - low)
                    self._of.append(number)

    def __len__(self) -> int:
        return len(self._offsets)

    def numbers(self, begin: int, end: int) -> range:
        """Return the numbers of those that begin in a range of the file."""
        return range(bisect_left(self._offsets, begin), bisect_left(self._offsets, end))

    def __getitem__(self, number: int) -> tuple[int, memoryview]:
        """Return the offset of one, and its bytes."""
        offset, (begin, data) = self._offsets[number], self._literals[self._of[number]]
        return offset, memoryview(data)[offset - begin : offset - begin + self._length(number)]

    def _length(self, number: int) -> int:
        return self._sums[number + 1] - self._sums[number]

    def head(self) -> Iterator[int]:
        """Yield the numbers of those that the file begins with."""
        for number, offset in enumerate(self._offsets):
            if offset != self._sums[number]:
                return
            yield number

    def bytes_in(self, begin: int, end: int) -> int:
        """Return how many bytes of a range of the file are literals'."""
        return self._before(end) - self._before(begin)

    def _before(self, place: int) -> int:
        number = bisect_right(self._offsets, place)
        behind = self._offsets[number - 1] + self._length(number - 1) - place if number else 0
        return self._sums[number] - max(0, behind)

    def bytes_before(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many bytes of literals lie before each of several places in the file."""
        begins, sums = np.array(self._offsets, np.int64), np.array(self._sums, np.int64)
        return bytes_before(places, begins, begins + (sums[1:] - sums[:-1]))
