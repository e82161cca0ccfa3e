"""Compare tensors that must hold the same bytes."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from ..errors import allocating
from ..planning.repeats import SameBytes
from ..storage.access import Access
from ..storage.regions import Region
from ..tensors.arrays import Bits
from ..tensors.refs import TensorRef
from ..tensors.views import leaf
from .boxes import boxes, cells
from .budget import Budget
from .reader import Reader
from .side_by_side import SideBySide

_STEP = 1 << 18


def check_same_bytes(check: SameBytes, budget: Budget, access: Access) -> None:
    """Compare two tensors that must hold the same bytes, or one with zeros.

    Raises:
        StreamconvError: the check's own: they differ.
        SourceError: a file was changed, or cannot be read.
    """
    with allocating():
        if check.kept is None:
            same = _is_zero(check.other, budget, access)
        else:
            same = _are_same(check.kept, check.other, budget, access)
    if not same:
        raise check.error


def _are_same(kept: TensorRef, other: TensorRef, budget: Budget, access: Access) -> bool:
    if (kept.shape, kept.dtype) != (other.shape, other.dtype):
        return False
    with SideBySide(budget, (access, access)) as pair:
        same = pair.compare([(None, kept, other)], lambda _, box, one, two: equal_bytes(one, two))
        with closing(same):
            return all(same)


def _is_zero(ref: TensorRef, budget: Budget, access: Access) -> bool:
    view, spare = leaf(ref), Region(budget.region_bytes)
    with closing(Reader(budget.region_bytes, access)) as reader:
        every = (box for cell in cells(view) for box in boxes(view, cell, ref.dtype.itemsize, budget.region_bytes))
        return not any(reader.read(view, box, ref.dtype, spare)[0].any() for box in every)


def equal_bytes(one: Bits, other: Bits) -> bool:
    """Return whether two arrays hold the same bits, compared in steps that stay in the cache."""
    return all(np.array_equal(one[i : i + _STEP], other[i : i + _STEP]) for i in range(0, len(one), _STEP))
