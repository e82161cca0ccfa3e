"""Grids: regular sets of elements, and how the seams of a view cut them.

A grid is nested loops over coordinates, each loop with a count, a step along one axis of a tensor, and a stride in the
flat buffer that the elements go to. Every operation on views rewrites a grid into grids over its operands, so any box
of any tree of operations ends as a few grids over tensors on disk: plain strided copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from msgspec import Struct
from msgspec.structs import replace

Box = tuple[tuple[int, int], ...]
"""Per axis (start, stop): an axis-aligned part of a tensor."""


class Loop(Struct, frozen=True):
    """`count` coordinates, `step` apart on `axis` of the tensor, `stride` elements apart in the buffer."""

    count: int
    axis: int
    step: int
    stride: int


class Grid(Struct, frozen=True):
    """The elements `start + sum(index · step)` over all loops; the first lies at element `offset` of the buffer."""

    start: tuple[int, ...]
    loops: tuple[Loop, ...]
    offset: int = 0

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(loop.count for loop in self.loops)

    @property
    def is_box(self) -> bool:
        """Whether it is all of its bounds, each axis one loop: the axes may lie in any order in the buffer."""
        axes = {loop.axis for loop in self.loops}
        return len(axes) == len(self.loops) and all(loop.step == 1 for loop in self.loops)

    def span(self, axis: int) -> int:
        """Return the distance between the lowest and the highest coordinate on `axis`."""
        return sum((loop.count - 1) * loop.step for loop in self.loops if loop.axis == axis)

    def bounds(self) -> Box:
        """Return the smallest box that holds all its elements."""
        return tuple((low, low + self.span(axis) + 1) for axis, low in enumerate(self.start))

    def outermost(self, axis: int) -> Loop | None:
        """Return the loop with the longest step on `axis`, `None` without any."""
        return max((loop for loop in self.loops if loop.axis == axis), key=lambda p: p.step, default=None)

    def part(self, loop: Loop, first: int, stop: int) -> Grid:
        """Return the grid with `loop` restricted to `first` … `stop`."""
        start = list(self.start)
        start[loop.axis] += first * loop.step
        rest = tuple(p for p in self.loops if p is not loop)
        kept = (replace(loop, count=stop - first),) if stop - first > 1 else ()
        return Grid(tuple(start), rest + kept, self.offset + first * loop.stride)


def box_grid(box: Box) -> Grid:
    """Return the grid that reads `box` into a row-major buffer of the box's shape."""
    loops, stride = [], 1
    for axis in range(len(box) - 1, -1, -1):
        count = box[axis][1] - box[axis][0]
        if count != 1:
            loops.append(Loop(count, axis, 1, stride))
        stride *= count
    return Grid(tuple(low for low, _ in box), tuple(loops))


def whole(shape: tuple[int, ...]) -> Box:
    """Return the box that is all of a tensor of that shape."""
    return tuple((0, n) for n in shape)


def box_shape(box: Box) -> tuple[int, ...]:
    """Return the shape of a box."""
    return tuple(stop - start for start, stop in box)


def flat_index(index: Iterable[int], shape: Sequence[int]) -> int:
    """Return the row-major number of an element."""
    flat = 0
    for coordinate, size in zip(index, shape, strict=True):
        flat = flat * size + coordinate
    return flat


