"""Compare tensors that must hold the same bytes."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from ..planning.outputs import SameBytes
from ..storage.access import Access
from ..storage.regions import Region
from ..tensors.arrays import Bits
from ..tensors.view_nodes import View
from ..tensors.views import leaf
from .boxes import boxes, cells
from .budget import Budget
from .reader import Reader, read_box

_STEP = 1 << 18


def check_same_bytes(check: SameBytes, budget: Budget, access: Access) -> None:
    """Compare two tensors that have to hold the same bytes, or one with zeros.

    Raises:
        StreamconvError: the check's own: they differ.
    """
    other = leaf(check.other)
    if check.kept is None:
        _check_zeros(check, other, budget, access)
        return
    kept = leaf(check.kept)
    same = (kept.shape, kept.dtype) == (other.shape, other.dtype)
    # One worker's window and box make room for two of each, because what is not contiguous has to be moved.
    half = budget.region_bytes // 2
    one, two = Region(half), Region(half)
    with closing(Reader(half, access)) as first, closing(Reader(half, access)) as second:
        for cell in cells(kept) if same else ():
            for box in boxes(kept, cell, kept.dtype.itemsize, half):
                same = same and equal_bytes(read_box(first, kept, box, one), read_box(second, other, box, two))
    if not same:
        raise check.error


def _check_zeros(check: SameBytes, view: View, budget: Budget, access: Access) -> None:
    spare = Region(budget.region_bytes)
    with closing(Reader(budget.region_bytes, access)) as reader:
        for cell in cells(view):
            for box in boxes(view, cell, view.dtype.itemsize, budget.region_bytes):
                if read_box(reader, view, box, spare).any():
                    raise check.error


def equal_bytes(one: Bits, other: Bits) -> bool:
    """Whether two arrays hold the same bits, compared in steps that stay in the cache."""
    return all(np.array_equal(one[i : i + _STEP], other[i : i + _STEP]) for i in range(0, len(one), _STEP))
