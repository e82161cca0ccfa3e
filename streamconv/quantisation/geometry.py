"""Sizes of a quantised weight: how its codes are packed, and which blocks share a scale, from the shapes of its parts.

Nothing is stretched: a grid of scales has to have just as many blocks as the codes need, the last ones cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..errors import InternalError
from ..tensors.dtypes import BF16
from ..tensors.quantised import Block, Blocks, Code, Codes, Groups, Packing, Parts, Quantised, QuantisedRef, swapped
from ..tensors.refs import TensorRef
from ..text import quote
from .found import Found, MisfitError, ReadNumbers, Shape, spelled
from .language import Factor, Layout, Stated
from .packings import unpacked


class _Numbers(Struct, frozen=True):
    """How the part at a place of the layout is stored: shapes of its tensor and its numbers, and what `Blocks` has."""

    place: int
    words: Shape
    shape: Shape
    block: Block
    divides: bool = False
    code: Code | None = None
    packing: Packing | None = None

    def of(self, tensors: Sequence[TensorRef | None]) -> Blocks:
        """Return the numbers in one of a weight's tensors."""
        ref = tensors[1 + self.place]
        if ref is None:
            raise InternalError("a quantised weight lacks a part that others of its kind have")
        return Blocks(Codes(_shaped(ref, self.words), self.shape, self.code, self.packing), self.block, self.divides)


class Geometry(Struct, frozen=True):
    """The sizes of weights of one kind.

    Attributes:
        title: how they are quantised, for people.
        shape: of the weights.
        codes_shape: of their codes, not packed.
    """

    title: str
    shape: Shape
    codes_shape: Shape
    _layout: Layout
    _words: Shape
    _code: Code
    _packing: Packing | None
    _factors: tuple[_Numbers, ...]
    _zeros: _Numbers | None

    @property
    def fills_words(self) -> bool:
        """Whether the codes end where a word does."""
        packing = self._packing
        return packing is None or self.codes_shape[packing.axis - 2] % packing.unit[0] == 0

    def weight(self, name: str, found: Found) -> QuantisedRef:
        """Return the weight that these tensors stand for."""
        order = swapped(tuple(range(len(self.shape)))) if self._layout.swapped else ()
        return QuantisedRef(name, BF16, self.shape, (), parts=Parts(self, (found.codes, *found.parts)), order=order)

    def quantised(self, tensors: Sequence[TensorRef | None]) -> Quantised:
        """Describe the weight that these tensors stand for: the codes, and the parts in the layout's order."""
        layout, codes = self._layout, tensors[0]
        if codes is None:
            raise InternalError("a quantised weight has no codes")
        found = Found(layout, codes, tensors[1:])
        groups = found.of(layout.groups)
        return Quantised(
            method=self.title,
            codes=Codes(_shaped(codes, self._words), self.codes_shape, self._code, self._packing),
            factors=tuple([factor.of(tensors) for factor in self._factors]),
            zeros=self._zeros.of(tensors) if self._zeros else None,
            groups=None if groups is None else Groups(groups, layout.inputs),
            stated=found.of(layout.shape),
        )


def geometry(found: Found, stated: Stated, read: ReadNumbers) -> Geometry:
    """Return the sizes of a weight, and of all with tensors of the same shapes and dtypes.

    Args:
        found: its tensors, and how they are stored.
        stated: what the config says about it.
        read: reads a tensor that holds its shape.

    Raises:
        MisfitError: the shapes do not go together.
    """
    layout, first = found.layout, found.parts[0]
    axes = 0 if first is None or not layout.has_block_axis else len(first.shape)
    words = _matrices(found.codes, axes)
    codes, packing = unpacked(layout, words, found, stated, read)
    bits = packing.bits if packing else 8
    places = zip(layout.factors, found.parts, strict=False)
    factors = tuple(
        _factor(found, place, ref, codes, stated) for place, (_, ref) in enumerate(places) if ref is not None
    )
    _check_groups(layout, found, codes)
    return Geometry(
        title=layout.title.format(bits=bits) + _shared(factors[0].block, codes, layout.inputs),
        shape=swapped(codes) if layout.swapped else codes,
        codes_shape=codes,
        _layout=layout,
        _words=words,
        _code=layout.code(bits),
        _packing=packing,
        _factors=factors,
        _zeros=_zeros(layout, found, factors[0], packing, stated),
    )


def _matrices(ref: TensorRef, axes: int) -> Shape:
    """Return the shape of codes as matrices: gpt-oss has one axis more, for the bytes of a block."""
    shape = ref.shape
    if len(shape) == axes + 1 and axes > 1:
        shape = (*shape[:-2], shape[-2] * shape[-1])
    if len(shape) < 2 or not math.prod(shape):
        raise MisfitError(f"{spelled(ref)} is no matrix")
    return shape


