"""The numbers that blocks of codes share: scales and zero points, in float32, cut for a tile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..tensors.arrays import Bits
from ..tensors.dtypes import BF16, F8_E4M3, F8_E8M0, F16, F32, I8, I64, U8, DType
from ..tensors.quantised import Blocks, Codes, Packing
from .codes import Numbers, Unpacked, unpack, values_of
from .kernels import copy

_NUMPY: dict[DType, np.dtype[Any]] = {
    F32: np.dtype(np.float32),
    F16: np.dtype(np.float16),
    BF16: np.dtype(ml_dtypes.bfloat16),
    F8_E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    I8: np.dtype(np.int8),
}


#: Blocks of at least so many columns are gone through one by one: no number has to be spread over them.
_WIDE = 32

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
        return self.data[self.place(rows, columns)]

    def place(self, rows: range, columns: range) -> tuple[slice, slice]:
        """Return where in the data some rows and columns of what is not packed are."""
        top, left = self.row, self.column
        return slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)

    @property
    def swapped(self) -> Part:
        """The same where rows and columns have changed places."""
        return Part(self.data.swapaxes(-1, -2), self.column, self.row)

    def matrix(self, lead: tuple[int, ...]) -> Part:
        """Return one matrix of a stack; all of them have it, where there is only one."""
        index = tuple(0 if size == 1 else at for at, size in zip(lead, self.data.shape, strict=False))
        return Part(self.data[index], self.row, self.column)


class Along(NamedTuple):
    """Which block each row, or each column, of a band belongs to.

    Attributes:
        size: rows or columns of a block, where they are in order.
        skip: those of the first block that lie before the band.
        numbers: the number of each one's block, where they are in no order.
    """

    size: int = 1
    skip: int = 0
    numbers: NDArray[np.intp] | None = None

    def pick(self, values: Numbers, axis: int, first: int, stop: int) -> Numbers:
        """Return the numbers of some rows or columns; one where all of them share it."""
        if values.shape[axis] == 1:
            return values
        if self.numbers is not None:
            return np.take(values, self.numbers[first:stop], axis)
        low, high = (self.skip + first) // self.size, (self.skip + stop - 1) // self.size + 1
        found = values[low:high] if axis == 0 else values[:, low:high]
        if self.size == 1 or high - low == 1:
            return found
        counts = np.full(high - low, self.size)
        counts[0] -= self.skip + first - low * self.size
        counts[-1] -= high * self.size - self.skip - stop
        return np.repeat(found, counts, axis)

    def is_same(self, other: Along) -> bool:
        """Whether the blocks are the same."""
        return self[:2] == other[:2] and self.numbers is other.numbers


class Shared(NamedTuple):
    """Numbers that rows and columns of a band share.

    Attributes:
        values: `[blocks of rows or 1, blocks of columns or 1]`.
        down, across: which block each row and each column belongs to.
    """

    values: Numbers
    down: Along = Along()
    across: Along = Along()

    def ready(self, count: int) -> Shared:
        """Return the same, spread over `count` columns if all rows share them."""
        return Shared(self.across.pick(self.values, 1, 0, count)) if len(self.values) == 1 else self

    def into(self, operation: np.ufunc, values: NDArray[Any], first: int, stop: int, columns: int) -> None:
        """Apply an operation to values of some rows and all columns of the band, in place, and what they share."""
        if self.values.shape == (1, columns):  # most bands: threads wait for each other's Python
            operation(values, self.values, out=values)
            return
        shared, size = self.down.pick(self.values, 0, first, stop), self.across.size
        if size >= _WIDE and not self.across.skip and columns % size == 0 and values.flags.c_contiguous:
            values, shared = values.reshape(len(values), -1, size), shared[:, :, np.newaxis]
        else:
            shared = self.across.pick(shared, 1, 0, columns)
        operation(values, shared, out=values)

    def of_rows(self, numbers: NDArray[np.intp]) -> Shared:
        """Return the same for a band whose rows belong to these blocks."""
        return self._replace(down=Along(numbers=numbers))


class Groups(NamedTuple):
    """The blocks of rows (axis 0) or columns (axis 1) of a band are in no order: the number of each one's."""

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
    """Return the numbers of the blocks that a band touches; all of them along an axis where they are in no order.

    Args:
        part: what was read of them.
        blocks: what they are.
        rows, columns: the band, in the matrix of codes.
        groups: which blocks its rows or columns belong to.
    """
    chosen, along = [], []
    for axis, (elements, size) in enumerate(zip((rows, columns), blocks.block, strict=True)):
        if groups is not None and groups.axis == axis:
            chosen.append(range(blocks.codes.shape[axis - 2]))
            along.append(Along(numbers=groups.numbers))
        else:
            chosen.append(_touched(elements, size))
            along.append(Along(size, elements.start % size))
    return Shared(_values(part, blocks.codes, *chosen), *along)


