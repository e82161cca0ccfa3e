"""Codes to numbers: unpack words, and give each code its value in float32."""

from __future__ import annotations

from collections.abc import Callable
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
def _pairs_of(code: Code) -> NDArray[np.uint64]:
    """Return, for every byte that holds two codes of four bits, low bits first, their values as one item of 8 bytes."""
    values = values_of(code)
    return np.stack([np.tile(values, 16), np.repeat(values, 16)], axis=1).copy().view(np.uint64)[:, 0]


def decode_pairs(words: Bits, code: Code, target: Numbers) -> None:
    """Write the values of codes of four bits, two in a byte, side by side, into `target`, which is contiguous."""
    np.take(_pairs_of(code), words.view(np.uint8), out=target.view(np.uint64), mode="clip")


def decode(codes: NDArray[np.uint8], code: Code, target: Numbers) -> None:
    """Write the values of codes, a byte each, into `target` of the same shape, which is contiguous."""
    middle = 1 << (code.bits - 1)
    if code.kind == "e2m1":
        # As E2M3, whose numbers have two bits more behind the point.
        numkong.astype(numkong_tensor(codes << np.uint8(2), "e2m3"), "float32", out=target)
    elif code.kind == "signed" or (code.kind == "unsigned" and code.bias == middle):
        np.copyto(target, _signed_bytes(codes, code))
    elif code.kind == "unsigned":
        np.subtract(codes, np.float32(code.bias), out=target)
    else:
        # In mode "raise", NumPy would copy the target before it writes to it; no code is out of range.
        np.take(values_of(code), codes, out=target, mode="clip")


def _signed_bytes(codes: NDArray[np.uint8], code: Code) -> NDArray[np.int8]:
    """Return what codes stand for that are signed, or unsigned and counted from the middle one."""
    middle = np.uint8(1 << (code.bits - 1))
    if (code.kind == "signed") == (code.bits < 8):
        codes = codes ^ middle
    return (codes - middle if code.bits < 8 else codes).view(np.int8)


def unpack(words: Bits, packing: Packing, target: Unpacked) -> None:
    """Write the codes in words that begin with a unit into `target`, which may end before their last code.

    Args:
        words: `[r, c]` words; of the last unit, those that hold codes of `target`.
        packing: how codes lie in them.
        target: `[r, c]` codes, in bytes, or as numbers if they have not 4 bits; contiguous.
    """
    codes, per_unit = packing.unit
    if packing.bits == 4 and words.shape[packing.axis] * codes == target.shape[packing.axis]:
        (_unpack_side_by_side if packing.axis == 1 else _unpack_below)(words, packing, target)
        return
    if packing.axis == 0:
        words, target = words.T, target.T
    word = words.dtype.type
    for number in range(codes):
        wanted = target[:, number::codes]
        count = wanted.shape[1]
        index, shift = divmod(packing.bit(number), packing.word)
        found = words[:, index::per_unit][:, :count] >> word(shift)
        if shift + packing.bits > packing.word:
            found |= words[:, index + 1 :: per_unit][:, :count] << word(packing.word - shift)
        found &= word((1 << packing.bits) - 1)
        # As signed numbers, processors convert them many at a time.
        np.copyto(wanted, found.view(f"i{found.itemsize}"), casting="unsafe")


def _unpack_side_by_side(words: Bits, packing: Packing, target: Unpacked) -> None:
    """Write codes of four bits that stand side by side: both of a byte at once, each into a byte of its own."""
    words, pairs = in_order(words) if packing.interleaved else words, target.view(np.uint16)
    np.copyto(pairs, words.view(np.uint8))
    pairs |= pairs << np.uint16(4)
    pairs &= np.uint16(0x0F0F)


def _unpack_below(words: Bits, packing: Packing, target: Unpacked) -> None:
    """Write codes of four bits that stand one below the other: byte by byte of all words, both of each."""
    of_words = target.reshape(len(words), packing.unit[0], -1)
    places = {packing.bit(place): place for place in range(packing.unit[0])}
    for shift in range(0, packing.word, 8):
        both = (words >> words.dtype.type(shift)).astype(np.uint8)
        np.bitwise_and(both, np.uint8(0x0F), out=of_words[:, places[shift]])
        np.right_shift(both, np.uint8(4), out=of_words[:, places[shift + 4]])


def in_order(words: Bits) -> Bits:
    """Return words of 32 bits whose eight codes are interleaved with their codes in order.

    A perfect shuffle in two steps: the middle bytes change places, then the middle codes of each half.
    """
    halves = (words & np.uint32(0xFF0000FF)) | (words & np.uint32(0xFF00)) << np.uint32(8)
    halves |= (words & np.uint32(0xFF0000)) >> np.uint32(8)
    found = (halves & np.uint32(0xF00FF00F)) | (halves & np.uint32(0xF000F0)) << np.uint32(4)
    found |= (halves & np.uint32(0xF000F00)) >> np.uint32(4)
    return found