def unravelled(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the index of the element with a row-major number."""
    index = []
    for size in reversed(shape):
        flat, at = divmod(flat, size)
        index.append(at)
    return tuple(reversed(index))


def runs(box: Box, shape: tuple[int, ...]) -> tuple[int, Iterator[int]]:
    """Return how `box` lies in a row-major tensor: elements of a contiguous run, and the flat index of each run."""
    run, axis = 1, len(box)
    while axis:
        axis -= 1
        run *= box[axis][1] - box[axis][0]
        if box[axis] != (0, shape[axis]):
            break
    inner = tuple(low for low, _ in box[axis:])
    return run, (flat_index((*outer, *inner), shape) for outer in product(*(range(a, b) for a, b in box[:axis])))


def flat_boxes(first: int, stop: int, shape: tuple[int, ...]) -> Iterator[Box]:
    """Yield the elements with row-major numbers `first` up to, not including, `stop` as boxes that do not overlap."""
    if first >= stop:
        return
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    low, high = -(-first // inner), stop // inner
    ends = [(first, stop)] if low > high else [(first, low * inner), (high * inner, stop)]
    if low < high:
        yield (low, high), *whole(shape[1:])
    for begin, end in ends:
        row = begin // inner
        yield from (((row, row + 1), *box) for box in flat_boxes(begin - row * inner, end - row * inner, shape[1:]))


def overlap(box: Box, other: Box) -> Box | None:
    """Return what two boxes have in common, `None` where that is nothing."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, other, strict=True))
    return both if all(low < high for low, high in both) else None


def without(box: Box, other: Box) -> Iterator[Box]:
    """Yield the part of `box` that lies outside `other`, as boxes that do not overlap."""
    if any(min(b, d) <= max(a, c) for (a, b), (c, d) in zip(box, other, strict=True)):
        yield box
        return
    for axis, (low, high) in enumerate(other):
        begin, end = box[axis]
        if begin < low:
            yield (*box[:axis], (begin, low), *box[axis + 1 :])
        if high < end:
            yield (*box[:axis], (high, end), *box[axis + 1 :])
        box = (*box[:axis], (max(begin, low), min(end, high)), *box[axis + 1 :])


def joined(box: Box, other: Box) -> Box | None:
    """Return the union of two boxes that touch along one axis, `None` of others."""
    unlike = [axis for axis, (one, two) in enumerate(zip(box, other, strict=True)) if one != two]
    if len(unlike) != 1:
        return None
    axis = unlike[0]
    (a, b), (c, d) = box[axis], other[axis]
    return (*box[:axis], (min(a, c), max(b, d)), *box[axis + 1 :]) if b == c or d == a else None


def box_parts(box: Box, most: int) -> Iterator[Box]:
    """Yield `box` in parts of at most `most` elements, each of them one run of the box in row-major order."""
    axis = next((axis for axis, (low, high) in enumerate(box) if high - low > 1), None)
    if axis is None:
        yield box
        return
    low, high = box[axis]
    inner = math.prod(box_shape(box[axis + 1 :]))
    step = max(1, most // inner)
    for begin in range(low, high, step):
        part = (*box[:axis], (begin, min(begin + step, high)), *box[axis + 1 :])
        yield from box_parts(part, most) if inner > most else (part,)


def clip(grid: Grid, axis: int, low: int, high: int) -> Iterator[Grid]:
    """Yield the part of `grid` whose coordinates on `axis` lie in [low, high), as grids."""
    first = grid.start[axis]
    last = first + grid.span(axis)
    if first >= high or last < low:
        return
    loop = grid.outermost(axis)
    if loop is None or (first >= low and last < high):
        yield grid
        return
    inner = last - first - (loop.count - 1) * loop.step
    reach = (
        max(0, -((first + inner - low) // loop.step)),
        min(loop.count - 1, (high - 1 - first) // loop.step),
    )
    full = max(0, -((first - low) // loop.step)), min(loop.count - 1, (high - 1 - inner - first) // loop.step)
    if full[0] <= full[1]:
        yield grid.part(loop, full[0], full[1] + 1)
    for index in range(reach[0], reach[1] + 1):
        if not full[0] <= index <= full[1]:
            yield from clip(grid.part(loop, index, index + 1), axis, low, high)


def unmerge(grid: Grid, axis: int, size: int) -> Iterator[Grid]:
    """Yield `grid` on a merged axis as grids over the two axes it was merged from.

    Coordinate c on `axis` becomes (c // size, c % size) on `axis` and `axis + 1`. A run that begins or ends inside a
    row of `size` is not a rectangle there: it is cut into head, body and tail.
    """
    loop = _carrying(grid, axis, size)
    if loop is None:
        yield _divided(grid, axis, size)
        return
    for piece in _rows(grid, loop, size):
        yield from unmerge(piece, axis, size)


def _carrying(grid: Grid, axis: int, size: int) -> Loop | None:
    """Return the outermost loop on `axis` that would carry from the inner coordinate into the outer one."""
    inner = [loop for loop in grid.loops if loop.axis == axis and loop.step % size]
    reach = grid.start[axis] % size + sum((loop.count - 1) * loop.step for loop in inner)
    return max(inner, key=lambda p: p.step) if inner and reach >= size else None


def _divided(grid: Grid, axis: int, size: int) -> Grid:
    def placed(loop: Loop) -> Loop:
        if loop.axis != axis:
            return replace(loop, axis=loop.axis + 1) if loop.axis > axis else loop
        if loop.step % size:
            return replace(loop, axis=axis + 1)
        return replace(loop, step=loop.step // size)

    outer, inner = divmod(grid.start[axis], size)
    start = (*grid.start[:axis], outer, inner, *grid.start[axis + 1 :])
    return Grid(start, tuple(placed(loop) for loop in grid.loops), grid.offset)


def _rows(grid: Grid, loop: Loop, size: int) -> Iterator[Grid]:
    """Yield `grid` with `loop` cut where it crosses rows of `size`: a partial first row, whole rows, a partial last."""
    per_row, odd = divmod(size, loop.step)
    first = grid.start[loop.axis] % size
    below = sum((p.count - 1) * p.step for p in grid.loops if p.axis == loop.axis and p.step < loop.step)
    if odd or first % loop.step + below >= loop.step:
        yield from (grid.part(loop, i, i + 1) for i in range(loop.count))
        return
    head = min(loop.count, -(first // loop.step) % per_row)
    rows, tail = divmod(loop.count - head, per_row)
    if head:
        yield grid.part(loop, 0, head)
    if rows:
        yield _folded(grid.part(loop, head, loop.count - tail), loop, rows, per_row)
    if tail:
        yield grid.part(loop, loop.count - tail, loop.count)


def _folded(grid: Grid, loop: Loop, rows: int, per_row: int) -> Grid:
    """Return `grid` with its `loop` of rows·per_row steps written as two loops."""
    rest = tuple(p for p in grid.loops if (p.axis, p.step, p.stride) != (loop.axis, loop.step, loop.stride))
    outer = Loop(rows, loop.axis, loop.step * per_row, loop.stride * per_row)
    inner = replace(loop, count=per_row)
    return Grid(grid.start, rest + tuple(p for p in (outer, inner) if p.count > 1), grid.offset)
