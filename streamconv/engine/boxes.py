"""Boxes: the unit of work. How an output tensor is cut so that a budget holds and both disks see long runs.

A box is chosen so that its runs of bytes, in the source and in the output, are at least a page, better 64 KiB,
wherever shape and budget allow; then it grows along the source, so that shards are read in sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product

from ..tensors.grids import Box, box_shape, flat_index, runs
from ..tensors.view_nodes import Piece, View
from .tiles import even_part

#: Runs longer than this gain nothing on any disk measured.
LONG_RUN = 64 << 10

#: Boxes larger than this gain nothing where their runs are long: smaller ones let reading and writing overlap.
LARGE_BOX = 16 << 20


class Cells:
    """A view cut at its seams: parts that share no source, such as the experts of a stack; each made when asked for.

    Parts next to each other in a row of the output stay together where each alone would make short runs: gate and
    up of an expert, transposed and joined, are 4 KiB of every row.
    """

    def __init__(self, view: View) -> None:
        self._edges = [(0, *seams, size) for seams, size in zip(view.seams(), view.shape, strict=True)]
        if self._edges and min(b - a for a, b in pairwise(self._edges[-1])) * view.dtype.itemsize < LONG_RUN:
            self._edges[-1] = (0, view.shape[-1])
        self._count = math.prod(len(edges) - 1 for edges in self._edges) if math.prod(view.shape) else 0

    def __len__(self) -> int:
        return self._count

    def box(self, number: int) -> Box:
        """Return cell `number`, counted along the last axis first."""
        box = []
        for edges in reversed(self._edges):
            number, place = divmod(number, len(edges) - 1)
            box.append((edges[place], edges[place + 1]))
        return tuple(reversed(box))


def cells(view: View) -> Iterator[Box]:
    """Yield all cells of a view."""
    found = Cells(view)
    return map(found.box, range(len(found)))


def boxes(view: View, cell: Box, itemsize: int, region_bytes: int) -> Iterator[Box]:
    """Cut `cell` into boxes of at most `region_bytes`, in the order in which they lie in the source.

    `itemsize` is that of the wider of source and output elements: window and box have a region each.
    """
    if math.prod(box_shape(cell)) * itemsize <= min(
        region_bytes, LARGE_BOX
    ):  # most tensors of most models: nothing to weigh
        yield cell
        return
    by_source = _axes_by_source(view, cell)
    size = _box_size(cell, by_source, itemsize, region_bytes)
    order = tuple(reversed(by_source))
    starts = product(*(range(*cell[axis], size[axis]) for axis in order))
    for corner in starts:
        start = dict(zip(order, corner, strict=True))
        yield tuple((start[a], min(start[a] + size[a], stop)) for a, (_, stop) in enumerate(cell))


def is_scattered(view: View, itemsize: int, region_bytes: int) -> bool:
    """Return whether a region is too small for boxes with long runs in both source and output, as of a transpose."""
    cell = next(cells(view), None)
    if cell is None or math.prod(box_shape(cell)) * itemsize <= region_bytes:
        return False
    by_source = _axes_by_source(view, cell)
    size, extent = _box_size(cell, by_source, itemsize, region_bytes), box_shape(cell)
    return min(_run(size, extent, order) for order in (by_source, _by_output(cell))) * itemsize < LONG_RUN


def flows(view: View) -> bool:
    """Return whether any bytes of a view in row-major order are made of runs of its source as long as its rows."""
    cell = next(cells(view), None)
    if cell is None or runs(cell, view.shape)[0] < math.prod(box_shape(cell)):
        return False
    long = [axis for axis in _axes_by_source(view, cell) if cell[axis][1] - cell[axis][0] > 1]
    return long == sorted(long, reverse=True)


def source_position(view: View, cell: Box) -> tuple[str, int]:
    """Return where the first element of a cell lies, as path and offset, for sorting."""
    piece = _element(view, [low for low, _ in cell])
    return piece.leaf.position(piece.grid.start)


def _box_size(cell: Box, by_source: list[int], itemsize: int, region_bytes: int) -> list[int]:
    """Grow from one element: whichever side has the shorter run, until both are long; then along the source."""
    extent = box_shape(cell)
    by_output = _by_output(cell)
    size = [1] * len(cell)
    budget = region_bytes // itemsize
    while True:
        runs = _run(size, extent, by_source) * itemsize, _run(size, extent, by_output) * itemsize
        if min(runs) >= LONG_RUN:
            budget = min(budget, LARGE_BOX // itemsize)
        orders = (by_source, by_output) if min(runs[0], LONG_RUN) <= min(runs[1], LONG_RUN) else (by_output, by_source)
        if not any(_grow(size, extent, order, budget) for order in orders):
            return [even_part(length, most) for most, length in zip(size, extent, strict=True)]


def _grow(size: list[int], extent: Sequence[int], order: list[int], budget: int) -> bool:
    """Double the box along the first axis of `order` that is not full, as far as the budget allows."""
    axis = next((a for a in order if size[a] < extent[a]), None)
    if axis is None:
        return False
    most = budget // (math.prod(size) // size[axis])
    grown = min(2 * size[axis], extent[axis], most)
    if grown <= size[axis]:
        return False
    size[axis] = grown
    return True


def _run(size: list[int], extent: Sequence[int], order: list[int]) -> int:
    """Elements of a contiguous run of a box, for the side on which the axes lie in that order, fastest first."""
    run = 1
    for axis in order:
        run *= size[axis]
        if size[axis] < extent[axis]:
            break
    return run


def _by_output(cell: Box) -> list[int]:
    """Return the axes from the fastest in the output to the slowest."""
    return list(range(len(cell) - 1, -1, -1))


def _axes_by_source(view: View, cell: Box) -> list[int]:
    """Return the axes, first the one along which neighbours lie closest in the source, last where they lie farthest."""
    corner = [low for low, _ in cell]
    first = _element(view, corner)

    def distance(axis: int) -> tuple[float, int]:
        if cell[axis][1] - cell[axis][0] < 2:
            return 0, -axis
        neighbour = _element(view, [c + (a == axis) for a, c in enumerate(corner)])
        if neighbour.leaf != first.leaf:
            return math.inf, -axis
        return abs(_flat(neighbour) - _flat(first)), -axis

    return sorted(range(len(cell)), key=distance)


def _element(view: View, index: list[int]) -> Piece:
    return next(view.box(tuple((i, i + 1) for i in index)))


def _flat(piece: Piece) -> int:
    """Row-major number, in its leaf, of a piece's first element."""
    return flat_index(piece.grid.start, piece.leaf.shape)
