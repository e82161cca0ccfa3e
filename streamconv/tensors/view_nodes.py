"""The nodes that views are made of.

Each node knows two things: how a grid asked of it becomes grids asked of its operands (`pieces`), and where it can be
cut into parts that share no source (`seams`). The rest is recursion. A plan's digest covers the names of these classes
and of their fields.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from .dtypes import DType
from .grids import Box, Grid, Loop, box_grid, clip, flat_index, unmerge
from .quantised import Parts
from .refs import TensorRef

Shape = tuple[int, ...]
Seams = tuple[tuple[int, ...], ...]


def with_axis(shape: Shape, axis: int, sizes: Shape) -> Shape:
    """Return `shape` with `sizes` in place of the size of `axis`."""
    return (*shape[:axis], *sizes, *shape[axis + 1 :])


class View(Struct, frozen=True, gc=False):
    """A lazy tensor. There are many, none of which is in a cycle: the collector need not know them."""

    shape: Shape
    dtype: DType

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        """Yield the leaves that hold the elements of `grid`, each with its part of the grid in its own coordinates."""
        raise NotImplementedError

    def seams(self) -> Seams:
        """Return per axis the coordinates at which the parts on either side share no source."""
        return ((),) * len(self.shape)

    def leaves(self) -> Iterator[Leaf]:
        """Yield all leaves, in the order in which they were put together."""
        raise NotImplementedError

    def box(self, box: Box) -> Iterator[Piece]:
        """Yield the pieces that fill a row-major buffer of the box's shape."""
        return self.pieces(box_grid(box)) if all(a < b for a, b in box) else iter(())


class Leaf(View, frozen=True):
    """A view without operands."""

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        yield Piece(self, grid)

    def leaves(self) -> Iterator[Leaf]:
        yield self

    def refs(self) -> tuple[TensorRef, ...]:
        """Return the tensors on disk that it reads."""
        return ()

    def position(self, index: tuple[int, ...]) -> tuple[str, int]:
        """Return where one of its elements lies, as path and offset, for sorting."""
        for ref in self.refs():
            for first in ref.places():
                return str(first.file.path), first.offset + flat_index(index, self.shape) * ref.dtype.itemsize
        return "", 0


class Piece(Struct, frozen=True):
    """A strided copy: `grid` of `leaf` goes to the places in the buffer that the grid states."""

    leaf: Leaf
    grid: Grid


class Stored(Leaf, frozen=True):
    """A tensor on disk, or another row-major array there."""

    ref: TensorRef

    def refs(self) -> tuple[TensorRef, ...]:
        return (self.ref,)


class Array(Stored, frozen=True):
    """An array on disk that a tensor of the catalog is cut out of. Its last elements need not be there."""

    tensor: TensorRef

    def refs(self) -> tuple[TensorRef, ...]:
        return (self.tensor,)


class Zeros(Leaf, frozen=True):
    """A tensor of zeros; nothing is read."""


class Dequantised(Leaf, frozen=True):
    """A quantised tensor, as the numbers that it stands for."""

    parts: Parts

    def refs(self) -> tuple[TensorRef, ...]:
        return tuple(self.parts.refs())

    def position(self, index: tuple[int, ...]) -> tuple[str, int]:
        codes = self.parts.described().codes
        words = codes.words(tuple((at, at + 1) for at in index))
        return Stored(codes.ref.shape, codes.ref.dtype, codes.ref).position(tuple(low for low, _ in words))


class _Unary(View, frozen=True):
    of: View

    def leaves(self) -> Iterator[Leaf]:
        return self.of.leaves()


class Cast(_Unary, frozen=True):
    """The same elements in another dtype: the reader casts the pieces."""

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        return self.of.pieces(grid)

    def seams(self) -> Seams:
        return self.of.seams()


class Permute(_Unary, frozen=True):
    """The axes in another order."""

    axes: tuple[int, ...]

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        start = [0] * len(self.axes)
        for mine, its in enumerate(self.axes):
            start[its] = grid.start[mine]
        loops = tuple(replace(loop, axis=self.axes[loop.axis]) for loop in grid.loops)
        return self.of.pieces(Grid(tuple(start), loops, grid.offset))

    def seams(self) -> Seams:
        seams = self.of.seams()
        return tuple(seams[axis] for axis in self.axes)


