"""Products of codes and factors: rounded once to bfloat16, cast, and written."""

from __future__ import annotations

import numkong
import numpy as np
from numpy.typing import NDArray

from ..tensors.arrays import Bits
from ..tensors.dtypes import BF16, DType
from .codes import Numbers
from .floats import FLOATS, numkong_tensor, tile_of
from .kernels import cast
from .tiles import Tile


class Target:
    """Where the products of a matrix go: rounded to bfloat16, and cast."""

    def __init__(self, bits: Bits, dtype: DType, count: int) -> None:
        self._bits, self._dtype, self._count = bits, dtype, count
        self._tensor = numkong_tensor(bits, "bfloat16") if dtype == BF16 else None
        self._between: tuple[NDArray[np.uint16], numkong.Tensor] | None = None

    def write(self, values: Numbers, is_tame: bool, codes: NDArray[np.uint8] | None, tile: Tile) -> int:
        """Write the products of a tile; return how many finite bfloat16 became infinite."""
        target = self._bits[tile]
        if self._tensor is not None and target.flags.c_contiguous:
            _round(values, is_tame, codes, target, tile_of(self._tensor, tile))
            return 0
        bits, tensor = self._room()
        bits, tensor = bits[: values.size].reshape(values.shape), tile_of(tensor, (slice(values.size),))
        _round(values, is_tame, codes, bits, tensor.reshape(*values.shape))
        if self._dtype != BF16:
            return cast(bits, target, BF16, self._dtype)
        np.copyto(target, bits)
        return 0

    def _room(self) -> tuple[NDArray[np.uint16], numkong.Tensor]:
        """Return room for the bits of a tile."""
        if self._between is None:
            bits = np.empty(self._count, np.uint16)
            self._between = bits, numkong_tensor(bits, "bfloat16")
        return self._between


def _round(
    values: Numbers,
    is_tame: bool,
    codes: NDArray[np.uint8] | None,
    target: NDArray[np.uint16],
    tensor: numkong.Tensor,
) -> None:
    """Round products to bfloat16 in `target`, which `tensor` is too; the products' memory is used up.

    `codes` are those of FP8, if any may be NaN.
    """
    if is_tame:
        numkong.astype(values, "bfloat16", out=tensor)
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
