"""Tensors in equal slices, as the ranks of a training hold them: where each slice lies, and every copy of it.

There may be hundreds of ranks and thousands of tensors, so places are numbers in arrays, and become objects one slice
at a time.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import NamedTuple

from msgspec import Struct

from .extents import Extent, SourceFile
from .grids import unravelled

#: How many numbers a row of the table has.
COLUMNS = 4


class Copy(NamedTuple):
    """A slice as one rank holds it."""

    rank: int
    extents: tuple[Extent, ...]


class Run(NamedTuple):
    """Bytes `low` … `high` of a range of a tensor are bytes of slice `number`, from its byte `inside` on."""

    number: int
    inside: int
    low: int
    high: int


class Slices(Struct, frozen=True, eq=False):
    """Where the slices of a tensor lie. They are numbered in row-major order.

    Attributes:
        divisions: per axis of the tensor, into how many equal parts it is cut.
        shape: the shape of a slice.
        files: the files of the checkpoint.
        table: rows of rank, number of the file, offset and length: the extents of every copy of every slice.
        starts: per slice, the number of its first row; then the number of all rows.
    """

    divisions: tuple[int, ...]
    shape: tuple[int, ...]
    files: Sequence[SourceFile]
    table: array[int]
    starts: array[int]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def copies(self, number: int) -> Iterator[Copy]:
        """Yield the copies of a slice; the first is the one that is read."""
        rows = (self._row(row) for row in range(self.starts[number], self.starts[number + 1]))
        for rank, mine in groupby(rows, key=itemgetter(0)):
            yield Copy(rank, tuple(Extent(self.files[file], offset, length) for _, file, offset, length in mine))

    def extents(self, number: int) -> tuple[Extent, ...]:
        """Return where the copy of a slice that is read lies."""
        return next(self.copies(number)).extents

    def most_copies(self) -> int:
        """Return how many ranks hold the slice that most of them hold."""
        return max(
            (len({*self.table[first * COLUMNS : stop * COLUMNS : COLUMNS]}) for first, stop in pairwise(self.starts)),
            default=0,
        )

    def origin(self, number: int) -> tuple[int, ...]:
        """Return where in the tensor the first element of a slice is."""
        index = unravelled(number, self.divisions)
        return tuple(at * size for at, size in zip(index, self.shape, strict=True))

    def runs(self, itemsize: int, offset: int, count: int) -> Iterator[Run]:
        """Yield where `count` bytes from `offset` of the tensor, in row-major order, lie in its slices.

        Args:
            itemsize: bytes of an element.
            offset, count: the range, in bytes.
        """
        last = max((axis for axis, divisions in enumerate(self.divisions) if divisions > 1), default=None)
        if last is None:
            yield Run(0, offset, 0, count)
            return
        length = math.prod(self.shape[last:]) * itemsize
        at = offset
        while at < offset + count:
            block, inside = divmod(at, length)
            end = min(offset + count, at - inside + length)
            number, row = self._of_block(block, last)
            yield Run(number, row * length + inside, at - offset, end - offset)
            at = end

    def _of_block(self, block: int, last: int) -> tuple[int, int]:
        """Return the slice that has a contiguous block of the tensor, and which of its blocks that is."""
        digits = []
        for axis in range(last, -1, -1):
            size = self.shape[axis] if axis < last else 1
            block, digit = divmod(block, self.divisions[axis] * size)
            digits.append(divmod(digit, size))
        number = row = 0
        for axis, (index, inside) in enumerate(reversed(digits)):
            number = number * self.divisions[axis] + index
            row = row * (self.shape[axis] if axis < last else 1) + inside
        return number, row

    def _row(self, row: int) -> tuple[int, int, int, int]:
        rank, file, offset, length = self.table[row * COLUMNS : (row + 1) * COLUMNS]
        return rank, file, offset, length
