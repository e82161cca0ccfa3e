"""Quantised tensors to numbers: codes times their factors, in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numkong
import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError
from ..tensors.arrays import Bits
from ..tensors.dtypes import BF16, DType
from ..tensors.grids import Box
from ..tensors.quantised import Code, Quantised, swapped
from .bands import Band, Bands
from .codes import Numbers, Unpacked, decode, decode_pairs
from .floats import check_cast, numkong_tensor, tile_of
from .rounding import Target
from .scales import Part, codes_at, words_at
from .tiles import TILE_SIDE, Scratch, even_part, fast_axis

# Bytes for a tile on its way through float32, and where codes are turned before; what is left of `SCRATCH_BYTES` is for
# factors, of which these are for a block. A tile stays in L2, and is large: its calls are then few, and long compared
# with what it takes to get the interpreter lock back. Elements of one where packed codes or factors of each row need
# room too. Then the longest row of a tile, and of one whose codes are turned.
_ROOM = 920 << 10
_ROOM_AFTER_TURNED = 1388 << 10
_OF_BLOCK = 24
_ELEMENTS_WITH_FACTORS = 80 << 10
_ROW = 16 << 10
_TURNED_ROW = 2 << 10
# The shortest row of a result for which codes are turned, not numbers, and the row of a tile where numbers are.
_LEAST_ROW = 1 << 10
_SIDE = 800
# Bytes of codes that are turned at once, and of packed ones.
_TURNED = 512 << 10
_TURNED_WORDS = 128 << 10
# Codes that are looked at for NaN at once: they stay in L2.
_ASKED = 1 << 20


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

    @property
    def swapped(self) -> Window:
        """The same where rows and columns have changed places."""
        return Window(
            self.parts.swapped,
            swapped(self.box),
            self.codes.swapped,
            tuple(factor.swapped for factor in self.factors),
            self.zeros and self.zeros.swapped,
            self.groups,
        )


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
    # Codes are moved, not the numbers that they stand for: these are larger, and a word may hold many codes. But the
    # tiles of short rows would be small.
    is_worth_it = window.parts.codes.packing is not None or target.shape[-2] >= _LEAST_ROW
    if fast_axis(target) == target.ndim - 2 and is_worth_it:
        window, box, target = window.swapped, swapped(box), target.swapaxes(-1, -2)
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
        self._layout, self._code = window.parts.codes, _code_of(window.parts)
        self._codes = window.codes.matrix(lead)
        factors, zeros = [part.matrix(lead) for part in window.factors], window.zeros and window.zeros.matrix(lead)
        first = window.box[-2][0], window.box[-1][0]
        self._bands = Bands(window.parts, first, factors, zeros, window.groups)
        e4m3 = numkong_tensor(self._codes.data, "e4m3") if self._code.kind == "e4m3" else None
        self._whole = _Codes(self._codes, e4m3)

    def write(self, rows: range, columns: range, target: Bits, target_dtype: DType) -> int:
        """Write some rows and columns, cast; return how many finite bfloat16 became infinite.

        As few calls a tile as possible: each releases the interpreter lock, and getting it back may take as long.
        """
        transposed, (least, step) = fast_axis(self._codes.data) == 0, self._layout.unit
        most = self._most(rows, columns, target, target_dtype, transposed)
        scratch, out = _Scratch(most, len(rows)), Target(target, target_dtype, most)
        overflows = 0
        for across in _cut(columns, step, min(self._widest(most, transposed, target), most // least or 1)):
            left = slice(across.start - columns.start, across.stop - columns.start)
            for down in _cut(rows, self._bands.height, self._highest(across, most, transposed)):
                read = self._read(down, across, scratch if transposed else None)
                has_nan = read.have_nan(down, across)
                for band, few in self._tiles(down, across, max(1, most // len(across))):
                    values = self._values(read, band, few, across, scratch)
                    band.apply(few, len(across), values)
                    are_asked = read.e4m3 is not None and (has_nan or not band.is_tame)
                    codes = read.part.box(few, across) if are_asked else None
                    tile = slice(few.start - rows.start, few.stop - rows.start), left
                    overflows += out.write(values, band.is_tame, codes, tile)
        return overflows

    def _most(self, rows: range, columns: range, target: Bits, target_dtype: DType, transposed: bool) -> int:
        """Return how many elements a tile has at most."""
        is_packed, rows_share = self._layout.packing is not None, self._bands.rows_share(rows)
        is_turned = transposed and not is_packed
        widest = _TURNED_ROW if is_turned else _ROW
        room = _ROOM_AFTER_TURNED if is_turned else _ROOM
        room -= _OF_BLOCK * self._bands.blocks_across(min(len(columns), widest))
        is_in_place = target_dtype == BF16 and target.flags.c_contiguous and len(columns) <= widest
        # Of each element: its number, whether that is NaN, bits that do not go where they belong at once, its factor.
        most = room // (4 + 1 + (0 if is_in_place else 2) + (0 if rows_share else 4))
        if is_packed or not rows_share:
            most = min(most, _ELEMENTS_WITH_FACTORS)
        return min(len(rows) * len(columns), most if target_dtype == BF16 else most // 3)

    def _widest(self, most: int, transposed: bool, target: Bits) -> int:
        """Return how many columns a tile has at most."""
        longest = _SIDE if fast_axis(target) == 0 else _ROW
        if transposed and self._layout.packing is None:
            longest = min(longest, _TURNED_ROW, _turned(most) // self._bands.height)
        return max(1, min(longest, self._bands.most_columns))

    def _highest(self, columns: range, most: int, transposed: bool) -> int:
        """Return how many rows of codes are turned at most, or looked at for NaN."""
        packing = self._layout.packing
        if not transposed:
            return max(1, _ASKED // len(columns))
        if packing is None:
            return _turned(most) // len(columns)
        return _TURNED_WORDS * 8 // (packing.bits * len(columns))

    def _tiles(self, rows: range, columns: range, most: int) -> Iterator[tuple[Band, range]]:
        """Cut rows into bands, and these into tiles: each is of one block, where blocks are high."""
        least, high = self._layout.unit[0], self._bands.block_rows or len(rows)
        for down in _cut(rows, self._bands.height, self._bands.most_rows(rows, columns)):
            band = self._bands.band(down, columns)
            for block in _cut(down, high, high):
                for few in _cut(block, least, most):
                    yield band, few

    def _read(self, rows: range, columns: range, room: _Scratch | None) -> _Codes:
        """Return what a band is read from: codes that lie in another order are turned once, packed ones as words."""
        if room is None:
            return self._whole
        if self._layout.packing is not None:
            return _Codes(words_at(self._codes, self._layout.packing, rows, columns))
        turned, e4m3 = room.turned(self._codes.box(rows, columns))
        return _Codes(Part(turned, rows.start, columns.start), e4m3 if self._code.kind == "e4m3" else None)

    def _values(self, read: _Codes, band: Band, rows: range, columns: range, scratch: _Scratch) -> Numbers:
        """Return the values of codes less their offsets."""
        codes, code = self._layout, self._code
        if read.e4m3 is not None:
            values = scratch.numbers(len(rows), len(columns))
            numkong.astype(tile_of(read.e4m3, read.part.place(rows, columns)), "float32", out=values)
            return values
        if code.kind == "e2m1" and codes.packing is not None and codes.packing.axis == 1:
            return self._of_pairs(words_at(read.part, codes.packing, rows, columns), columns, scratch)
        found = codes_at(read.part, codes, rows, columns, scratch.codes(code, self._bands.has_offsets))
        if found.dtype == np.float32:
            numbers: Numbers = found
            return numbers
        values = scratch.numbers(*found.shape)
        if self._bands.has_offsets:
            np.copyto(values, band.differences(rows, len(columns), found))
        else:
            decode(found, code, values)
        return values

    def _of_pairs(self, words: Part, columns: range, scratch: _Scratch) -> Numbers:
        """Return the values of codes in so many columns, two in each byte of these words: no arithmetic is as fast."""
        values = scratch.numbers(len(words.data), words.data.shape[1] * self._layout.unit[1])
        decode_pairs(words.data, self._code, values)
        return values[:, columns.start - words.column : columns.stop - words.column]


class _Codes(NamedTuple):
    """Codes of a band, and NumKong's view of them if they are of F8_E4M3: it takes as long to make as all else does."""

    part: Part
    e4m3: numkong.Tensor | None = None

    def have_nan(self, rows: range, columns: range) -> bool:
        """Whether there is a NaN among codes of F8_E4M3."""
        if self.e4m3 is None:
            return False
        codes = self.part.box(rows, columns)
        return bool(codes.max() == 0xFF or codes.view(np.int8).max() == 0x7F)


