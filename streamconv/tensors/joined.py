"""A tensor that the ranks of a training hold in slices, as a view: slices joined along every axis that is cut."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from .grids import Grid, clip, flat_index
from .refs import TensorRef
from .slices import Slices
from .view_nodes import Leaf, Piece, Seams, Stored, View, with_axis


class Part(Stored, frozen=True):
    """A slice: `ref` is what is read, and `tensor` what it is part of, as slice `number`."""

    tensor: TensorRef
    slices: Slices
    number: int

    def refs(self) -> tuple[TensorRef, ...]:
        return (self.tensor,)

    def position(self, index: tuple[int, ...]) -> tuple[str, int]:
        """Return where an element would lie if the first slice were the whole tensor.

        All slices of a tensor are read together: what is written is then complete block by block.
        """
        first = self.slices.extents(0)[:1]
        if not first:
            return "", 0
        whole = tuple(low + at for low, at in zip(self.slices.origin(self.number), index, strict=True))
        flat = flat_index(whole, self.tensor.shape) // len(self.slices)
        return str(first[0].file.path), first[0].offset + flat * self.dtype.itemsize


class Joined(View, frozen=True):
    """A tensor in slices."""

    ref: TensorRef
    slices: Slices

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        return self._from_axis(grid, 0, 0)

    def _from_axis(self, grid: Grid, axis: int, number: int) -> Iterator[Piece]:
        """Yield the pieces of a grid that is cut on the axes before `axis`; `number` counts the slices on those."""
        while axis < len(self.shape) and self.slices.divisions[axis] == 1:
            axis += 1
        if axis == len(self.shape):
            yield Piece(self._part(number), grid)
            return
        size, low = self.slices.shape[axis], grid.start[axis]
        for index in range(low // size, (low + grid.span(axis)) // size + 1):
            for piece in clip(grid, axis, index * size, (index + 1) * size):
                start = with_axis(piece.start, axis, (piece.start[axis] - index * size,))
                inner = replace(piece, start=start)
                yield from self._from_axis(inner, axis + 1, number * self.slices.divisions[axis] + index)

    def _part(self, number: int) -> Part:
        ref = self.ref.slice(number)
        return Part(ref.shape, ref.dtype, ref, self.ref, self.slices, number)

    def seams(self) -> Seams:
        return tuple(
            tuple(size * index for index in range(1, count))
            for size, count in zip(self.slices.shape, self.slices.divisions, strict=True)
        )

    def leaves(self) -> Iterator[Leaf]:
        yield Stored(self.shape, self.dtype, self.ref)
