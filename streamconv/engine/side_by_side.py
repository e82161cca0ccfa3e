"""Two tensors read side by side, in the memory of one worker."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from ..errors import allocating
from ..storage.access import Access
from ..storage.regions import Region
from ..tensors.arrays import Bits
from ..tensors.grids import Box
from ..tensors.refs import TensorRef
from ..tensors.views import leaf
from .boxes import boxes, cells
from .reader import Reader

Compare = Callable[[Box, Bits, Bits], bool]
"""Takes a box and its elements in both tensors; returns whether to read the next box. It must not keep the elements."""


class SideBySide:
    """Reads pairs of tensors of one shape. A context manager: it closes the files.

    One worker's window and its box make room for two of each, because what is not contiguous has to be moved.

    Args:
        region_bytes: bytes of one worker's window, and again of its box.
        accesses: how windows come from the files of the one and of the other tensor.
        drops: drop what was read from the page cache.
    """

    def __init__(self, region_bytes: int, accesses: tuple[Access, Access], drops: bool = False) -> None:
        self._half = region_bytes // 2
        with allocating():
            self._readers = [Reader(self._half, access, drops) for access in accesses]
            self._spare = [Region(self._half), Region(self._half)]

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reader in self._readers:
            reader.close()

    def read(self, one: TensorRef, other: TensorRef, compare: Compare) -> bool:
        """Read two tensors box by box, in the order of the one; return whether `compare` never stopped it.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        itemsize = max(one.dtype.itemsize, other.dtype.itemsize)
        view = leaf(one)
        every = (box for cell in cells(view) for box in boxes(view, cell, itemsize, self._half))
        # Nothing here holds the windows: the next ones must not be in memory next to them.
        return all(compare(box, self._read(0, one, box), self._read(1, other, box)) for box in every)

    def _read(self, side: int, ref: TensorRef, box: Box) -> Bits:
        data, _ = self._readers[side].read(leaf(ref), box, ref.dtype, self._spare[side])
        return data