class _Scratch:
    """Room for the numbers of a tile of up to `count` elements in up to `rows` rows."""

    def __init__(self, count: int, rows: int) -> None:
        self._numbers = np.empty(count + 2 * min(rows, TILE_SIDE), np.float32)
        self._count, self._turning = count, Scratch(self._numbers.view(np.uint8))
        self._turned: tuple[Bits, numkong.Tensor] | None = None

    def numbers(self, rows: int, columns: int) -> Numbers:
        """Return an array for numbers."""
        if rows * columns > self._numbers.size:  # a first unit of which little is wanted
            return np.empty((rows, columns), np.float32)
        return self._numbers[: rows * columns].reshape(rows, columns)

    def turned(self, codes: Bits) -> tuple[Bits, numkong.Tensor]:
        """Return codes in the order of a tile, and as F8_E4M3, valid until the next ones; the numbers are lost."""
        if self._turned is None:
            found = np.empty(_turned(self._count), codes.dtype)
            self._turned = found, numkong_tensor(found, "e4m3")
        room, tensor = self._turned
        turned = room[: codes.size].reshape(codes.shape)
        self._turning.turn(codes, turned)
        return turned, tile_of(tensor, (slice(codes.size),)).reshape(*codes.shape)

    def codes(self, code: Code, has_offsets: bool) -> Callable[[int, int], Unpacked]:
        """Return what makes room for codes: numbers from the beginning where that is what they stand for."""
        if code.kind == "unsigned" and not code.bias and code.bits != 4 and not has_offsets:
            return self.numbers
        return lambda rows, columns: np.empty((rows, columns), np.uint8)


def _turned(most: int) -> int:
    """Return how many bytes of codes are turned at once: there is room for that where so many numbers go after it."""
    return min(_TURNED, most * np.dtype(np.float32).itemsize)


def _code_of(parts: Quantised) -> Code:
    if parts.codes.code is None:
        raise InternalError(f"nothing says what the codes of {parts.codes.ref.name} stand for")
    return parts.codes.code


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