class Slice(_Unary, frozen=True):
    """Every `step`-th element of a range of an axis."""

    axis: int
    start: int
    step: int

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        start = with_axis(grid.start, self.axis, (self.start + grid.start[self.axis] * self.step,))
        loops = tuple(
            replace(loop, step=loop.step * self.step) if loop.axis == self.axis else loop for loop in grid.loops
        )
        return self.of.pieces(Grid(start, loops, grid.offset))

    def seams(self) -> Seams:
        seams = self.of.seams()
        if self.step > 1:
            return (*seams[: self.axis], (), *seams[self.axis + 1 :])
        mine = tuple(s - self.start for s in seams[self.axis] if 0 < s - self.start < self.shape[self.axis])
        return (*seams[: self.axis], mine, *seams[self.axis + 1 :])


class Concat(View, frozen=True):
    """Parts one after the other along an axis."""

    parts: tuple[View, ...]
    axis: int
    ends: tuple[int, ...]

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        low = grid.start[self.axis]
        high = low + grid.span(self.axis)
        for index in range(bisect_right(self.ends, low), len(self.parts)):
            end = self.ends[index]
            begin = end - self.parts[index].shape[self.axis]
            if begin > high:
                return
            for piece in clip(grid, self.axis, begin, end):
                start = with_axis(piece.start, self.axis, (piece.start[self.axis] - begin,))
                yield from self.parts[index].pieces(replace(piece, start=start))

    def seams(self) -> Seams:
        inner = self.parts[0].seams()
        shared = all(part.seams() == inner for part in self.parts[1:])
        others = inner if shared else ((),) * len(self.shape)
        return (*others[: self.axis], self.ends[:-1], *others[self.axis + 1 :])

    def leaves(self) -> Iterator[Leaf]:
        for part in self.parts:
            yield from part.leaves()


class Unsqueeze(_Unary, frozen=True):
    """A new axis of size one at `axis`."""

    axis: int

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        loops = tuple(replace(p, axis=p.axis - 1) if p.axis > self.axis else p for p in grid.loops)
        return self.of.pieces(Grid(with_axis(grid.start, self.axis, ()), loops, grid.offset))

    def seams(self) -> Seams:
        seams = self.of.seams()
        return (*seams[: self.axis], (), *seams[self.axis :])


class Squeeze(_Unary, frozen=True):
    """The operand without an axis of size one."""

    axis: int

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        loops = tuple(replace(p, axis=p.axis + 1) if p.axis >= self.axis else p for p in grid.loops)
        start = (*grid.start[: self.axis], 0, *grid.start[self.axis :])
        return self.of.pieces(Grid(start, loops, grid.offset))

    def seams(self) -> Seams:
        seams = self.of.seams()
        return (*seams[: self.axis], *seams[self.axis + 1 :])


class Split(_Unary, frozen=True):
    """One axis as two."""

    axis: int

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        size = self.shape[self.axis + 1]

        def joined(loop: Loop) -> Loop:
            if loop.axis == self.axis:
                return replace(loop, step=loop.step * size)
            return replace(loop, axis=loop.axis - 1) if loop.axis > self.axis else loop

        outer, inner = grid.start[self.axis : self.axis + 2]
        start = (*grid.start[: self.axis], outer * size + inner, *grid.start[self.axis + 2 :])
        return self.of.pieces(Grid(start, tuple(joined(loop) for loop in grid.loops), grid.offset))

    def seams(self) -> Seams:
        seams, size = self.of.seams(), self.shape[self.axis + 1]
        mine = tuple(s // size for s in seams[self.axis] if size and s % size == 0)
        return (*seams[: self.axis], mine, (), *seams[self.axis + 1 :])


class Merge(_Unary, frozen=True):
    """Two axes as one."""

    axis: int

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        for piece in unmerge(grid, self.axis, self.of.shape[self.axis + 1]):
            yield from self.of.pieces(piece)

    def seams(self) -> Seams:
        seams = self.of.seams()
        outer, inner = self.of.shape[self.axis : self.axis + 2]
        mine = seams[self.axis + 1] if outer == 1 else tuple(s * inner for s in seams[self.axis])
        return (*seams[: self.axis], mine, *seams[self.axis + 2 :])
