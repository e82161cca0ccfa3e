"""Quantised tensors to numbers: codes times their factors, in tiles."""

from __future__ import annotations

import math
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
from .floats import FLOATS, check_cast, numkong_tensor
from .kernels import cast
from .scales import Part, codes_at, words_at
from .tiles import TILE_SIDE, even_part, fast_axis

# Elements of a tile on its way through float32: it stays in L2, and its calls are long compared with what it takes to
# get the interpreter lock back. Fewer where packed codes, factors of each row or a further cast need room
# too. Then the longest row of a tile, and the row of one that is transposed.
_ELEMENTS = 128 << 10
_ELEMENTS_WITH_FACTORS = 80 << 10
_ROW = 16 << 10
_SIDE = 800
# Bytes of packed codes that are turned at once.
_TURNED = 128 << 10


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
    # A word of packed codes is moved at once, and each of the numbers that they stand for is not.
    if window.parts.codes.packing is not None and fast_axis(target) == target.ndim - 2:
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

    def write(self, rows: range, columns: range, target: Bits, target_dtype: DType) -> int:
        """Write some rows and columns, cast; return how many finite bfloat16 became infinite.

        As few calls a tile as possible: each releases the interpreter lock, and getting it back may take as long.
        """
        transposed, (least, step) = fast_axis(self._codes.data) != fast_axis(target), self._layout.unit
        is_plain = self._layout.packing is None and self._bands.rows_share(rows)
        most = _ELEMENTS if is_plain else _ELEMENTS_WITH_FACTORS
        most = min(len(rows) * len(columns), most if target_dtype == BF16 else most // 3)
        scratch = _Scratch(most, len(rows))
        overflows = 0
        is_turned, packing = transposed and self._layout.packing is None, self._layout.packing
        widest = min(_SIDE if is_turned else _ROW, most // least or 1, self._bands.most_columns)
        for across in _cut(columns, step, widest):
            highest = _TURNED * 8 // (packing.bits * len(across)) if packing and transposed else len(rows)
            for down in _cut(rows, self._bands.height, min(self._bands.most_rows(rows, across), highest)):
                band, has_nan = self._bands.band(down, across), self._have_nan(down, across)
                read = self._read(down, across, transposed)
                for few in self._tiles(down, max(1, most // len(across))):
                    top, left = few.start - rows.start, across.start - columns.start
                    part = target[top : top + len(few), left : left + len(across)]
                    values, codes = self._values(read, band, few, across, scratch)
                    band.apply(few, len(across), values)
                    codes = codes if has_nan or not band.is_tame else None
                    overflows += _write(values, band.is_tame, codes, part, target_dtype, scratch)
        return overflows

    def _tiles(self, rows: range, most: int) -> Iterator[range]:
        """Cut the rows of a band into tiles: each is of one block, where blocks are high."""
        least, high = self._layout.unit[0], self._bands.block_rows or len(rows)
        for block in _cut(rows, high, high):
            yield from _cut(block, least, most)

    def _have_nan(self, rows: range, columns: range) -> bool:
        """Whether there is a NaN among codes of F8_E4M3."""
        if self._code.kind != "e4m3":
            return False
        codes = self._codes.box(rows, columns)
        return bool(codes.max() == 0xFF or codes.view(np.int8).max() == 0x7F)

    def _read(self, rows: range, columns: range, transposed: bool) -> Part:
        """Return what a band is read from: packed codes that lie in another order are turned once, word by word."""
        if self._layout.packing is None or not transposed:
            return self._codes
        return words_at(self._codes, self._layout.packing, rows, columns)

    def _values(
        self, part: Part, band: Band, rows: range, columns: range, scratch: _Scratch
    ) -> tuple[Numbers, NDArray[np.uint8] | None]:
        """Return the values of codes less their offsets, and the codes themselves if they are FP8."""
        codes, code = self._layout, self._code
        if code.kind == "e2m1" and codes.packing is not None and codes.packing.axis == 1:
            return self._of_pairs(words_at(part, codes.packing, rows, columns), columns, scratch), None
        found = codes_at(part, codes, rows, columns, scratch.codes(code, self._bands.has_offsets))
        if found.dtype == np.float32:
            return found, None
        values = scratch.numbers(*found.shape)
        if self._bands.has_offsets:
            np.copyto(values, band.differences(rows, len(columns), found))
        else:
            decode(found, code, values)
        return values, found if code.kind == "e4m3" else None

    def _of_pairs(self, words: Part, columns: range, scratch: _Scratch) -> Numbers:
        """Return the values of codes in so many columns, two in each byte of these words: no arithmetic is as fast."""
        values = scratch.numbers(len(words.data), words.data.shape[1] * self._layout.unit[1])
        decode_pairs(words.data, self._code, values)
        return values[:, columns.start - words.column : columns.stop - words.column]


class _Scratch:
    """Room for the numbers and the bits of a tile of up to `count` elements in up to `rows` rows."""

    def __init__(self, count: int, rows: int) -> None:
        self._numbers = np.empty(count + 2 * min(rows, TILE_SIDE), np.float32)
        self._bits: NDArray[np.uint16] | None = None
        self._count = count

    def numbers(self, rows: int, columns: int) -> Numbers:
        """Return an array for numbers."""
        if rows * columns > self._numbers.size:  # a first unit of which little is wanted
            return np.empty((rows, columns), np.float32)
        return self._numbers[: rows * columns].reshape(rows, columns)

    def bits(self, shape: tuple[int, ...]) -> NDArray[np.uint16]:
        """Return an array for bits."""
        if self._bits is None:
            self._bits = np.empty(self._count, np.uint16)
        return self._bits[: math.prod(shape)].reshape(shape)

    def codes(self, code: Code, has_offsets: bool) -> Callable[[int, int], Unpacked]:
        """Return what makes room for codes: numbers from the beginning where that is what they stand for."""
        if code.kind == "unsigned" and not code.bias and code.bits != 4 and not has_offsets:
            return self.numbers
        return lambda rows, columns: np.empty((rows, columns), np.uint8)


def _code_of(parts: Quantised) -> Code:
    if parts.codes.code is None:
        raise InternalError(f"nothing says what the codes of {parts.codes.ref.name} stand for")
    return parts.codes.code


def _write(
    values: Numbers,
    is_tame: bool,
    codes: NDArray[np.uint8] | None,
    target: Bits,
    target_dtype: DType,
    scratch: _Scratch,
) -> int:
    """Write products, rounded to bfloat16 and cast; return how many finite bfloat16 became infinite."""
    in_place = target_dtype == BF16 and target.flags.c_contiguous
    bits = target if in_place else scratch.bits(target.shape)
    _round(values, is_tame, codes, bits)
    if in_place:
        return 0
    if target_dtype == BF16:
        # Rows of the scratch are no power of two apart, as `tiles.Scratch` would have them.
        np.copyto(target, bits)
        return 0
    return cast(bits, target, BF16, target_dtype)


def _round(values: Numbers, is_tame: bool, codes: NDArray[np.uint8] | None, target: NDArray[np.uint16]) -> None:
    """Round products to bfloat16; `codes` are those of FP8, if any may be NaN. The products' memory is used up."""
    if is_tame:
        numkong.astype(values, "bfloat16", out=numkong_tensor(target, "bfloat16"))
    else:
        np.copyto(target.view(FLOATS[BF16].numpy), values, casting="unsafe")
    if codes is not None or not is_tame:
        _set_nans(values, codes, target)


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
