"""Views: lazy tensors. A view has a shape and a dtype, and answers any grid of its elements with grids over leaves.

The words of the algebra are the functions at the top; each builds one node, and each node knows two things: how a
grid asked of it becomes grids asked of what it is made of (`pieces`), and where it can be cut into parts that share
no source (`seams`). The rest is recursion.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from ..errors import UnsupportedError
from .dtypes import BF16, F8_E4M3, F32, DType
from .grids import Box, Grid, Loop, box_grid, clip, unmerge
from .refs import TensorRef

Shape = tuple[int, ...]
Seams = tuple[tuple[int, ...], ...]


def leaf(ref: TensorRef) -> View:
    """The tensor as it lies on disk; if that is in an array with gaps or other axes, cut out of it."""
    if ref.cutout is None:
        return Stored(ref.shape, ref.dtype, ref)
    array = TensorRef(ref.name, ref.dtype, ref.cutout.shape, ref.extents)
    view: View = Array(array.shape, array.dtype, array, ref)
    sizes = [size for size in ref.shape if size > 1]
    for size, axis in zip(sizes, ref.cutout.order, strict=True):
        view = cut(view, axis, 0, (size - 1) * ref.cutout.steps[axis] + 1, ref.cutout.steps[axis])
    view = permute(view, ref.cutout.order)
    for axis, size in enumerate(ref.shape):
        view = unsqueeze(view, axis) if size == 1 else view
    return view


def zeros(shape: Shape, dtype: DType) -> View:
    """A tensor of zeros, made of nothing."""
    return Zeros(shape, dtype)


def scaled(weight: TensorRef, scale: TensorRef, block: tuple[int, int] = (128, 128)) -> View:
    """An FP8 matrix [R, C] times its scales [ceil(R/block), ceil(C/block)], as BF16; edge blocks may be cut.

    Raises:
        UnsupportedError: the dtypes or shapes are not those of an FP8 matrix and its scales.
    """
    if len(weight.shape) != 2 or weight.dtype != F8_E4M3 or scale.dtype != F32:
        raise UnsupportedError(
            f"{weight.name} {list(weight.shape)} {weight.dtype} with scales {list(scale.shape)} {scale.dtype}: "
            "only F8_E4M3 matrices with F32 scales can be dequantised"
        )
    for ref in (weight, scale):
        if ref.cutout:
            raise UnsupportedError(f"{ref.name} is not contiguous, and cannot be dequantised: save it contiguous")
    grid = tuple(-(-n // b) for n, b in zip(weight.shape, block, strict=True))
    if scale.shape != grid:
        raise UnsupportedError(f"{scale.name} has shape {list(scale.shape)}, {weight.name} needs {list(grid)}")
    return Scaled(weight.shape, BF16, weight, scale, block)


def cast(view: View, dtype: DType) -> View:
    """The same values in another dtype, each rounded once."""
    return view if view.dtype == dtype else Cast(view.shape, dtype, view)


def length(view: View, axis: int) -> int:
    """Elements along `axis`.

    Raises:
        UnsupportedError: the view has no such axis.
    """
    if axis >= len(view.shape):
        raise UnsupportedError(f"shape {list(view.shape)} has no axis {axis}")
    return view.shape[axis]


def permute(view: View, axes: Sequence[int]) -> View:
    """Axis i of the result is axis `axes[i]` of `view`."""
    if sorted(axes) != list(range(len(view.shape))):
        raise UnsupportedError(f"axes {list(axes)} do not fit a tensor of shape {list(view.shape)}")
    return Permute(tuple(view.shape[a] for a in axes), view.dtype, view, tuple(axes))


def cut(view: View, axis: int, start: int, stop: int, step: int = 1) -> View:
    """Every `step`-th of the elements `start` … `stop` along `axis`."""
    if not (0 <= start <= stop <= length(view, axis) and step > 0):
        raise UnsupportedError(f"[{start}:{stop}:{step}] does not fit axis {axis} of shape {list(view.shape)}")
    count = len(range(start, stop, step))
    return Slice(_with(view.shape, axis, (count,)), view.dtype, view, axis, start, step)


def concat(parts: Sequence[View], axis: int) -> View:
    """The parts one after the other along `axis`; all else of their shapes, and their dtypes, must agree."""
    first = parts[0]
    for part in parts[1:]:
        if _with(part.shape, axis, ()) != _with(first.shape, axis, ()):
            raise UnsupportedError(f"shapes {list(first.shape)} and {list(part.shape)} cannot be joined on axis {axis}")
        if part.dtype != first.dtype:
            raise UnsupportedError(f"dtypes {first.dtype} and {part.dtype} cannot be joined: ask for one with --dtype")
    if len(parts) == 1:
        return first
    ends = tuple(accumulate(part.shape[axis] for part in parts))
    return Concat(_with(first.shape, axis, (ends[-1],)), first.dtype, tuple(parts), axis, ends)


def stack(parts: Sequence[View], axis: int = 0) -> View:
    """The parts, all of one shape, along a new axis."""
    return concat([unsqueeze(part, axis) for part in parts], axis)


def unsqueeze(view: View, axis: int) -> View:
    """`view` with a new axis of size one at `axis`."""
    return Unsqueeze((*view.shape[:axis], 1, *view.shape[axis:]), view.dtype, view, axis)


def squeeze(view: View, axis: int) -> View:
    """`view` without its axis `axis` of size one."""
    if length(view, axis) != 1:
        raise UnsupportedError(f"axis {axis} of shape {list(view.shape)} is not of size one")
    return Squeeze(_with(view.shape, axis, ()), view.dtype, view, axis)


def split(view: View, axis: int, outer: int) -> View:
    """Axis `axis` of n elements seen as two: [outer, n / outer]."""
    size, rest = divmod(length(view, axis), outer) if outer > 0 else (0, 1)
    if rest:
        raise UnsupportedError(f"axis {axis} of shape {list(view.shape)} cannot be split in {outer} equal parts")
    return Split(_with(view.shape, axis, (outer, size)), view.dtype, view, axis)


def merge(view: View, axis: int) -> View:
    """Axes `axis` and `axis + 1` seen as one."""
    outer, inner = length(view, axis), length(view, axis + 1)
    shape = (*view.shape[:axis], outer * inner, *view.shape[axis + 2 :])
    return Merge(shape, view.dtype, view, axis)


def pad(view: View, axis: int, size: int) -> View:
    """`view` with zeros after it, so that `axis` has `size` elements."""
    missing = size - length(view, axis)
    if missing < 0:
        raise UnsupportedError(f"axis {axis} of shape {list(view.shape)} is longer than {size} already")
    return concat([view, zeros(_with(view.shape, axis, (missing,)), view.dtype)], axis) if missing else view


def _with(shape: Shape, axis: int, sizes: Shape) -> Shape:
    return (*shape[:axis], *sizes, *shape[axis + 1 :])


@dataclass(frozen=True, slots=True)
class View:
    """A lazy tensor."""

    shape: Shape
    dtype: DType

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        """The leaves that hold the elements of `grid`, each with its part of the grid in its own coordinates."""
        raise NotImplementedError

    def seams(self) -> Seams:
        """Per axis, the coordinates at which the parts on either side share no source."""
        return ((),) * len(self.shape)

    def leaves(self) -> Iterator[Leaf]:
        """All leaves, in the order in which they were put together."""
        raise NotImplementedError

    def box(self, box: Box) -> Iterator[Piece]:
        """The pieces that fill a row-major buffer of the box's shape."""
        return self.pieces(box_grid(box)) if all(a < b for a, b in box) else iter(())


