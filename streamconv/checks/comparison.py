"""Tensors of two checkpoints compared, a few boxes at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import groupby
from types import TracebackType
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from ..engine import budget as memory
from ..engine.budget import Budget
from ..engine.side_by_side import SideBySide
from ..errors import BudgetError
from ..storage import access, limits
from ..tensors.arrays import Bits
from ..tensors.grids import Box, box_shape, flat_index
from ..tensors.refs import Catalog, TensorRef
from .difference import Difference
from .elements import Compared, comparable

# Threads that compare: a disk is at its fastest with a few requests at a time. Half a region is a request.
_WORKERS = 3
_MOST_REGION = 32 * memory.MIB


def bytes_to_read(one: TensorRef, other: TensorRef) -> int:
    """Return the bytes of two tensors of one name, if there are elements of them that can be compared, else 0."""
    readable = one.shape == other.shape and comparable(one.dtype, other.dtype)
    return one.nbytes + other.nbytes if readable else 0


class Comparison:
    """Compares two checkpoints tensor by tensor. A context manager: it closes the files.

    Attributes:
        nbytes: the bytes that can be compared, of both sides together.
        done: how many of them were.
    """

    def __init__(self, one: Catalog, other: Catalog, limit: int, io: str) -> None:
        self._one, self._other = one, other
        accesses = (access.for_reading(io, one.files).access, access.for_reading(io, other.files).access)
        self._pair = SideBySide(_budget(limit, len(one) + len(other)), accesses, drops=True)
        self.nbytes = sum(bytes_to_read(one[name], other[name]) for name in one if name in other)
        self.done = 0

    def __enter__(self) -> Comparison:
        self._pair.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pair.__exit__(kind, error, trace)

    def compare(
        self, names: Sequence[str], report: Callable[[int, str], None]
    ) -> Iterator[tuple[str, Difference | None]]:
        """Yield how tensors that are in both differ, in their order.

        Args:
            names: the tensors.
            report: called with `done` and the file that was read last.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        pairs = ((name, self._one[name], self._other[name]) for name in names if self._are_comparable(name))
        with closing(self._pair.compare(pairs, self._part)) as parts:
            groups = groupby(parts, key=lambda part: part.name)
            ready = next(groups, None)
            for name in names:
                if ready is None or ready[0] != name:
                    yield name, self._difference(name, ())
                    continue
                yield name, self._difference(name, self._counted(ready[1], report))
                ready = next(groups, None)

    def _are_comparable(self, name: str) -> bool:
        one, other = self._one[name], self._other[name]
        return one.shape == other.shape and comparable(one.dtype, other.dtype)

    def _part(self, name: str, box: Box, left: Bits, right: Bits) -> _Part:
        """Compare a box of a tensor: in a thread of its own."""
        one, other = self._one[name], self._other[name]
        found = Compared(one.dtype, other.dtype, math.prod(one.shape))
        found.add(left, right, _numbering(box, one.shape))
        return _Part(name, found, left.nbytes + right.nbytes)

    def _counted(self, parts: Iterable[_Part], report: Callable[[int, str], None]) -> Iterator[Compared]:
        for name, compared, nbytes in parts:
            self.done += nbytes
            report(self.done, next(self._one[name].places()).file.path.name)
            yield compared

    def _difference(self, name: str, parts: Iterable[Compared]) -> Difference | None:
        """Return how a tensor differs, of which these parts were compared."""
        one, other = self._one[name], self._other[name]
        if one.shape != other.shape:
            return Difference("shape", one, other)
        compared = Compared(one.dtype, other.dtype, math.prod(one.shape)) if self._are_comparable(name) else None
        for part in parts:
            if compared is not None:
                compared.merge(part)
        if one.dtype != other.dtype:
            return Difference("dtype", one, other, compared)
        if compared is None or compared.same:
            return None
        return Difference("values" if compared.unequal else "bits", one, other, compared)


class _Part(NamedTuple):
    """How a box of a tensor compares, and its bytes on both sides."""

    name: str
    compared: Compared
    nbytes: int


def _budget(limit: int, tensors: int) -> Budget:
    """Divide the memory limit among a few threads that compare, or leave it to one.

    Raises:
        BudgetError: it does not suffice for one; the hint names the smallest that does.
    """
    found = memory.divide(limit, 1, tensors)
    # Each reads two checkpoints.
    workers = min(_WORKERS, limits.most_workers() // 2)
    if workers > 1:
        with suppress(BudgetError):
            found = memory.divide(limit, workers, tensors)
    return replace(found, region_bytes=min(found.region_bytes, _MOST_REGION))


def _numbering(box: Box, shape: tuple[int, ...]) -> Callable[[int], int]:
    """Return the function from an element's place in a box to its number in the tensor."""

    def number(place: int) -> int:
        inside = np.unravel_index(place, box_shape(box))
        return flat_index([low + int(i) for (low, _), i in zip(box, inside, strict=True)], shape)

    return number
