"""Windows: parts of source tensors, read into a region of counted memory."""

from __future__ import annotations

import math
from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..storage.access import Access
from ..storage.regions import Region
from ..tensors.arrays import Bits, BitType
from ..tensors.dtypes import BF16, DType
from ..tensors.grids import Box, box_shape, flat_index, runs
from ..tensors.refs import TensorRef
from ..tensors.view_nodes import Leaf, Scaled, Stored
from .floats import FLOATS
from .fp8 import dequantise
from .open_files import OpenFiles

_FIRST = 64 << 10
_BITS = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


def bits(dtype: DType) -> BitType:
    """Return the unsigned integer that holds an element's bits."""
    return _BITS[dtype.itemsize]


class _Held(NamedTuple):
    """A window that was read for several boxes, with its scales if it is one of an FP8 matrix."""

    ref: TensorRef
    box: Box
    data: Bits
    scale: NDArray[np.float32] | None

    def has(self, ref: TensorRef, box: Box) -> bool:
        """Return whether a box of a tensor lies in the window."""
        return ref == self.ref and all(c <= a and b <= d for (a, b), (c, d) in zip(box, self.box, strict=True))

    def part(self, box: Box) -> Bits:
        """Return a box that lies in the window."""
        return self.data[_inside(self.box, box)]


class Windows:
    """One window at a time: each call makes the result of the one before invalid.

    Args:
        region_bytes: bytes of a window at most.
        access: how windows come from files.
        drops: drop what was read from the page cache.
    """

    def __init__(self, region_bytes: int, access: Access, drops: bool = False) -> None:
        self._region = Region(region_bytes)
        self._files = OpenFiles(access, drops)
        self._held: _Held | None = None

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    @property
    def bytes_read(self) -> int:
        """Bytes read so far."""
        return self._files.bytes_read

    def hold(self, leaf: Leaf, box: Box) -> None:
        """Read a box of a tensor on disk, and take parts of it from memory until something else is read.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        if isinstance(leaf, Scaled):
            weight, scale = self.quantised(leaf, box)
            self._held = _Held(leaf.weight, box, weight, scale)
        if isinstance(leaf, Stored):
            self._held = _Held(leaf.ref, box, self._stored(leaf.ref, box), None)

    def window(self, leaf: Leaf, box: Box) -> Bits:
        """Return a box of a leaf, in the leaf's dtype, as an array of the box's shape.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        if isinstance(leaf, Scaled):
            return self._dequantised(leaf, box)
        if isinstance(leaf, Stored):
            return self._stored(leaf.ref, box)
        raise TypeError(type(leaf))

    def quantised(self, leaf: Scaled, box: Box) -> tuple[Bits, NDArray[np.float32]]:
        """Return a box of an FP8 matrix, and the scales of the blocks that it touches.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        held, scale_box = self._held, _scale_box(leaf, box)
        if held is not None and held.scale is not None and held.has(leaf.weight, box):
            return held.part(box), held.scale[_inside(_scale_box(leaf, held.box), scale_box)]
        scale = self._stored(leaf.scale, scale_box).view(FLOATS[leaf.scale.dtype].numpy).astype(np.float32)
        return self._stored(leaf.weight, box), scale

    def first(self, ref: TensorRef, count: int) -> bytes:
        """Return the first `count` bytes of a tensor.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        target = bytearray(count)
        self._read(ref, 0, memoryview(target))
        return bytes(target)

    def _dequantised(self, leaf: Scaled, box: Box) -> Bits:
        """Return a box of an FP8 matrix times its scales, as BF16; it lies behind the weights in the region."""
        # Behind the weights is no room next to a window that is held.
        self._held = None
        weight, scale = self.quantised(leaf, box)
        target = self._region.array_behind(weight.size, weight.size, bits(BF16)).reshape(weight.shape)
        dequantise(weight, scale, target, BF16, box[0][0], box[1][0], leaf.block)
        return target

    def _stored(self, ref: TensorRef, box: Box) -> Bits:
        """Return a box of a tensor: from the window that is held, or read over it."""
        if self._held is not None and self._held.has(ref, box):
            return self._held.part(box)
        self._held = None
        return self._read_box(ref, box)

    def _read_box(self, ref: TensorRef, box: Box) -> Bits:
        itemsize, shape = ref.dtype.itemsize, box_shape(box)
        low = flat_index([a for a, _ in box], ref.shape) * itemsize
        high = (flat_index([b - 1 for _, b in box], ref.shape) + 1) * itemsize
        size = math.prod(shape) * itemsize
        self._files.drop_behind()
        if high - low == size:
            span, *others = ref.spans(low, size)
            if not others:
                placement = self._files.read_into(self._region, span.file, span.offset, size, is_part=size < ref.nbytes)
                return self._region.array(math.prod(shape), bits(ref.dtype), placement).reshape(shape)
        return self._read_runs(ref, box)

    def _read_runs(self, ref: TensorRef, box: Box) -> Bits:
        """Read a box into the region, contiguous run by contiguous run."""
        shape, itemsize = box_shape(box), ref.dtype.itemsize
        target = self._region.array(math.prod(shape), bits(ref.dtype))
        run, starts = runs(box, ref.shape)
        view, size = target.view(np.uint8).data, run * itemsize
        if len(ref.extents) == 1:
            extent = ref.extents[0]
            offsets = (extent.offset + first * itemsize for first in starts)
            self._files.read_runs(extent.file, offsets, size, view)
        else:
            for number, first in enumerate(starts):
                self._read(ref, first * itemsize, view[number * size : (number + 1) * size])
        return target.reshape(shape)

    def _read(self, ref: TensorRef, offset: int, target: memoryview) -> None:
        """Read bytes `offset` … of a tensor, across its extents."""
        for file, at, low, high in ref.spans(offset, len(target)):
            self._files.read(file, at, target[low:high])


def _scale_box(leaf: Scaled, box: Box) -> Box:
    """Return the scale blocks that a box of an FP8 matrix touches."""
    return tuple((low // size, -(-high // size)) for (low, high), size in zip(box, leaf.block, strict=True))


def _inside(window: Box, box: Box) -> tuple[slice, ...]:
    """Return where in a window a box lies."""
    return tuple(slice(low - first, high - first) for (low, high), (first, _) in zip(box, window, strict=True))


def same_start(one: TensorRef, other: TensorRef) -> bool:
    """Return whether two tensors have shape, dtype and their first 64 KiB in common.

    Raises:
        SourceError: a file was changed, or cannot be read.
    """
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    count = min(one.nbytes, _FIRST)
    with closing(Windows(count or 1, Access.READ)) as windows:
        return windows.first(one, count) == windows.first(other, count)