@dataclass(frozen=True, slots=True)
class Leaf(View):
    """A view that is made of no other."""

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        yield Piece(self, grid)

    def leaves(self) -> Iterator[Leaf]:
        yield self

    def refs(self) -> tuple[TensorRef, ...]:
        """The tensors on disk that it reads."""
        return ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A strided copy: `grid` of `leaf` goes to the places in the buffer that the grid names."""

    leaf: Leaf
    grid: Grid


@dataclass(frozen=True, slots=True)
class Stored(Leaf):
    """A tensor on disk, or another row-major array there."""

    ref: TensorRef

    def refs(self) -> tuple[TensorRef, ...]:
        return (self.ref,)


@dataclass(frozen=True, slots=True)
class Array(Stored):
    """An array on disk that a tensor of the catalog is cut out of. Its last elements need not be there."""

    tensor: TensorRef

    def refs(self) -> tuple[TensorRef, ...]:
        return (self.tensor,)


@dataclass(frozen=True, slots=True)
class Zeros(Leaf):
    """Zeros."""


@dataclass(frozen=True, slots=True)
class Scaled(Leaf):
    """An FP8 matrix with block scales."""

    weight: TensorRef
    scale: TensorRef
    block: tuple[int, int]

    def refs(self) -> tuple[TensorRef, ...]:
        return (self.weight, self.scale)


@dataclass(frozen=True, slots=True)
class _Unary(View):
    of: View

    def leaves(self) -> Iterator[Leaf]:
        return self.of.leaves()


@dataclass(frozen=True, slots=True)
class Cast(_Unary):
    """Other dtype, same elements: whoever reads the pieces casts them."""

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        return self.of.pieces(grid)

    def seams(self) -> Seams:
        return self.of.seams()


@dataclass(frozen=True, slots=True)
class Permute(_Unary):
    """Axes in another order."""

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


@dataclass(frozen=True, slots=True)
class Slice(_Unary):
    """A part, or every so many, of an axis."""

    axis: int
    start: int
    step: int

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        start = _with(grid.start, self.axis, (self.start + grid.start[self.axis] * self.step,))
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


@dataclass(frozen=True, slots=True)
class Concat(View):
    """Parts one after the other on an axis."""

    parts: tuple[View, ...]
    axis: int
    ends: tuple[int, ...] = field(repr=False)

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        low = grid.start[self.axis]
        high = low + grid.span(self.axis)
        for index in range(bisect_right(self.ends, low), len(self.parts)):
            end = self.ends[index]
            begin = end - self.parts[index].shape[self.axis]
            if begin > high:
                return
            for piece in clip(grid, self.axis, begin, end):
                start = _with(piece.start, self.axis, (piece.start[self.axis] - begin,))
                yield from self.parts[index].pieces(replace(piece, start=start))

    def seams(self) -> Seams:
        inner = self.parts[0].seams()
        shared = all(part.seams() == inner for part in self.parts[1:])
        others = inner if shared else ((),) * len(self.shape)
        return (*others[: self.axis], self.ends[:-1], *others[self.axis + 1 :])

    def leaves(self) -> Iterator[Leaf]:
        for part in self.parts:
            yield from part.leaves()


@dataclass(frozen=True, slots=True)
class Unsqueeze(_Unary):
    """A new axis of size one."""

    axis: int

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        loops = tuple(replace(p, axis=p.axis - 1) if p.axis > self.axis else p for p in grid.loops)
        return self.of.pieces(Grid(_with(grid.start, self.axis, ()), loops, grid.offset))

    def seams(self) -> Seams:
        seams = self.of.seams()
        return (*seams[: self.axis], (), *seams[self.axis :])


@dataclass(frozen=True, slots=True)
class Squeeze(_Unary):
    """An axis of size one less."""

    axis: int

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        loops = tuple(replace(p, axis=p.axis + 1) if p.axis >= self.axis else p for p in grid.loops)
        start = (*grid.start[: self.axis], 0, *grid.start[self.axis :])
        return self.of.pieces(Grid(start, loops, grid.offset))

    def seams(self) -> Seams:
        seams = self.of.seams()
        return (*seams[: self.axis], *seams[self.axis + 1 :])


@dataclass(frozen=True, slots=True)
class Split(_Unary):
    """One axis seen as two."""

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


@dataclass(frozen=True, slots=True)
class Merge(_Unary):
    """Two axes seen as one."""

    axis: int

    def pieces(self, grid: Grid) -> Iterator[Piece]:
        for piece in unmerge(grid, self.axis, self.of.shape[self.axis + 1]):
            yield from self.of.pieces(piece)

    def seams(self) -> Seams:
        seams = self.of.seams()
        outer, inner = self.of.shape[self.axis : self.axis + 2]
        mine = seams[self.axis + 1] if outer == 1 else tuple(s * inner for s in seams[self.axis])
        return (*seams[: self.axis], mine, *seams[self.axis + 2 :])
