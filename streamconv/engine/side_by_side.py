"""Two tensors read side by side, a few boxes at a time, each in the memory of one worker."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import TypeVar

from ..errors import allocating
from ..storage.access import Access
from ..storage.in_order import in_order
from ..storage.regions import Region
from ..tensors.arrays import Bits
from ..tensors.grids import Box
from ..tensors.refs import TensorRef
from ..tensors.views import leaf
from .boxes import boxes, cells
from .budget import Budget
from .reader import Reader

Pair = TypeVar("Pair")
Result = TypeVar("Result")

Compare = Callable[[Pair, Box, Bits, Bits], Result]
"""Takes what a pair of tensors is called, a box and its elements in both. It must not keep the elements."""

_Task = tuple[Pair, TensorRef, TensorRef, Box]


class SideBySide:
    """Reads pairs of tensors of one shape. A context manager: it closes the files.

    One worker's window and its box make room for two of each, because what is not contiguous has to be moved.

    Args:
        budget: how memory is divided; as many boxes as it has workers are read at a time.
        accesses: how windows come from the files of the one and of the other tensor.
        drops: drop what was read from the page cache.
    """

    def __init__(self, budget: Budget, accesses: tuple[Access, Access], drops: bool = False) -> None:
        self._half = budget.region_bytes // 2
        with allocating():
            self._workers = [_Worker(self._half, accesses, drops) for _ in range(budget.workers)]

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()

    def compare(
        self, pairs: Iterable[tuple[Pair, TensorRef, TensorRef]], compare: Compare[Pair, Result]
    ) -> Generator[Result, None, None]:
        """Yield what `compare` makes of every box, pair by pair, in the order of the first tensor of each.

        Close it (`contextlib.closing`) where not all results are taken.

        Args:
            pairs: what each pair is called, and the two tensors.
            compare: called in several threads.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        return in_order(self._tasks(pairs), [partial(worker.work, compare) for worker in self._workers])

    def _tasks(self, pairs: Iterable[tuple[Pair, TensorRef, TensorRef]]) -> Iterator[_Task[Pair]]:
        for pair, one, other in pairs:
            itemsize, view = max(one.dtype.itemsize, other.dtype.itemsize), leaf(one)
            for cell in cells(view):
                yield from ((pair, one, other, box) for box in boxes(view, cell, itemsize, self._half))


class _Worker:
    """The readers and the memory of one thread."""

    def __init__(self, half: int, accesses: tuple[Access, Access], drops: bool) -> None:
        self._readers = [Reader(half, access, drops) for access in accesses]
        self._spare = [Region(half), Region(half)]

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def work(self, compare: Compare[Pair, Result], task: _Task[Pair]) -> Result:
        pair, one, other, box = task
        # Nothing here holds the windows: the next ones must not be in memory next to them.
        return compare(pair, box, self._read(0, one, box), self._read(1, other, box))

    def _read(self, side: int, ref: TensorRef, box: Box) -> Bits:
        data, _ = self._readers[side].read(leaf(ref), box, ref.dtype, self._spare[side])
        return data
