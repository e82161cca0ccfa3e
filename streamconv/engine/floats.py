"""Float formats: their bits, and how NumPy and NumKong read them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, cast

import ml_dtypes
import numkong
import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError
from ..tensors.arrays import Bits
from ..tensors.dtypes import BF16, F16, F32, F64, DType
from .tiles import Tile

NumKongName: TypeAlias = Literal["e4m3", "e2m3", "float16", "bfloat16", "float32", "float64"]


class FloatFormat(NamedTuple):
    """A float format: how NumPy reads it, NumKong's name, its masks (of the bits' own type), its sign bit's place.

    `largest` is the largest finite number, in float64.
    """

    numpy: np.dtype[Any]
    numkong: NumKongName
    magnitude: Any
    exponent: Any
    quiet_nan: Any
    sign_shift: int
    largest: float


class Floats:
    """Floats as their bits, as NumPy reads them, and as NumKong does.

    NumKong's view of a tile is cut from that of the whole array: the address of an array takes ten times as long.
    """

    def __init__(self, bits: Bits, float_format: FloatFormat, inside: tuple[Floats, Tile] | None = None) -> None:
        self.bits, self.format, self._inside = bits, float_format, inside
        self._tensor: numkong.Tensor | None = None

    def tile(self, tile: Tile) -> Floats:
        """Return some of them."""
        return Floats(self.bits[tile], self.format, (self, tile))

    @property
    def numpy(self) -> NDArray[Any]:
        """NumPy's view of them."""
        return self.bits.view(self.format.numpy)

    @property
    def tensor(self) -> numkong.Tensor:
        """NumKong's view of them."""
        if self._tensor is None:
            self._tensor = self._made()
        return self._tensor

    def _made(self) -> numkong.Tensor:
        if self._inside is None:
            return numkong_tensor(self.bits, self.format.numkong)
        whole, tile = self._inside
        return tile_of(whole.tensor, tile)

    def are_finite(self) -> bool:
        """Whether there is neither NaN nor infinity among them; there is at least one."""
        # NaN and infinity are what has all bits of the exponent set: of each sign, the largest integers. Nothing is
        # allocated for that.
        exponent = self.format.exponent
        negative = exponent | exponent.dtype.type(1 << self.format.sign_shift)
        return bool(self.bits.max() < negative and self._signed.max() < exponent)

    def have_zero(self) -> bool:
        """Whether there is a zero among them; there is at least one."""
        return bool(self.bits.min() == 0 or self._signed.min() == -1 << self.format.sign_shift)

    @property
    def _signed(self) -> NDArray[Any]:
        return self.bits.view(f"i{self.bits.itemsize}")


def _float(numpy: Any, name: NumKongName, mantissa_bits: int) -> FloatFormat:
    dtype = np.dtype(numpy)
    unsigned = np.dtype(f"u{dtype.itemsize}").type
    sign_shift = 8 * dtype.itemsize - 1
    exponent = (1 << sign_shift) - (1 << mantissa_bits)
    quiet_nan = exponent | 1 << (mantissa_bits - 1)
    magnitude, largest = unsigned((1 << sign_shift) - 1), unsigned(exponent - 1).view(dtype)
    return FloatFormat(dtype, name, magnitude, unsigned(exponent), unsigned(quiet_nan), sign_shift, float(largest))


FLOATS = {
    F16: _float(np.float16, "float16", 10),
    BF16: _float(ml_dtypes.bfloat16, "bfloat16", 7),
    F32: _float(np.float32, "float32", 23),
    F64: _float(np.float64, "float64", 52),
}


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """Return NumPy's type for a dtype that it has; not by name alone, for MindSpore registers a bfloat16 of its own."""
    return np.dtype(getattr(ml_dtypes, dtype.numpy or "", dtype.numpy))


def numkong_tensor(array: Bits, dtype: NumKongName) -> numkong.Tensor:
    """Return NumKong's view of an array, by its address: NumPy has no name for some of these dtypes."""
    address = array.__array_interface__["data"][0]
    strides = None if array.flags.c_contiguous else array.strides
    return numkong.from_pointer(address, array.shape, dtype, strides=strides, owner=array)


def tile_of(tensor: numkong.Tensor, tile: Tile) -> numkong.Tensor:
    """Return a tile of NumKong's view of an array, in a tenth of the time that a view of the tile takes."""
    return cast(numkong.Tensor, tensor[tile])


def check_shapes(source: Bits, target: Bits) -> None:
    """Refuse arrays of different shapes.

    Raises:
        InternalError: the shapes differ.
    """
    if source.shape != target.shape:
        raise InternalError(f"elements of shape {source.shape} do not go into shape {target.shape}")


def check_cast(source_dtype: DType, target_dtype: DType) -> None:
    """Refuse what is not a cast of floats.

    Raises:
        InternalError: a dtype is no float that can be cast.
    """
    if not {source_dtype, target_dtype} <= FLOATS.keys():
        raise InternalError(f"there is no cast from {source_dtype} to {target_dtype}")
