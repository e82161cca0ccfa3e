"""Compare the copies of slices that several ranks hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from ..errors import VerificationError
from ..storage.access import Access
from ..tensors.arrays import Bits
from ..tensors.grids import Box, box_shape, flat_index
from ..tensors.refs import TensorRef
from ..tensors.slices import Copy
from ..text import quote
from .budget import Budget
from .progress import OnProgress, ProgressReporter
from .same_bytes import equal_bytes
from .side_by_side import SideBySide


def check_copies(refs: Iterable[TensorRef], budget: Budget, access: Access, progress: OnProgress | None = None) -> int:
    """Compare every copy of every slice with the one that is read; return how many bytes were compared.

    Raises:
        VerificationError: two copies differ: which tensor, which ranks, and where.
        SourceError: a file was changed, or cannot be read.
    """
    sliced = [ref for ref in refs if ref.slices is not None and ref.nbytes]
    total, done = sum(map(_bytes_of_copies, sliced)), 0
    reporter = ProgressReporter(progress, total, budget.memory_limit)
    with (
        SideBySide(budget, (access, access), drops=True) as pair,
        closing(pair.compare(_side_by_side(sliced), _check)) as compared,
    ):
        for name, nbytes in compared:
            done += nbytes
            reporter.report(done, f"comparing copies of {name}")
    return done


def _bytes_of_copies(ref: TensorRef) -> int:
    return sum(ref.slice(number).nbytes for number, _, _ in _pairs(ref))


def _pairs(ref: TensorRef) -> Iterable[tuple[int, Copy, Copy]]:
    if ref.slices is not None:
        for number in range(len(ref.slices)):
            kept, *others = ref.slices.copies(number)
            yield from ((number, kept, other) for other in others)


class _Copies(NamedTuple):
    """A slice as it is read, one more copy of it, and the ranks that hold them."""

    one: TensorRef
    two: TensorRef
    ranks: tuple[int, int]


def _side_by_side(refs: Iterable[TensorRef]) -> Iterator[tuple[_Copies, TensorRef, TensorRef]]:
    for ref in refs:
        for number, kept, other in _pairs(ref):
            one = ref.slice(number)
            two = replace(one, extents=other.extents)
            yield _Copies(one, two, (kept.rank, other.rank)), one, two


def _check(copies: _Copies, box: Box, left: Bits, right: Bits) -> tuple[str, int]:
    """Return the slice's name and the bytes of it that were compared."""
    if not equal_bytes(left, right):
        raise _differs(*copies, _offset(copies.one, box, left, right))
    return copies.one.name, left.nbytes


def _offset(ref: TensorRef, box: Box, left: Bits, right: Bits) -> int:
    """Return the byte of a slice at which two boxes of it differ first."""
    first = int(np.flatnonzero(left != right)[0])
    inside = np.unravel_index(first, box_shape(box))
    index = (low + int(at) for (low, _), at in zip(box, inside, strict=True))
    return flat_index(index, ref.shape) * ref.dtype.itemsize


def _differs(one: TensorRef, two: TensorRef, ranks: tuple[int, int], offset: int) -> VerificationError:
    places = [next(ref.spans(offset, 1)) for ref in (one, two)]
    where = " and ".join(f"byte {place.offset} of {quote(place.file.path)}" for place in places)
    return VerificationError(
        f"the copies of {quote(one.name)} in ranks {ranks[0]} and {ranks[1]} differ, first at byte {offset} of the "
        f"slice: {where}",
        "one of the two files is damaged, or the ranks did not save the same step: choose another step of the training",
    )
