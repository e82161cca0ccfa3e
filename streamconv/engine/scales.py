"""The numbers that blocks of codes share: scales and zero points, in float32, cut for a tile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError
from ..tensors.arrays import Bits
from ..tensors.dtypes import BF16, F8_E4M3, F8_E8M0, F16, F32, I8, I64, U8, DType
from ..tensors.quantised import Blocks, Codes
from .codes import Numbers, Unpacked, unpack, values_of

#: Row or column numbers: those of a range, or any.
Chosen: TypeAlias = "slice | NDArray[np.intp]"

_NUMPY: dict[DType, np.dtype[Any]] = {
    F32: np.dtype(np.float32),
    F16: np.dtype(np.float16),
    BF16: np.dtype(ml_dtypes.bfloat16),
    F8_E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    I8: np.dtype(np.int8),
}


#: Numbers that are read once for all tiles.
_LITTLE = 4 << 10


class Part(NamedTuple):
    """A part of a quantised tensor, as far as it was read.

    Attributes:
        data: `[..., rows, columns]` of its elements, or of the words that hold them.
        row, column: where in the whole part the first of its codes stands, not packed.
    """

    data: Bits | Numbers
    row: int
    column: int

    def read(self, codes: Codes) -> Part:
        """Return the same in float32, if that is little."""
        if codes.code is not None or self.data.size > _LITTLE:
            return self
        return self._replace(data=numbers(self.data, codes.ref.dtype))

    def box(self, rows: range, columns: range) -> Any:
        """Return some rows and columns of what is not packed."""
        top, left = self.row, self.column
        return self.data[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]

    def matrix(self, lead: tuple[int, ...]) -> Part:
        """Return one matrix of a stack; all of them have it, where there is only one."""
        index = tuple(0 if size == 1 else at for at, size in zip(lead, self.data.shape, strict=False))
        return Part(self.data[index], self.row, self.column)


class Shared(NamedTuple):
    """Numbers that rows and columns of a tile share.

    Attributes:
        values: `[rows or 1, columns or 1]`.
        width: how many columns of codes share one.
        skip: columns of the first block that lie before the tile.
    """

    values: Numbers
    width: int
    skip: int

    def ready(self, count: int) -> Shared:
        """Return the same, spread over `count` columns if all rows share them."""
        return Shared(self.spread(count), 1, 0) if len(self.values) == 1 else self

    def tile(self, first: int, stop: int, count: int) -> Numbers:
        """Return the numbers for some rows and `count` columns."""
        if len(self.values) == 1 or self.values.shape[1] == 1 or self.width == 1:
            return self.values if len(self.values) == 1 else self.values[first:stop]
        return self._replace(values=self.values[first:stop]).spread(count)

    def spread(self, count: int) -> Numbers:
        """Return the numbers for `count` columns of codes; one column if all share it."""
        if self.values.shape[1] == 1 or self.width == 1:
            return self.values
        return np.repeat(self.values, self.width, axis=1)[:, self.skip : self.skip + count]


class Groups(NamedTuple):
    """For each row (axis 0) or column (axis 1) of a tile the number of its block, where those are in no order."""

    axis: int
    numbers: NDArray[np.intp]


def numbers(raw: Bits | Numbers, dtype: DType) -> Numbers:
    """Return numbers in float32 from their bits, all of them exactly; or as they are, if they are in float32 already.

    F8_E8M0 and U8 are powers of two, 2^(b - 127) (OCP Microscaling Formats 1.0, 5.4.1). An I64 holds an F32 in its low
    32 bits (msModelSlim's `deq_scale`). The others are what they say.
    """
    if raw.dtype == np.float32:
        return raw
    if dtype in (F8_E8M0, U8):
        bits = raw.astype(np.uint32) << np.uint32(23)
        bits[raw == 0] = 1 << 22  # 2^-127 is no normal number
        return bits.view(np.float32)
    if dtype == I64:
        return raw.astype(np.uint32).view(np.float32)
    return raw.view(_NUMPY[dtype]).astype(np.float32)


def shared(part: Part, blocks: Blocks, rows: range, columns: range, groups: Groups | None) -> Shared:
    """Return the numbers of the blocks that a tile touches.

    Args:
        part: what was read of them.
        blocks: what they are.
        rows, columns: the tile, in the matrix of codes.
        groups: which blocks its rows or columns belong to.
    """
    (height, width), skip = blocks.block, columns.start % blocks.block[1]
    chosen: list[Chosen] = [_touched(rows, height), _touched(columns, width)]
    picked: NDArray[np.intp] | None = None
    if groups is not None:
        chosen[groups.axis], picked = np.unique(groups.numbers, return_inverse=True)
    values = _values(part, blocks.codes, chosen[0], chosen[1])
    if picked is not None and groups is not None:
        values, height = np.take(values, picked, axis=groups.axis), 1
        width, skip = (1, 0) if groups.axis == 1 else (width, skip)
    if len(values) > 1 and height > 1:
        above = rows.start % height
        values = np.repeat(values, height, axis=0)[above : above + len(rows)]
    return Shared(values, width, skip)


def combined(factors: Iterable[tuple[Shared, bool]], count: int) -> Shared:
    """Return what several numbers are together: each is multiplied with those before, or divides them.

    Args:
        factors: the numbers, and whether they divide.
        count: columns of codes in the tile.
    """
    every = iter(factors)
    found, _ = next(every)
    for other, divides in every:
        found = _joined(found, other, divides, count)
    return found


def _joined(one: Shared, other: Shared, divides: bool, count: int) -> Shared:
    if one[1:] != other[1:] and one.values.shape[1] > 1 and other.values.shape[1] > 1:
        return _joined(Shared(one.spread(count), 1, 0), Shared(other.spread(count), 1, 0), divides, count)
    wider = other if one.values.shape[1] == 1 else one
    values = one.values / other.values if divides else one.values * other.values
    return Shared(values, wider.width, wider.skip)


def _touched(elements: range, size: int) -> slice:
    """Return the blocks that a range of rows or columns touches."""
    return slice(elements.start // size, (elements.stop - 1) // size + 1)


def _values(part: Part, codes: Codes, rows: Chosen, columns: Chosen) -> Numbers:
    found = codes_at(part, codes, rows, columns)
    return numbers(found, codes.ref.dtype) if codes.code is None else values_of(codes.code)[found]


def _bytes(rows: int, columns: int) -> Unpacked:
    return np.empty((rows, columns), np.uint8)


def codes_at(
    part: Part, codes: Codes, rows: Chosen, columns: Chosen, room: Callable[[int, int], Unpacked] = _bytes
) -> Any:
    """Return some rows and columns of codes, an element each; of packed ones, a range along the axis of the words.

    Args:
        part: what was read of them.
        codes: how they are stored.
        rows, columns: which.
        room: makes room for so many rows and columns of packed codes.

    Raises:
        InternalError: no range.
    """
    packing, chosen = codes.packing, [_moved(rows, part.row), _moved(columns, part.column)]
    if packing is None:
        return part.data[chosen[0]][:, chosen[1]]
    wanted = chosen[packing.axis]
    if not isinstance(wanted, slice):
        raise InternalError("packed codes are unpacked in their order only")
    unit, words = packing.unit
    low = wanted.start // unit * unit
    begin, count = low // unit * words, wanted.stop - low
    chosen[packing.axis] = slice(begin, begin + packing.words(count))
    data = part.data[chosen[0]][:, chosen[1]]
    shape = (count, data.shape[1]) if packing.axis == 0 else (len(data), count)
    target = room(*shape)
    unpack(data, packing, target)
    skip = wanted.start - low
    return target[skip:] if packing.axis == 0 else target[:, skip:]


def _moved(chosen: Chosen, first: int) -> Chosen:
    """Return numbers of rows or columns as they are counted from the first that was read."""
    return slice(chosen.start - first, chosen.stop - first) if isinstance(chosen, slice) else chosen - first