def combined(factors: Iterable[tuple[Shared, bool]], rows: int, columns: int) -> Shared:
    """Return what several numbers are together: each is multiplied with those before, or divides them.

    Args:
        factors: the numbers, and whether they divide.
        rows, columns: how many the band has.
    """
    every = iter(factors)
    found, _ = next(every)
    for other, divides in every:
        found = _joined(found, other, divides, rows, columns)
    return found


def _joined(one: Shared, other: Shared, divides: bool, rows: int, columns: int) -> Shared:
    along = []
    every = zip((one.down, one.across), (other.down, other.across), (rows, columns), strict=True)
    for axis, (first, second, count) in enumerate(every):
        if one.values.shape[axis] == 1:
            along.append(second)
        elif other.values.shape[axis] == 1 or first.is_same(second):
            along.append(first)
        else:
            one = one._replace(values=first.pick(one.values, axis, 0, count))
            other = other._replace(values=second.pick(other.values, axis, 0, count))
            along.append(Along())
    return Shared(one.values / other.values if divides else one.values * other.values, *along)


def _touched(elements: range, size: int) -> range:
    """Return the blocks that a range of rows or columns touches."""
    return range(elements.start // size, (elements.stop - 1) // size + 1)


def _values(part: Part, codes: Codes, rows: range, columns: range) -> Numbers:
    found = codes_at(part, codes, rows, columns)
    return numbers(found, codes.ref.dtype) if codes.code is None else values_of(codes.code)[found]


def _bytes(rows: int, columns: int) -> Unpacked:
    return np.empty((rows, columns), np.uint8)


def codes_at(
    part: Part, codes: Codes, rows: range, columns: range, room: Callable[[int, int], Unpacked] = _bytes
) -> Any:
    """Return some rows and columns of codes, an element each.

    Args:
        part: what was read of them.
        codes: how they are stored.
        rows, columns: which.
        room: makes room for so many rows and columns of packed codes.
    """
    packing = codes.packing
    if packing is None:
        return part.box(rows, columns)
    words = words_at(part, packing, rows, columns)
    along, first = ((rows, words.row), (columns, words.column))[packing.axis]
    # Whole words, as far as no code crosses them: it is easier to unpack more than is wanted.
    unit, per_unit = packing.unit
    count = words.data.shape[packing.axis] * unit if per_unit == 1 else along.stop - first
    target = room(*((count, words.data.shape[1]) if packing.axis == 0 else (len(words.data), count)))
    unpack(words.data, packing, target)
    inside = slice(along.start - first, along.stop - first)
    return target[inside] if packing.axis == 0 else target[:, inside]


def words_at(part: Part, packing: Packing, rows: range, columns: range) -> Part:
    """Return the words that hold some rows and columns of packed codes, contiguous; arguments as `codes_at`."""
    (unit, words), axis, begin = packing.unit, packing.axis, [rows.start, columns.start]
    chosen = [slice(rows.start - part.row, rows.stop - part.row)]
    chosen.append(slice(columns.start - part.column, columns.stop - part.column))
    low = chosen[axis].start // unit
    begin[axis] += low * unit - chosen[axis].start
    chosen[axis] = slice(low * words, low * words + packing.words(chosen[axis].stop - low * unit))
    data = part.data[chosen[0]][:, chosen[1]]
    if not data.flags.c_contiguous:
        found = np.empty(data.shape, data.dtype)
        copy(data, found)
        data = found
    return Part(data, begin[0], begin[1])
