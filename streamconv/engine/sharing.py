"""Slices of a tensor that are read together: a window holds whole rows, and each slice has some columns of them.

Alone, a slice that is cut on the last axis is read in runs as short as its rows. Neighbors share a window, which is
read in long runs, and each is written in long runs: its part of the window is contiguous in its file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from msgspec import Struct

from ..planning.outputs import Output
from ..tensors.grids import Box, box_shape, joined, runs
from ..tensors.view_nodes import Dequantised, Leaf, Stored, View
from .boxes import LONG_RUN, boxes
from .windows import window_bytes

#: Slices that are read together, at most.
_MOST = 512


class Task(Struct, frozen=True):
    """A box to convert, of output `number` of the plan."""

    number: int
    output: Output
    box: Box


class _Window(Struct, frozen=True):
    """What is read of a leaf."""

    leaf: Leaf
    box: Box

    @property
    def run(self) -> int:
        """Bytes of its contiguous runs in the source."""
        count = runs(self.box, self.leaf.shape)[0]
        return count * self.nbytes // math.prod(box_shape(self.box))

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return window_bytes(self.leaf, self.box)


def neighbors(cells: Iterable[Task]) -> Iterator[list[Task]]:
    """Yield cells of slices of one tensor together where their sources touch along one axis, and all others alone."""
    group: list[Task] = []
    window: _Window | None = None
    for cell in cells:
        mine = _window(cell.output.view, cell.box) if cell.output.slice_of else None
        both = _joined(window, mine) if group and _are_alike(group[0], cell) and len(group) < _MOST else None
        if group and both is None:
            yield group
            group = []
        group.append(cell)
        window = both or mine
    if group:
        yield group


def shared_boxes(cells: Sequence[Task], region_bytes: int) -> Iterator[list[Task]]:
    """Cut neighbors at the same places, and yield their boxes that share a window; nothing where that does not pay."""
    if len(cells) < 2:
        return
    first = cells[0]
    every = boxes(first.output.view, first.box, first.output.widest * len(cells), region_bytes)
    for number, box in enumerate(every):
        row = [_moved(cell, box, first.box) for cell in cells]
        if not number and not _pays(row, next(boxes(first.output.view, first.box, first.output.widest, region_bytes))):
            return
        yield row


def shared_window(reads: Iterable[tuple[View, Box]], region_bytes: int) -> tuple[Leaf, Box] | None:
    """Return the window that holds what several boxes need; `None` where there is none, or most of it is not needed."""
    windows = [_window(view, box) for view, box in reads]
    found = windows[0]
    if found is None:
        return None
    needed = 0
    for window in windows:
        if window is None or window.leaf != found.leaf:
            return None
        needed += window.nbytes
        both = tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(found.box, window.box, strict=True))
        found = _Window(found.leaf, both)
    return (found.leaf, found.box) if found.nbytes <= min(region_bytes, 2 * needed) else None


def _window(view: View, box: Box) -> _Window | None:
    """Return what a box needs of the source, `None` where that is not one dense box of a tensor on disk."""
    pieces = list(islice(view.box(box), 2))
    if len(pieces) != 1 or not isinstance(pieces[0].leaf, (Stored, Dequantised)):
        return None
    leaf, grid = pieces[0].leaf, pieces[0].grid
    return _Window(leaf, grid.bounds()) if grid.is_box else None


def _joined(one: _Window | None, other: _Window | None) -> _Window | None:
    if one is None or other is None or one.leaf != other.leaf:
        return None
    box = joined(one.box, other.box)
    return _Window(one.leaf, box) if box else None


def _are_alike(one: Task, other: Task) -> bool:
    return one.output.slice_of == other.output.slice_of and box_shape(one.box) == box_shape(other.box)


def _moved(cell: Task, box: Box, origin: Box) -> Task:
    """Return the box of a cell that lies in it as `box` does in `origin`."""
    ways = [low - first for (low, _), (first, _) in zip(cell.box, origin, strict=True)]
    moved = tuple((low + way, high + way) for (low, high), way in zip(box, ways, strict=True))
    return Task(cell.number, cell.output, moved)


def _pays(row: Sequence[Task], alone: Box) -> bool:
    """Return whether boxes that share a window have longer runs, on the side where they are shorter, than one alone."""
    output, box = row[0].output, row[0].box
    window = _window(output.view, alone)
    if window is None or window.run >= LONG_RUN:
        return False
    shared = _window(output.view, box)
    for task in row[1:]:
        shared = _joined(shared, _window(task.output.view, task.box))
    return shared is not None and min(shared.run, _run(output, box)) > min(window.run, _run(output, alone))


def _run(output: Output, box: Box) -> int:
    """Return the bytes of a box's contiguous runs in its output."""
    return runs(box, output.view.shape)[0] * output.dtype.itemsize
