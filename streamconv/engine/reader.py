"""Boxes of views, built from windows of the source.

Each worker has one reader, and a reader holds one window at a time. A window is never larger than the region the
budget gives it: a grid that would need a larger one, or that is mostly holes, is read in parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from ..planning.outputs import Output
from ..storage.access import Access
from ..storage.device import lies_at
from ..storage.regions import Placement, Region
from ..tensors.arrays import Bits, Bytes
from ..tensors.dtypes import DType
from ..tensors.grids import Box, Grid, box_shape, runs
from ..tensors.view_nodes import Dequantised, Leaf, Piece, Stored, View, Zeros
from .dequantise import dequantise
from .floats import FLOATS, Floats
from .kernels import cast
from .sharing import shared_window
from .stretches import Content, Run, Stretch
from .windows import Windows, bits, window_bytes

# Bytes between two runs that are read rather than left out, such as the head of a record: a request costs more.
_HOLE = 4 << 10


class Reader:
    """Reads boxes of views, one window at a time.

    Args:
        region_bytes: bytes of a window at most.
        access: how windows come from files.
        drops: drop what was read from the page cache: nobody reads it again, and others need the room.
    """

    def __init__(self, region_bytes: int, access: Access, drops: bool = False) -> None:
        self.region_bytes = region_bytes
        self._windows = Windows(region_bytes, access, drops)

    def close(self) -> None:
        """Close the files that it holds open."""
        self._windows.close()

    @property
    def bytes_read(self) -> int:
        """Bytes read so far."""
        return self._windows.bytes_read

    def share(self, reads: Sequence[tuple[View, Box]]) -> None:
        """Read what several boxes need, where that is one window: each `read` then takes its part of it.

        Args:
            reads: the views and their boxes, which are read next.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        found = shared_window(reads, self.region_bytes)
        if found is not None:
            self._windows.hold(*found)

    def read(
        self, view: View, box: Box, dtype: DType, spare: Region, placement: Placement | None = None
    ) -> tuple[Bits, int]:
        """Read a box of a view, cast to `dtype`.

        Args:
            view, box: what to read.
            dtype: of the result.
            spare: where the elements go unless they lie in the source as they are wanted.
            placement: how they have to lie in memory, where that matters.

        Returns:
            The elements in row-major order, valid until the next call, and how many finite values became infinite.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        pieces = view.box(box)
        first = next(pieces)
        stored = self._as_stored(first, box, dtype)
        if stored is not None and lies_at(stored, placement):
            return stored, 0
        data = spare.array(math.prod(box_shape(box)), bits(dtype), placement)
        if stored is None:
            return data, self._fill(chain((first,), pieces), data, dtype)
        np.copyto(data, stored)
        return data, 0

    def stretch(
        self,
        stretch: Stretch,
        spare: Region,
        placement: Placement | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> tuple[Bytes, int]:
        """Make the bytes of a stretch.

        Args:
            stretch: what to make; a region is large enough for it.
            spare: where the bytes go unless they lie in the source as they are wanted.
            placement: how they have to lie in memory, where that matters.
            is_stopped: asked before each part of it: what is returned once it was stopped is incomplete.

        Returns:
            The bytes, valid until the next call, and how many finite values became infinite.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        contents = [*stretch.contents()]
        stored = self._run_as_stored(contents)
        if stored is not None and lies_at(stored, placement):
            return stored, 0
        made = spare.array(stretch.nbytes, np.dtype(np.uint8), placement)
        if stored is None:
            return made, self._fill_stretch(contents, made, is_stopped)
        np.copyto(made, stored)
        return made, 0

    def _run_as_stored(self, contents: Sequence[Content]) -> Bytes | None:
        """Return the bytes of a stretch as they lie in the source, `None` where there are several parts, or casts."""
        first, *others = contents
        if others or not isinstance(first, Run) or first.dtype != first.target:
            return None
        return self._windows.run(first.file, first.offset, first.count, first.dtype).view(np.uint8)

    def recount(self, output: Output, box: Box, made: Bytes) -> int:
        """Return how many finite values became infinite in a box, whose bytes are made; make them again to find out.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        found, its_float = made.view(bits(output.dtype)), FLOATS.get(output.dtype)
        if its_float is None or Floats(found, its_float).are_finite():
            return 0
        return self.fill(output.view, box, found, output.dtype)

    def _fill_stretch(self, contents: Sequence[Content], target: Bytes, is_stopped: Callable[[], bool]) -> int:
        begin = overflowed = 0
        for number, content in enumerate(contents):
            if is_stopped():
                break
            if isinstance(content, (Run, memoryview)):
                end = begin + content.nbytes
                if isinstance(content, Run):
                    self._hold_close_ones(contents, number)
                    overflowed += self._fill_run(content, target[begin:end])
                else:
                    target[begin:end] = content
                begin = end
                continue
            if len(content) > 1 and isinstance(next(content[0].output.view.leaves()), Dequantised):
                self.share([(task.output.view, task.box) for task in content])
            for task in content:
                dtype = task.output.dtype
                end = begin + math.prod(box_shape(task.box)) * dtype.itemsize
                overflowed += self.fill(task.output.view, task.box, target[begin:end].view(bits(dtype)), dtype)
                begin = end
        return overflowed

    def _hold_close_ones(self, contents: Sequence[Content], number: int) -> None:
        """Read a run and those after it that lie close behind it in the source by one request."""
        run = contents[number]
        if not isinstance(run, Run) or self._windows.holds(run.file, run.offset, run.end):
            return
        end, unused = run.end, 0
        for index in range(number + 1, len(contents)):
            other = contents[index]
            if isinstance(other, memoryview):
                continue
            if not isinstance(other, Run) or other.file is not run.file or not 0 <= other.offset - end <= _HOLE:
                break
            if other.end - run.offset > self.region_bytes:
                break
            unused += other.offset - end
            end = other.end
        if end > run.end:
            self._windows.hold_range(run.file, run.offset, end, unused)

    def _fill_run(self, run: Run, target: Bytes) -> int:
        made, most, overflowed = target.view(bits(run.target)), self.region_bytes // run.dtype.itemsize, 0
        for first in range(0, run.count, most):
            part = run.part(first, min(most, run.count - first))
            read = self._windows.run(part.file, part.offset, part.count, part.dtype)
            overflowed += cast(read, made[first : first + part.count], run.dtype, run.target)
        return overflowed

    def fill(self, view: View, box: Box, target: Bits, dtype: DType) -> int:
        """Fill `target`, a flat buffer of the box's elements in row-major order, with a box of a view, cast to `dtype`.

        Returns:
            How many finite values became infinite.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        return self._fill(view.box(box), target, dtype)

    def _fill(self, pieces: Iterable[Piece], target: Bits, dtype: DType) -> int:
        overflowed = 0
        for piece in pieces:
            if isinstance(piece.leaf, Zeros):
                _strided(target, piece.grid, None)[...] = 0
                continue
            for grid in self.split_to_fit(piece.leaf, piece.grid):
                overflowed += self._copy(piece.leaf, grid, target, dtype)
        return overflowed

    def _copy(self, leaf: Leaf, grid: Grid, target: Bits, dtype: DType) -> int:
        """Do one strided copy. The window is gone when this returns: the next one must not be held next to it."""
        if isinstance(leaf, Dequantised) and grid.is_box:
            bounds = grid.bounds()
            return dequantise(self._windows.quantised(leaf, bounds), bounds, _as_box(target, grid), dtype)
        source = _strided(self._windows.window(leaf, grid.bounds()), grid, grid.bounds())
        return cast(source, _strided(target, grid, None), leaf.dtype, dtype)

    def _as_stored(self, piece: Piece, box: Box, dtype: DType) -> Bits | None:
        """Return the box's elements as they lie in the source, or `None` where they have to be moved or cast."""
        bounds = piece.grid.bounds()
        shape = box_shape(bounds)
        size = math.prod(shape)
        if not isinstance(piece.leaf, Stored) or piece.leaf.dtype != dtype or size != math.prod(box_shape(box)):
            return None
        run, _ = runs(bounds, piece.leaf.shape)
        if run < size or run * dtype.itemsize > self.region_bytes or not _in_order(piece.grid, shape):
            return None
        return self._windows.window(piece.leaf, bounds).reshape(-1)

    def split_to_fit(self, leaf: Leaf, grid: Grid) -> Iterator[Grid]:
        """Yield `grid`, halved until its bounds fit the region and are not mostly holes."""
        bounds = grid.bounds()
        size, needed = math.prod(box_shape(bounds)), window_bytes(leaf, bounds)
        if isinstance(leaf, Dequantised) and not grid.is_box:
            needed += size * leaf.dtype.itemsize
        if (needed <= self.region_bytes and size <= 2 * grid.count) or grid.count == 1:
            yield grid
            return
        loop = max(grid.loops, key=lambda p: p.step * math.prod(leaf.shape[p.axis + 1 :]))
        half = loop.count // 2
        yield from self.split_to_fit(leaf, grid.part(loop, 0, half))
        yield from self.split_to_fit(leaf, grid.part(loop, half, loop.count))


def _strided(flat: Bits, grid: Grid, bounds: Box | None) -> Bits:
    """View a grid's elements in the order of its loops: in the buffer (no bounds), or in a window with bounds."""
    shape = [loop.count for loop in grid.loops]
    if bounds is None:
        base = flat[grid.offset :]
        strides = [loop.stride * flat.itemsize for loop in grid.loops]
    else:
        base = flat
        strides = [loop.step * flat.strides[loop.axis] for loop in grid.loops]
    return np.lib.stride_tricks.as_strided(base, shape, strides)


def _as_box(flat: Bits, grid: Grid) -> Bits:
    """View the buffer of a grid that is a box, with the shape and the axes of the box."""
    strides = [0] * len(grid.start)
    for loop in grid.loops:
        strides[loop.axis] = loop.stride * flat.itemsize
    return np.lib.stride_tricks.as_strided(flat[grid.offset :], box_shape(grid.bounds()), strides)


def _in_order(grid: Grid, shape: tuple[int, ...]) -> bool:
    """Whether the grid puts the elements of a dense box of `shape` in row-major order."""
    return all(loop.step == 1 and loop.stride == math.prod(shape[loop.axis + 1 :]) for loop in grid.loops)
