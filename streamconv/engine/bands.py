"""Bands of rows of a quantised matrix, and what their codes are multiplied with: worked out once for many tiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..tensors.quantised import Quantised
from .codes import Numbers
from .scales import Groups, Part, Shared, combined, shared
from .tiles import TILE_SIDE

#: How many factors a band has at most, where rows do not share them.
_MOST_FACTORS = 16 << 10

#: Blocks of at least so many rows have their factors once in a band.
_HIGH = 16

# Scales whose products with finite codes are all normal floats, far from any limit.
_TAME = np.float32(2.0**-100), np.float32(2.0**100)
_LARGEST_ZERO = 1 << 16
_BYTE = 8


class Band(NamedTuple):
    """What some rows, the first of them `first`, are multiplied with, and what is taken from them before.

    Attributes:
        first: number of the first row.
        factors: for its columns.
        is_tame: all products are normal floats, or zero.
        zeros: numbers that are taken from the values of codes.
        offsets: whole numbers, in bytes, that are taken from the codes themselves: a quarter of the work.
    """

    first: int
    factors: Shared
    is_tame: bool
    zeros: Shared | None = None
    offsets: Shared | None = None

    def differences(self, rows: range, columns: int, codes: NDArray[np.uint8]) -> NDArray[np.int8]:
        """Return codes of some rows and all its columns less their offsets, in the same memory."""
        if self.offsets is not None:
            self.offsets.into(np.subtract, codes, rows.start - self.first, rows.stop - self.first, columns)
        return codes.view(np.int8)

    def apply(self, rows: range, columns: int, values: Numbers) -> None:
        """Turn the values of codes, some of its rows and all its columns, into products."""
        inside = rows.start - self.first, rows.stop - self.first, columns
        if self.zeros is not None:
            self.zeros.into(np.subtract, values, *inside)
        self.factors.into(np.multiply, values, *inside)

    def of_rows(self, first: int, numbers: NDArray[np.intp]) -> Band:
        """Return the band whose rows belong to these blocks."""
        every = (one and one.of_rows(numbers) for one in (self.zeros, self.offsets))
        return Band(first, self.factors.of_rows(numbers), self.is_tame, *every)


class Bands:
    """The bands of a matrix.

    Attributes:
        has_offsets: zero points are whole numbers like the packed codes, and what is left of a code then fits a byte.

    Args:
        parts: the quantised tensor.
        first: row and column that `groups` counts from.
        factors, zeros: what was read of them.
        groups: for each row or column the number of its block; `None` where those are in order.
    """

    def __init__(
        self,
        parts: Quantised,
        first: tuple[int, int],
        factors: Sequence[Part],
        zeros: Part | None,
        groups: NDArray[np.intp] | None,
    ) -> None:
        self._parts, self._first, self._zeros, self._groups = parts, first, zeros, groups
        self._axis = None if parts.groups is None or groups is None else parts.groups.axis
        self._factors = [part.read(one.codes) for part, one in zip(factors, parts.factors, strict=True)]
        only = self._factors[0].data
        self._is_tame = len(factors) == 1 and only.dtype == np.float32 and _are_tame(only)
        self._blocks = [*parts.factors, *([parts.zeros] if parts.zeros else [])]
        self._of_groups: tuple[range, Band] | None = None
        codes = parts.codes
        is_small = codes.code is not None and codes.code.kind == "unsigned" and codes.code.bits < _BYTE - 1
        is_whole = parts.zeros is not None and parts.zeros.codes.code is not None
        self.has_offsets = codes.packing is not None and is_small and is_whole

    @property
    def _bias(self) -> int:
        return self._parts.codes.code.bias if self._parts.codes.code else 0

    @property
    def height(self) -> int:
        """The multiple of rows at which bands end: blocks that are high, and words."""
        return _lcm([self._parts.codes.unit[0], *(rows for rows in self._heights if rows <= TILE_SIDE)], TILE_SIDE)

    @property
    def block_rows(self) -> int:
        """The multiple of rows at which blocks end of which a tile has one at most; 0 where it may have any number."""
        return min(self._heights, default=0)

    @property
    def _heights(self) -> list[int]:
        return [one.block[0] for one in self._blocks if one.block[0] >= _HIGH and self._axis is None]

    @property
    def most_columns(self) -> int:
        """How many columns a band has at most, so that the factors of all groups of rows stay few."""
        return max(1, _MOST_FACTORS // self._count) if self._axis == 0 else _MOST_FACTORS

    def most_rows(self, rows: range, columns: range) -> int:
        """Return how many rows a band has at most, so that its factors stay few."""
        if self.rows_share(rows):
            return TILE_SIDE
        across = self._count if self._axis == 1 else self.blocks_across(len(columns))
        return max(1, min(TILE_SIDE, _MOST_FACTORS // across))

    def blocks_across(self, columns: int) -> int:
        """Return how many blocks so many columns belong to at most, where they are in order."""
        return columns // min(one.block[1] for one in self._blocks) + 1

    def rows_share(self, rows: range) -> bool:
        """Whether all rows of a band have the same factors and zero points."""
        return self._axis is None and min(one.block[0] for one in self._blocks) >= min(_HIGH, len(rows))

    def band(self, rows: range, columns: range) -> Band:
        """Return what some rows and columns are multiplied with."""
        if self._axis is None or self._groups is None:
            return self._made(rows, columns, None)
        elements, first = (rows, columns)[self._axis], self._first[self._axis]
        numbers = self._groups[elements.start - first : elements.stop - first]
        if self._axis == 1:
            return self._made(rows, columns, Groups(1, numbers))
        return self._all_groups(columns).of_rows(rows.start, numbers)

    @property
    def _count(self) -> int:
        """How many groups rows or columns are of, where they are in no order."""
        return self._parts.factors[0].codes.shape[-2 if self._axis == 0 else -1]

    def _all_groups(self, columns: range) -> Band:
        """Return a band with a row for each group: many rows are of the same."""
        if self._of_groups is None or self._of_groups[0] != columns:
            made = self._made(range(self._count), columns, Groups(0, np.arange(self._count)))
            self._of_groups = columns, made
        return self._of_groups[1]

    def _made(self, rows: range, columns: range, groups: Groups | None) -> Band:
        blocks = zip(self._factors, self._parts.factors, strict=True)
        every = ((shared(part, one, rows, columns, groups), one.divides) for part, one in blocks)
        factors = combined(every, len(rows), len(columns))
        is_tame = self._is_tame or _are_tame(factors.values)
        if self._zeros is None or self._parts.zeros is None:
            return Band(rows.start, factors.ready(len(columns)), is_tame)
        zeros = shared(self._zeros, self._parts.zeros, rows, columns, groups)
        if self.has_offsets:
            offsets = zeros._replace(values=(zeros.values + self._bias).astype(np.uint8))
            return Band(rows.start, factors.ready(len(columns)), is_tame, offsets=offsets.ready(len(columns)))
        is_tame = is_tame and _are_whole(zeros.values)
        return Band(rows.start, factors.ready(len(columns)), is_tame, zeros.ready(len(columns)))


def _are_tame(factors: Numbers) -> bool:
    """Whether NumKong may round the products: it loses NaN, and processors differ in what they make of subnormals."""
    magnitudes = np.abs(factors)
    return bool(magnitudes.min() >= _TAME[0] and magnitudes.max() <= _TAME[1])


def _are_whole(zeros: Numbers) -> bool:
    """Whether zero points are whole numbers: what is left of a code then is none that is tiny."""
    return bool((np.rint(zeros) == zeros).all() and np.abs(zeros).max() <= _LARGEST_ZERO)


def _lcm(sizes: Iterable[int], most: int) -> int:
    """Return the least common multiple of the sizes; those are left out with which it would exceed `most`."""
    found = 1
    for size in sizes:
        if math.lcm(found, size) <= most:
            found = math.lcm(found, size)
    return found
