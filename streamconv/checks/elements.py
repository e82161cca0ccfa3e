"""Elements of two tensors compared: by their bits, and where those or the dtypes differ, by their values.

Two values are compared in a type that holds both exactly. Where NumPy has none (a 64-bit integer and a float), only the
dtypes are reported to differ: no published checkpoint has such a pair.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..engine.floats import numpy_dtype
from ..tensors.arrays import Bits
from ..tensors.dtypes import F64, FLOAT, INTEGER, STR, DType
from ..text import quote

# Elements at a time: 16 bytes each for both values and their difference come to less than a worker's overhead.
_STEP = 1 << 15


class Element(NamedTuple):
    """An element that differs: its row-major number in the tensor, and its bits in the one and in the other."""

    number: int
    one: int
    other: int


class Compared(Struct):
    """How the elements of two tensors of one shape compare.

    Attributes:
        one, other: the two dtypes.
        elements: how many elements each tensor has.
        unequal: how many differ in value. NaN is equal to NaN, +0 to -0.
        bits_only: how many have equal values, but other bits; counted where the dtypes are the same.
        nans: how many of the unequal are NaN on one side only.
        largest: the largest absolute difference of two numbers, a whole one where both are; `None` where there is none.
        first: the first element that differs in value.
        first_bits: the first one that differs in its bits only.
    """

    one: DType
    other: DType
    elements: int
    unequal: int = 0
    bits_only: int = 0
    nans: int = 0
    largest: float | None = None
    first: Element | None = None
    first_bits: Element | None = None

    @property
    def same(self) -> bool:
        """Whether no value and, where the dtypes are the same, no bit differs."""
        return not self.unequal and not self.bits_only

    def add(self, one: Bits, other: Bits, number: Callable[[int], int]) -> None:
        """Compare parts of the two tensors.

        Args:
            one: the elements' bits, flat.
            other: those of the other tensor, as many.
            number: an element's row-major number in the tensor, for its place in the part; grows with the place.
        """
        for begin in range(0, len(one), _STEP):
            left, right = one[begin : begin + _STEP], other[begin : begin + _STEP]
            if self.one != self.other:
                places = np.arange(len(left))
            elif np.array_equal(left, right):
                continue
            else:
                places = np.flatnonzero(left != right)
            with np.errstate(all="ignore"):
                self._note(left[places], right[places], partial(_at, number, places + begin))

    def merge(self, part: Compared) -> None:
        """Take what was found in another part of the two tensors into this."""
        self.unequal += part.unequal
        self.bits_only += part.bits_only
        self.nans += part.nans
        if part.largest is not None:
            self._widen(part.largest)
        self.first = _earliest(self.first, part.first)
        self.first_bits = _earliest(self.first_bits, part.first_bits)

    def _note(self, left: Bits, right: Bits, number: Callable[[int], int]) -> None:
        common = _common(self.one, self.other)
        a, b = _values(left, self.one).astype(common), _values(right, self.other).astype(common)
        a_nan, b_nan = a != a, b != b  # noqa: PLR0124 - that is what NaN is
        differs = (a != b) & ~(a_nan & b_nan)
        self.unequal += int(np.count_nonzero(differs))
        self.nans += int(np.count_nonzero(a_nan ^ b_nan))
        self.first = _earlier(self.first, left, right, differs, number)
        if self.one == self.other:
            self.bits_only += int(np.count_nonzero(~differs))
            self.first_bits = _earlier(self.first_bits, left, right, ~differs, number)
        numbers = differs & ~a_nan & ~b_nan
        if self.one != STR and numbers.any():
            self._widen(_distance(a[numbers], b[numbers]))

    def _widen(self, distance: int | float) -> None:
        self.largest = distance if self.largest is None else max(self.largest, distance)

    def shown(self, element: Element) -> tuple[str, str]:
        """Return the two values of an element, with their bits if only those differ."""
        digits = 17 if F64 in (self.one, self.other) else 9
        one, other = _shown(element.one, self.one, digits), _shown(element.other, self.other, digits)
        if element is self.first_bits:
            width = 2 * self.one.itemsize
            return f"{one} (0x{element.one:0{width}x})", f"{other} (0x{element.other:0{width}x})"
        return one, other


def _at(number: Callable[[int], int], places: NDArray[np.int64], index: int) -> int:
    return number(int(places[index]))


def comparable(one: DType, other: DType) -> bool:
    """Return whether elements of two dtypes can be compared by value.

    Text and nibbles compare with their own only, 64-bit integers with integers that one type holds both of.
    """
    if one == other:
        return True
    return one.numpy is not None and other.numpy is not None and _common(one, other) is not None


def _earlier(
    known: Element | None, left: Bits, right: Bits, found: NDArray[np.bool_], number: Callable[[int], int]
) -> Element | None:
    """Return the first element that is found here, unless an earlier one is known."""
    if not found.any():
        return known
    place = int(found.argmax())
    return _earliest(known, Element(number(place), int(left[place]), int(right[place])))


def _earliest(one: Element | None, other: Element | None) -> Element | None:
    return min(filter(None, (one, other)), key=lambda element: element.number, default=None)


def _distance(one: Bits, other: Bits) -> int | float:
    """The largest absolute difference of numbers of one type; of whole numbers exact, in unsigned arithmetic."""
    if one.dtype.kind not in "iu":
        return float(np.abs(one - other).max())
    unsigned = np.dtype(f"u{one.dtype.itemsize}")
    return int((np.maximum(one, other).view(unsigned) - np.minimum(one, other).view(unsigned)).max())


def _common(one: DType, other: DType) -> np.dtype[Any] | None:
    """The type that holds every value of both exactly, `None` where NumPy has none: a 64-bit integer and a float."""
    types = [_type(dtype) for dtype in (one, other)]
    whole = [kind.kind in "iu" for kind in types]
    if all(whole):
        both = np.result_type(*types)
        return both if both.kind in "iu" else None
    if any(is_whole and kind.itemsize == 8 for is_whole, kind in zip(whole, types, strict=True)):
        return None
    return np.dtype(np.complex128 if "c" in (types[0].kind, types[1].kind) else np.float64)


def _type(dtype: DType) -> np.dtype[Any]:
    """How NumPy reads an element. A boolean is a byte, for not every byte is a boolean."""
    return np.dtype(f"u{dtype.itemsize}") if dtype.numpy in (None, "bool") else numpy_dtype(dtype)


def _values(bits: Bits, dtype: DType) -> Bits:
    return bits.view(_type(dtype))


def _shown(bits: int, dtype: DType, digits: int) -> str:
    if dtype == STR:
        return repr(quote(chr(bits))) if bits <= 0x10FFFF else f"0x{bits:x}"
    value = _values(np.array([bits], f"u{dtype.itemsize}"), dtype)[0]
    if dtype.kind == INTEGER or dtype.numpy is None:
        return str(int(value))
    if dtype.kind == FLOAT or not np.iscomplexobj(value):
        return f"{float(value):.{digits}g}"
    return str(complex(value))
