"""Codes to numbers: unpack words, and give each code its value in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

import ml_dtypes
import numkong
import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError
from ..tensors.arrays import Bits
from ..tensors.quantised import Code, Packing
from .floats import numkong_tensor

Numbers = NDArray[np.float32]
#: Codes, a byte each, or as the numbers that they are.
Unpacked: TypeAlias = "NDArray[np.uint8] | NDArray[np.float32]"

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_All = Callable[[NDArray[np.int64], Code], NDArray[Any]]


def _e2m1(codes: NDArray[np.int64], code: Code) -> NDArray[Any]:
    """Source: OCP Microscaling Formats 1.0, 5.3.3; code 8 is -0."""
    found: NDArray[Any] = np.copysign(np.take(_E2M1, codes & 7), np.where(codes & 8, -1.0, 1.0))
    return found


def _e4m3(codes: NDArray[np.int64], code: Code) -> NDArray[Any]:
    return codes.astype(np.uint8).view(ml_dtypes.float8_e4m3fn)


def _signed(codes: NDArray[np.int64], code: Code) -> NDArray[Any]:
    return codes - (codes >> (code.bits - 1) << code.bits)


def _unsigned(codes: NDArray[np.int64], code: Code) -> NDArray[Any]:
    return codes - code.bias


def _following(codes: NDArray[np.int64], code: Code) -> NDArray[Any]:
    return (codes + 1) & ((1 << code.bits) - 1)


_KINDS: dict[str, _All] = {
    "e4m3": _e4m3,
    "e2m1": _e2m1,
    "signed": _signed,
    "unsigned": _unsigned,
    "following": _following,
}


@lru_cache
def values_of(code: Code) -> Numbers:
    """Return the value of every code.

    Raises:
        InternalError: there is no such kind of codes.
    """
    if code.kind not in _KINDS:
        raise InternalError(f"there are no codes of kind {code.kind}")
    return _KINDS[code.kind](np.arange(1 << code.bits), code).astype(np.float32)


@lru_cache
def pairs_of(code: Code) -> NDArray[np.uint64]:
    """Return, for every byte that holds two codes of four bits, low bits first, their values as one item of 8 bytes."""
    values = values_of(code)
    return np.stack([np.tile(values, 16), np.repeat(values, 16)], axis=1).copy().view(np.uint64)[:, 0]


def decode(codes: NDArray[np.uint8], code: Code, target: Numbers) -> None:
    """Write the values of codes, a byte each, into `target` of the same shape, which is contiguous."""
    if code.kind == "e4m3":
        numkong.astype(numkong_tensor(codes, "e4m3"), "float32", out=target)
    elif code.kind == "signed":
        sign = np.uint8(1 << (code.bits - 1))
        np.copyto(target, (codes if code.bits == 8 else (codes ^ sign) - sign).view(np.int8))
    elif code.kind == "unsigned":
        np.subtract(codes, np.float32(code.bias), out=target)
    else:
        # In mode "raise", NumPy would copy the target before it writes to it; no code is out of range.
        np.take(values_of(code), codes, out=target, mode="clip")


def decode_pairs(data: NDArray[np.uint8], code: Code, target: Numbers) -> None:
    """Write the values of codes, two in a byte, into `target`: as many rows, twice as many columns, contiguous."""
    np.take(pairs_of(code), data, out=target.view(np.uint64), mode="clip")


def unpack(words: Bits, packing: Packing, target: Unpacked) -> None:
    """Write the codes in words that begin with a unit into `target`, which may end before their last code.

    Args:
        words: `[r, c]` words; of the last unit, those that hold codes of `target`.
        packing: how codes lie in them.
        target: `[r, c]` codes, in bytes or as numbers.
    """
    if packing.interleaved:
        words, packing = in_order(words), replace(packing, interleaved=False)
    if packing.axis == 0:
        words, target = words.T, target.T
    codes, per_unit = packing.unit
    word = words.dtype.type
    for number in range(codes):
        wanted = target[:, number::codes]
        count = wanted.shape[1]
        index, shift = divmod(number * packing.bits, packing.word)
        found = words[:, index::per_unit][:, :count] >> word(shift)
        if shift + packing.bits > packing.word:
            found |= words[:, index + 1 :: per_unit][:, :count] << word(packing.word - shift)
        found &= word((1 << packing.bits) - 1)
        # As signed numbers, processors convert them many at a time.
        np.copyto(wanted, found.view(f"i{found.itemsize}"), casting="unsafe")


def in_order(words: Bits) -> Bits:
    """Return words of 32 bits whose eight codes are interleaved with their codes in order.

    A perfect shuffle in two steps: the middle bytes change places, then the middle codes of each half.
    """
    halves = (words & np.uint32(0xFF0000FF)) | (words & np.uint32(0xFF00)) << np.uint32(8)
    halves |= (words & np.uint32(0xFF0000)) >> np.uint32(8)
    found = (halves & np.uint32(0xF00FF00F)) | (halves & np.uint32(0xF000F0)) << np.uint32(4)
    found |= (halves & np.uint32(0xF000F00)) >> np.uint32(4)
    return found