def _factor(found: Found, place: int, ref: TensorRef, codes: Shape, stated: Stated) -> _Numbers:
    """Return which blocks of codes share a scale."""
    layout, size = found.layout, codes[-2:]
    factor = layout.factors[place]
    if factor.of_inputs:
        grid = (1, size[1]) if layout.inputs == 1 else (size[0], 1)
        if ref.shape != (size[layout.inputs],):
            raise MisfitError(f"{spelled(ref)} does not have one number for each of {size[layout.inputs]} inputs")
        shape: Shape = (*(1 for _ in codes[:-2]), *grid)
    else:
        shape = _grid(layout, ref, codes)
    block = _block(found, factor, shape[-2:], size, stated)
    if block is None:
        raise MisfitError(f"{spelled(ref)} does not fit {list(codes)} codes{_wanted(factor, stated)}")
    return _Numbers(place, shape, shape, block, factor.divides)


def _grid(layout: Layout, ref: TensorRef, codes: Shape) -> Shape:
    """Return the shape of scales as a grid of blocks for each matrix."""
    shape, lead = ref.shape, codes[:-2]
    if math.prod(shape) == 1:
        return (1,) * len(codes)
    if len(shape) == len(codes) and shape[:-2] == lead:
        return shape
    if not lead and len(shape) == 1:
        return (shape[0], 1) if layout.inputs == 1 else (1, shape[0])
    if not lead and len(shape) == 4 and shape[1] == shape[3] == 1:
        return shape[0], shape[2]
    raise MisfitError(f"{spelled(ref)} is no grid of scales for {list(codes)} codes")


def _block(found: Found, factor: Factor, grid: Shape, size: Shape, stated: Stated) -> Block | None:
    """Return the rows and columns of a block, `None` if no block gives this grid."""
    layout = found.layout
    across, along = 1 - layout.inputs, layout.inputs
    group = factor.group or stated.group
    candidates = [block for block in [stated.block or factor.block] if block]
    candidates.append((size[0], size[1]))
    whole = [1, 1]
    whole[along] = size[along]
    candidates.append((whole[0], whole[1]))
    if group:
        candidates.append(_along(group, along))
    # Where rows or columns have an index, it decides: a config that says another size may be of other weights.
    is_indexed = found.of(layout.groups) is not None
    if (is_indexed or not group) and grid[across] == size[across] and grid[along]:
        equal, rest = divmod(size[along], grid[along])
        # Of other sizes, the last group may be cut: without a word of the config nobody knows.
        if not rest and (is_indexed or equal & (equal - 1) == 0):
            candidates.append(_along(equal, along))
    if factor.of_inputs:
        candidates = [_along(1, along) if size[across] == 1 else ((size[0], 1) if along == 1 else (1, size[1]))]
    return next((one for one in candidates if _blocks(size, one) == grid), None)


def _along(group: int, axis: int) -> Block:
    return (group, 1) if axis == 0 else (1, group)


def _blocks(size: Shape, block: Block) -> Shape:
    return tuple(-(-n // b) for n, b in zip(size, block, strict=True))


def _zeros(layout: Layout, found: Found, scale: _Numbers, packing: Packing | None, stated: Stated) -> _Numbers | None:
    """Return how zero points are stored: one for each scale, as they are or packed like codes."""
    zeros, ref = layout.zeros, found.of(layout.zeros)
    if zeros is None:
        return None
    if ref is None:
        if stated.has_zeros:
            name = found.codes.name.removesuffix(layout.codes.ending) + zeros.ending
            raise MisfitError(f"its zero points {quote(name)} are missing")
        return None
    place, grid = len(layout.factors), scale.shape
    if packing is None or zeros.code is None or ref.dtype.itemsize == 1:
        _check(ref, _grid(layout, ref, (*grid[:-2], *grid[-2:])), grid)
        return _Numbers(place, grid, grid, scale.block)
    packed = replace(packing, axis=zeros.axis, interleaved=zeros.interleaved)
    axis = len(grid) - 2 + zeros.axis
    words = (*grid[:axis], packed.words(grid[axis]), *grid[axis + 1 :])
    _check(ref, ref.shape, words)
    return _Numbers(place, words, grid, scale.block, code=zeros.code(packed.bits), packing=packed)


def _check_groups(layout: Layout, found: Found, codes: Shape) -> None:
    ref = found.of(layout.groups)
    if ref is not None:
        _check(ref, ref.shape, (codes[layout.inputs - 2],))


def _check(ref: TensorRef, shape: Shape, wanted: Shape) -> None:
    if shape != wanted:
        raise MisfitError(f"{spelled(ref)} should have shape {list(wanted)}")


def _shared(block: Block, codes: Shape, inputs: int) -> str:
    """Return which codes share a scale, for people."""
    if block == codes[-2:]:
        return ", a scale for each tensor"
    across, along = block[1 - inputs], block[inputs]
    if across == 1:
        return ", a scale for each output" if along >= codes[inputs - 2] else f", groups of {along}"
    return f", blocks of {block[0]} x {block[1]}"


def _wanted(factor: Factor, stated: Stated) -> str:
    if group := factor.group or stated.group:
        return f" in groups of {group}"
    if block := stated.block or factor.block:
        return f" in blocks of {block[0]} x {block[1]}"
    return ""


def _shaped(ref: TensorRef, shape: Shape) -> TensorRef:
    return ref if ref.shape == shape else replace(ref, shape=shape)
