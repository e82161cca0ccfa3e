"""Quantised tensors to numbers: codes times their factors, in tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numkong
import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError
from ..tensors.arrays import Bits
from ..tensors.dtypes import BF16, DType
from ..tensors.grids import Box
from ..tensors.quantised import Blocks, Code, Packing, Quantised
from .codes import Numbers, Unpacked, decode, decode_pairs, in_order
from .floats import FLOATS, check_cast, numkong_tensor
from .kernels import cast
from .scales import Groups, Part, Shared, codes_at, combined, shared
from .tiles import TILE_SIDE, even_part, fast_axis

# Elements of a tile on its way through float32: it stays in L2, and its calls are long compared with what it takes to
# get the interpreter lock back. Fewer where rows have factors of their own, which need room too, or where what comes
# out is cast once more. Then the longest row of a tile, and the row of one that is transposed.
_ELEMENTS = 128 << 10
_ELEMENTS_WITH_FACTORS = 56 << 10
_ROW = 16 << 10
_SIDE = 800

#: How many factors a band of rows has at most, where rows do not share them.
_MOST_FACTORS = 32 << 10

#: Blocks of at least so many rows have their factors once in a tile.
_HIGH = 16

# Scales whose products with finite codes are all normal floats, far from any limit.
_TAME = np.float32(2.0**-100), np.float32(2.0**100)
_LARGEST_ZERO = 1 << 16


class Window(NamedTuple):
    """A box of a quantised tensor, read.

    Attributes:
        parts: the tensor.
        box: the box of its codes.
        codes: its codes.
        factors: of each factor, the blocks that the box touches.
        zeros: the same of the zero points.
        groups: for each row or column of the box, the number of its block; `None` where those are in order.
    """

    parts: Quantised
    box: Box
    codes: Part
    factors: tuple[Part, ...]
    zeros: Part | None = None
    groups: NDArray[np.intp] | None = None


def dequantise(window: Window, box: Box, target: Bits, target_dtype: DType) -> int:
    """Write a box of a quantised tensor: the float32 product rounded once to bfloat16, then cast.

    Args:
        window: what was read; it holds the box.
        box: what is wanted of it.
        target: bits of `target_dtype`, of the box's shape. A NaN of FP8 keeps its sign.
        target_dtype: what the bfloat16 is cast to.

    Returns:
        How many finite bfloat16 became infinite in the cast.

    Raises:
        InternalError: the shapes do not fit each other, or there is no such cast.
    """
    if tuple(high - low for low, high in box) != target.shape:
        raise InternalError(f"a box {box} does not go into shape {target.shape}")
    check_cast(BF16, target_dtype)
    rows, columns = (range(*side) for side in box[-2:])
    overflows = 0
    with np.errstate(all="ignore"):
        for index in np.ndindex(target.shape[:-2] if target.size else (0,)):
            lead = tuple(at + low - first for at, (low, _), (first, _) in zip(index, box, window.box, strict=False))
            overflows += _Matrix(window, lead).write(rows, columns, target[index], target_dtype)
    return overflows


class _Matrix:
    """One matrix of a window, and scratch for its tiles."""

    def __init__(self, window: Window, lead: tuple[int, ...]) -> None:
        self._parts = window.parts
        self._first = [low for low, _ in window.box[-2:]]
        self._codes = window.codes.matrix(lead)
        every = zip(window.factors, window.parts.factors, strict=True)
        self._factors = [part.matrix(lead).read(blocks.codes) for part, blocks in every]
        first = self._factors[0].data
        self._is_tame = len(self._factors) == 1 and first.dtype == np.float32 and _are_tame(first)
        self._zeros = None if window.zeros is None else window.zeros.matrix(lead)
        self._groups = window.groups
        self._code = _code_of(window.parts)
        self._of_groups: _Band | None = None

    def write(self, rows: range, columns: range, target: Bits, target_dtype: DType) -> int:
        """Write some rows and columns, cast; return how many finite bfloat16 became infinite."""
        transposed, (least, step) = fast_axis(self._codes.data) != fast_axis(target), self._parts.codes.unit
        most = _ELEMENTS if self._rows_share(rows) else _ELEMENTS_WITH_FACTORS
        most = min(len(rows) * len(columns), most if target_dtype == BF16 else most // 3)
        scratch = _Scratch(most, len(rows))
        overflows = 0
        for across in _cut(columns, step, min(_SIDE if transposed else _ROW, most // least or 1, self._most_columns)):
            self._of_groups = self._all_groups(across)
            for down in _cut(rows, self._height(), self._band(rows, across)):
                band = self._shared(down, across)
                for few in _cut(down, least, max(1, most // len(across))):
                    top, left = few.start - rows.start, across.start - columns.start
                    part = target[top : top + len(few), left : left + len(across)]
                    overflows += self._write_tile(few, across, band, part, target_dtype, scratch)
        return overflows

    def _shared(self, rows: range, columns: range) -> _Band:
        """Return what the tiles of a band of rows are multiplied with."""
        groups, has_nan = self._grouped(rows, columns), self._have_nan(rows, columns)
        if self._of_groups is not None and groups is not None:
            return self._of_groups.chosen(rows.start, groups.numbers, has_nan)
        return self._band_of(rows, columns, groups, has_nan)

    def _band_of(self, rows: range, columns: range, groups: Groups | None, has_nan: bool) -> _Band:
        blocks = zip(self._factors, self._parts.factors, strict=True)
        every = ((shared(part, one, rows, columns, groups), one.divides) for part, one in blocks)
        factors, zeros = combined(every, len(columns)), None
        is_tame = self._is_tame or _are_tame(factors.values)
        if self._zeros is not None and self._parts.zeros is not None:
            zeros = shared(self._zeros, self._parts.zeros, rows, columns, groups)
            is_tame = is_tame and _are_whole(zeros.values)
            zeros = zeros.ready(len(columns))
        return _Band(rows.start, factors.ready(len(columns)), zeros, is_tame, has_nan)

    @property
    def _groups_of_rows(self) -> int:
        """How many groups rows are chosen from in no order; 0 where they are in order."""
        groups = self._parts.groups
        if self._groups is None or groups is None or groups.axis != 0:
            return 0
        return self._parts.factors[0].codes.shape[-2]

    @property
    def _most_columns(self) -> int:
        """How many columns the factors of all groups may have."""
        count = self._groups_of_rows
        return max(1, _MOST_FACTORS // count) if count else _ROW

    def _all_groups(self, columns: range) -> _Band | None:
        """Return a band with a row for each group, to choose from: many rows are of the same."""
        count = self._groups_of_rows
        if not count:
            return None
        return self._band_of(range(count), columns, Groups(0, np.arange(count)), has_nan=False)

    def _have_nan(self, rows: range, columns: range) -> bool:
        """Whether there is a NaN among codes of F8_E4M3."""
        if self._code.kind != "e4m3":
            return False
        codes = self._codes.box(rows, columns)
        return bool(codes.max() == 0xFF or codes.view(np.int8).max() == 0x7F)

    def _write_tile(
        self, rows: range, columns: range, band: _Band, target: Bits, target_dtype: DType, scratch: _Scratch
    ) -> int:
        """As few calls as possible: each releases the interpreter lock, and getting it back may take as long."""
        inside = rows.start - band.first, rows.stop - band.first, len(columns)
        values, codes = self._values(rows, columns, scratch)
        codes = codes if band.has_nan or not band.is_tame else None
        if band.zeros is not None:
            np.subtract(values, band.zeros.tile(*inside), out=values)
        np.multiply(values, band.factors.tile(*inside), out=values)
        in_place = target_dtype == BF16 and target.flags.c_contiguous
        bits = target if in_place else scratch.bits[: target.size].reshape(target.shape)
        _round(values, band.is_tame, codes, bits)
        if in_place:
            return 0
        if target_dtype == BF16:
            # Rows of the scratch are no power of two apart, as `tiles.Scratch` would have them.
            np.copyto(target, bits)
            return 0
        return cast(bits, target, BF16, target_dtype)

    def _values(self, rows: range, columns: range, scratch: _Scratch) -> tuple[Numbers, NDArray[np.uint8] | None]:
        """Return the values of codes, and the codes themselves if they are FP8."""
        codes, code, part = self._parts.codes, self._code, self._codes
        if codes.packing is not None and (codes.packing.bits, codes.packing.axis) == (4, 1):
            return _pairs(part, codes.packing, code, rows, columns, scratch), None
        if codes.packing is None:
            found = part.box(rows, columns)
        else:
            found = codes_at(part, codes, _slice(rows), _slice(columns), scratch.codes(code))
            if found.dtype == np.float32:
                return found, None
        values = scratch.numbers(*found.shape)
        decode(found, code, values)
        return values, found if code.kind == "e4m3" else None

    def _grouped(self, rows: range, columns: range) -> Groups | None:
        """Return which blocks the rows or columns of a tile belong to, if not to those in their order."""
        if self._groups is None or self._parts.groups is None:
            return None
        axis = self._parts.groups.axis
        tile, first = (rows, columns)[axis], self._first[axis]
        return Groups(axis, self._groups[tile.start - first : tile.stop - first])

    def _rows_share(self, rows: range) -> bool:
        """Whether all rows of a tile have the same factors and zero points."""
        return self._groups is None and min(one.block[0] for one in self._blocks) >= min(_HIGH, len(rows))

    def _height(self) -> int:
        """Return the multiple of rows at which bands end: blocks that are high, and words."""
        heights = [one.block[0] for one in self._blocks if _HIGH <= one.block[0] <= TILE_SIDE and self._groups is None]
        return _lcm([self._parts.codes.unit[0], *heights], TILE_SIDE)

    def _band(self, rows: range, columns: range) -> int:
        """Return how many rows a band has at most, so that its factors stay few."""
        if self._rows_share(rows):
            return TILE_SIDE
        widest = 1 if self._groups is not None and not self._groups_of_rows else min(b.block[1] for b in self._blocks)
        return max(1, min(TILE_SIDE, _MOST_FACTORS * widest // len(columns)))

    @property
    def _blocks(self) -> Iterator[Blocks]:
        yield from self._parts.factors
        if self._parts.zeros is not None:
            yield self._parts.zeros


class _Band(NamedTuple):
    """What some rows, the first of them `first`, are multiplied with, and what is taken from them before."""

    first: int
    factors: Shared
    zeros: Shared | None
    is_tame: bool
    has_nan: bool

    def chosen(self, first: int, numbers: NDArray[np.intp], has_nan: bool) -> _Band:
        """Return the band whose rows are these of this one."""
        factors = self.factors._replace(values=np.take(self.factors.values, numbers, axis=0))
        zeros = self.zeros and self.zeros._replace(values=np.take(self.zeros.values, numbers, axis=0))
        return _Band(first, factors, zeros, self.is_tame, has_nan)


class _Scratch:
    """Room for the numbers and the bits of a tile of up to `count` elements in up to `rows` rows."""

    def __init__(self, count: int, rows: int) -> None:
        self._numbers = np.empty(count + 2 * min(rows, TILE_SIDE), np.float32)
        self.bits = np.empty(count, np.uint16)

    def numbers(self, rows: int, columns: int) -> Numbers:
        """Return an array for numbers."""
        if rows * columns > self._numbers.size:  # a first unit of which little is wanted
            return np.empty((rows, columns), np.float32)
        return self._numbers[: rows * columns].reshape(rows, columns)

    def codes(self, code: Code) -> Callable[[int, int], Unpacked]:
        """Return what makes room for codes: numbers from the beginning where that is what they stand for."""
        if code.kind == "unsigned" and not code.bias:
            return self.numbers
        return lambda rows, columns: np.empty((rows, columns), np.uint8)


def _pairs(part: Part, packing: Packing, code: Code, rows: range, columns: range, scratch: _Scratch) -> Numbers:
    """Return the values of codes of which each byte has two that stand side by side."""
    data = part.data[rows.start - part.row : rows.stop - part.row]
    size = packing.word // packing.bits
    first = (columns.start - part.column) // size
    data = data[:, first : first + -(-(columns.start % size + len(columns)) // size)]
    codes = (in_order(data) if packing.interleaved else data).view(np.uint8)
    skip = columns.start % size
    codes = codes[:, skip // 2 : (skip + len(columns) + 1) // 2]
    values = scratch.numbers(len(rows), 2 * codes.shape[1])
    decode_pairs(codes, code, values)
    return values[:, skip % 2 : skip % 2 + len(columns)]


def _code_of(parts: Quantised) -> Code:
    if parts.codes.code is None:
        raise InternalError(f"nothing says what the codes of {parts.codes.ref.name} stand for")
    return parts.codes.code


def _round(values: Numbers, is_tame: bool, codes: NDArray[np.uint8] | None, target: NDArray[np.uint16]) -> None:
    """Round products to bfloat16; `codes` are those of FP8, if any may be NaN. The products' memory is used up."""
    if is_tame:
        numkong.astype(values, "bfloat16", out=numkong_tensor(target, "bfloat16"))
    else:
        np.copyto(target.view(FLOATS[BF16].numpy), values, casting="unsafe")
    if codes is not None or not is_tame:
        _set_nans(values, codes, target)


