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


class Band(NamedTuple):
    """What some rows, the first of them `first`, are multiplied with, and what is taken from them before.

    Attributes:
        first: number of the first row.
        factors, zeros: for its columns.
        is_tame: all products are normal floats, or zero.
    """

    first: int
    factors: Shared
    zeros: Shared | None
    is_tame: bool

    def apply(self, rows: range, columns: int, values: Numbers) -> None:
        """Turn the values of codes, some of its rows and all its columns, into products."""
        inside = rows.start - self.first, rows.stop - self.first, columns
        if self.zeros is not None:
            np.subtract(values, self.zeros.tile(*inside), out=values)
        np.multiply(values, self.factors.tile(*inside), out=values)

    def chosen(self, first: int, numbers: NDArray[np.intp]) -> Band:
        """Return the band whose rows are these of this one."""
        factors = self.factors._replace(values=np.take(self.factors.values, numbers, axis=0))
        zeros = self.zeros and self.zeros._replace(values=np.take(self.zeros.values, numbers, axis=0))
        return Band(first, factors, zeros, self.is_tame)


class Bands:
    """The bands of a matrix.

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

    @property
    def height(self) -> int:
        """The multiple of rows at which bands end: blocks that are high, and words."""
        heights = [one.block[0] for one in self._blocks if _HIGH <= one.block[0] <= TILE_SIDE and self._axis is None]
        return _lcm([self._parts.codes.unit[0], *heights], TILE_SIDE)

    @property
    def most_columns(self) -> int:
        """How many columns a band has at most, so that the factors of all groups of rows stay few."""
        return max(1, _MOST_FACTORS // self._count) if self._axis == 0 else _MOST_FACTORS

    def most_rows(self, rows: range, columns: range) -> int:
        """Return how many rows a band has at most, so that its factors stay few."""
        if self.rows_share(rows):
            return TILE_SIDE
        widest = 1 if self._axis == 1 else min(one.block[1] for one in self._blocks)
        return max(1, min(TILE_SIDE, _MOST_FACTORS * widest // len(columns)))

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
        return self._all_groups(columns).chosen(rows.start, numbers)

    @property
    def _count(self) -> int:
        """How many groups rows are chosen from."""
        return self._parts.factors[0].codes.shape[-2]

    def _all_groups(self, columns: range) -> Band:
        """Return a band with a row for each group, to choose from: many rows are of the same."""
        if self._of_groups is None or self._of_groups[0] != columns:
            made = self._made(range(self._count), columns, Groups(0, np.arange(self._count)))
            self._of_groups = columns, made
        return self._of_groups[1]

    def _made(self, rows: range, columns: range, groups: Groups | None) -> Band:
        blocks = zip(self._factors, self._parts.factors, strict=True)
        every = ((shared(part, one, rows, columns, groups), one.divides) for part, one in blocks)
        factors, zeros = combined(every, len(columns)), None
        is_tame = self._is_tame or _are_tame(factors.values)
        if self._zeros is not None and self._parts.zeros is not None:
            zeros = shared(self._zeros, self._parts.zeros, rows, columns, groups)
            is_tame = is_tame and _are_whole(zeros.values)
            zeros = zeros.ready(len(columns))
        return Band(rows.start, factors.ready(len(columns)), zeros, is_tame)


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