def _are_tame(factors: Numbers) -> bool:
    """Whether NumKong may round the products: it loses NaN, and processors differ in what they make of subnormals."""
    magnitudes = np.abs(factors)
    return bool(magnitudes.min() >= _TAME[0] and magnitudes.max() <= _TAME[1])


def _are_whole(zeros: Numbers) -> bool:
    """Whether zero points are whole numbers: what is left of a code then is none that is tiny."""
    return bool((np.rint(zeros) == zeros).all() and np.abs(zeros).max() <= _LARGEST_ZERO)


def _set_nans(products: Numbers, codes: NDArray[np.uint8] | None, target: NDArray[np.uint16]) -> None:
    """Give the products that are NaN their one pattern, with the sign of their code if it is FP8."""
    found = np.isnan(products)
    if codes is None:
        target[found] = FLOATS[BF16].quiet_nan
        return
    bits = products.view(np.uint32)
    np.copyto(bits, codes)
    bits >>= 7
    bits <<= FLOATS[BF16].sign_shift
    bits |= FLOATS[BF16].quiet_nan
    np.copyto(target, bits, where=found, casting="same_kind")


def _cut(elements: range, step: int, most: int) -> Iterator[range]:
    """Cut rows or columns into ranges of at most `most`, or `step`; all but the last end at a multiple of `step`."""
    if not elements:
        return
    even = -(-even_part(len(elements), most) // step) * step
    if even > most:
        even = max(step, most // step * step)
    start = elements.start
    while start < elements.stop:
        stop = min(elements.stop, start // step * step + even)
        yield range(start, stop)
        start = stop


def _lcm(sizes: Iterable[int], most: int) -> int:
    """Return the least common multiple of the sizes; those are left out with which it would exceed `most`."""
    found = 1
    for size in sizes:
        if math.lcm(found, size) <= most:
            found = math.lcm(found, size)
    return found


def _slice(elements: range) -> slice:
    return slice(elements.start, elements.stop)
