"""Windows: parts of source tensors, read into a region of counted memory."""

from __future__ import annotations

import math
from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError
from ..storage.access import Access
from ..storage.regions import Region
from ..tensors.arrays import Bits, BitType, Bytes
from ..tensors.dtypes import BF16, F8_E8M0, U8, DType
from ..tensors.extents import SourceFile
from ..tensors.grids import Box, box_shape, flat_index, runs, unravelled
from ..tensors.quantised import Blocks, Parts, Quantised
from ..tensors.refs import TensorRef
from ..tensors.view_nodes import Dequantised, Leaf, Stored
from ..text import counted, quote
from .dequantise import Window, dequantise
from .floats import numpy_dtype
from .open_files import OpenFiles
from .scales import Part

_FIRST = 64 << 10
#: Elements of an index that are read at a time.
_STEP = 16 << 10
#: Bytes of the widest element.
_WIDEST = 8
#: In E8M0, what is no power of two.
_NO_EXPONENT = 0xFF
_BITS = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


def bits(dtype: DType) -> BitType:
    """Return the unsigned integer that holds an element's bits."""
    return _BITS[dtype.itemsize]


class _Held(NamedTuple):
    """A window that was read for several boxes."""

    ref: TensorRef
    box: Box
    data: Bits

    def has(self, ref: TensorRef, box: Box) -> bool:
        """Return whether a box of a tensor lies in the window."""
        return ref == self.ref and _holds(self.box, box)

    def part(self, box: Box) -> Bits:
        """Return a box that lies in the window."""
        inside = zip(box, self.box, strict=True)
        return self.data[tuple(slice(low - first, high - first) for (low, high), (first, _) in inside)]


class _Range(NamedTuple):
    """Bytes of a file from `begin` on that were read for several runs."""

    file: SourceFile
    begin: int
    data: Bytes

    def has(self, file: SourceFile, begin: int, end: int) -> bool:
        """Return whether bytes of a file are among them."""
        return file is self.file and self.begin <= begin and end <= self.begin + len(self.data)


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
        self._range: _Range | None = None
        self._quantised: Window | None = None
        self._description: tuple[Parts, Quantised] | None = None
        self._checked: Quantised | None = None
        self._behind = 0

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
        if isinstance(leaf, Dequantised):
            self._quantised = self.quantised(leaf, box)
        if isinstance(leaf, Stored):
            self._held = _Held(leaf.ref, box, self._stored(leaf.ref, box))

    def run(self, file: SourceFile, offset: int, count: int, dtype: DType) -> Bits:
        """Return elements that lie one behind the other in a file, of whichever tensors they are.

        Args:
            file: the file.
            offset: of the first element.
            count: how many elements.
            dtype: their dtype.

        Raises:
            SourceError: the file was changed, or cannot be read.
        """
        size = count * dtype.itemsize
        if self._range is not None and self._range.has(file, offset, offset + size):
            first = offset - self._range.begin
            return self._range.data[first : first + size].view(bits(dtype))
        return self._read_range(file, offset, size).view(bits(dtype))

    def holds(self, file: SourceFile, begin: int, end: int) -> bool:
        """Return whether bytes of a file are in memory, read by `hold_range`."""
        return self._range is not None and self._range.has(file, begin, end)

    def hold_range(self, file: SourceFile, begin: int, end: int, unused: int) -> None:
        """Read bytes of a file, and take runs of them from memory until something else is read.

        Args:
            file: the file.
            begin, end: its bytes.
            unused: how many of these no run has: they do not count as read.

        Raises:
            SourceError: the file was changed, or cannot be read.
        """
        self._range = _Range(file, begin, self._read_range(file, begin, end - begin))
        self._files.bytes_read -= unused

    def _read_range(self, file: SourceFile, offset: int, size: int) -> Bytes:
        self._forget()
        self._files.drop_behind()
        placement = self._files.read_into(self._region, file, offset, size, is_part=False)
        return self._region.array(size, np.dtype(np.uint8), placement)

    def _forget(self) -> None:
        """Let the next window be read over what is in memory."""
        self._held = self._quantised = self._range = None

    def window(self, leaf: Leaf, box: Box) -> Bits:
        """Return a box of a leaf, in the leaf's dtype, as an array of the box's shape.

        Raises:
            SourceError: a file was changed, or cannot be read; or what was read is no number.
        """
        if isinstance(leaf, Dequantised):
            return self._dequantised(leaf, box)
        if isinstance(leaf, Stored):
            return self._stored(leaf.ref, box)
        raise TypeError(type(leaf))

    def quantised(self, leaf: Dequantised, box: Box) -> Window:
        """Return a window of a quantised tensor that holds a box of it.

        Raises:
            SourceError: a file was changed, or cannot be read; or what was read is no number.
        """
        found, parts = self._quantised, self._described(leaf)
        if found is not None and found.parts == parts and _holds(found.box, box):
            return found
        self._forget()
        self._check_shape(parts)
        groups = self._groups(parts, box)
        grouped = None if groups is None or parts.groups is None else parts.groups.axis
        codes = parts.codes
        words = codes.words(box)
        read = Part(self._read_box(codes.ref, words), *codes.start(box))
        self._behind = _nbytes(words, codes.ref)
        factors = tuple(self._read_blocks(blocks, box, grouped) for blocks in parts.factors)
        zeros = None if parts.zeros is None else self._read_blocks(parts.zeros, box, grouped)
        return Window(parts, box, read, factors, zeros, groups)

    def _described(self, leaf: Dequantised) -> Quantised:
        """Return what describes a leaf, once for all windows of it."""
        if self._description is None or self._description[0] != leaf.parts:
            self._description = leaf.parts, leaf.parts.described()
        return self._description[1]

    def _read_blocks(self, blocks: Blocks, box: Box, grouped: int | None) -> Part:
        """Read the blocks that a box of codes touches; they lie behind what was read before."""
        codes, touched = blocks.codes, blocks.touched(box, grouped)
        words = codes.words(touched)
        shape = box_shape(words)
        data = self._region.array_behind(self._behind, math.prod(shape), bits(codes.ref.dtype))
        self._read_runs(codes.ref, words, data)
        self._behind += _nbytes(words, codes.ref)
        if codes.ref.dtype in (U8, F8_E8M0) and codes.code is None and data.size and data.max() == _NO_EXPONENT:
            raise _no_number(codes.ref, words, data)
        return Part(data.reshape(shape), *codes.start(touched))

    def _groups(self, parts: Quantised, box: Box) -> NDArray[np.intp] | None:
        """Return which blocks the rows or columns of a box belong to, `None` where those are in order."""
        if parts.groups is None:
            return None
        axis = parts.groups.axis
        ref, (low, high), size = parts.groups.ref, box[axis - 2], parts.factors[0].block[axis]
        found = np.empty(high - low, np.intp)
        most = parts.factors[0].codes.shape[axis - 2]
        for first in range(0, ref.shape[0], _STEP):
            some = np.frombuffer(self._part_of(ref, first, min(_STEP, ref.shape[0] - first)), "<i4")
            if some.min() < 0:
                return None
            if some.max() >= most:
                raise _no_group(ref, int(some.max()), most)
            inside = some[max(0, low - first) : max(0, high - first)]
            found[max(0, first - low) :][: len(inside)] = inside
        return None if np.array_equal(found, np.arange(low, high) // size) else found

    def _check_shape(self, parts: Quantised) -> None:
        """Compare the shape of codes with the tensor that states it: the plan reads one of many that look the same."""
        ref = parts.stated
        if ref is None or parts == self._checked:
            return
        stated = np.frombuffer(self._part_of(ref, 0, math.prod(ref.shape)), numpy_dtype(ref.dtype)).tolist()
        if stated != list(parts.shape):
            raise _another_shape(parts, ref, stated)
        self._checked = parts

    def _part_of(self, ref: TensorRef, first: int, count: int) -> bytearray:
        target = bytearray(count * ref.dtype.itemsize)
        self._read(ref, first * ref.dtype.itemsize, memoryview(target))
        return target

    def first(self, ref: TensorRef, count: int) -> bytes:
        """Return the first `count` bytes of a tensor.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        target = bytearray(count)
        self._read(ref, 0, memoryview(target))
        return bytes(target)

    def _dequantised(self, leaf: Dequantised, box: Box) -> Bits:
        """Return a box of a quantised tensor as BF16; it lies behind its parts in the region."""
        found = self.quantised(leaf, box)
        self._forget()
        shape = box_shape(box)
        target = self._region.array_behind(self._behind, math.prod(shape), bits(BF16)).reshape(shape)
        dequantise(found, box, target, BF16)
        return target

    def _stored(self, ref: TensorRef, box: Box) -> Bits:
        """Return a box of a tensor: from the window that is held, or read over it."""
        if self._held is not None and self._held.has(ref, box):
            return self._held.part(box)
        self._forget()
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
        target = self._region.array(math.prod(shape), bits(ref.dtype))
        self._read_runs(ref, box, target)
        return target.reshape(shape)

    def _read_runs(self, ref: TensorRef, box: Box, target: Bits) -> None:
        """Read a box, contiguous run by contiguous run."""
        itemsize = ref.dtype.itemsize
        run, starts = runs(box, ref.shape)
        view, size = target.view(np.uint8).data, run * itemsize
        if len(ref.extents) == 1:
            extent = ref.extents[0]
            offsets = (extent.offset + first * itemsize for first in starts)
            self._files.read_runs(extent.file, offsets, size, view)
        else:
            for number, first in enumerate(starts):
                self._read(ref, first * itemsize, view[number * size : (number + 1) * size])

    def _read(self, ref: TensorRef, offset: int, target: memoryview) -> None:
        """Read bytes `offset` … of a tensor, across its extents."""
        for file, at, low, high in ref.spans(offset, len(target)):
            self._files.read(file, at, target[low:high])


def window_bytes(leaf: Leaf, box: Box) -> int:
    """Return how many bytes of a region a window of a box takes."""
    if isinstance(leaf, Dequantised):
        parts = leaf.parts.described()
        blocks = (*parts.factors, *([parts.zeros] if parts.zeros else []))
        grouped = parts.groups.axis if parts.groups else None
        words = [(parts.codes.words(box), parts.codes.ref)]
        words += [(one.codes.words(one.touched(box, grouped)), one.codes.ref) for one in blocks]
        return sum(_nbytes(*one) for one in words)
    return math.prod(box_shape(box)) * leaf.dtype.itemsize


def _nbytes(box: Box, ref: TensorRef) -> int:
    """Return the bytes of a box of a tensor, and room for what follows to begin with a whole element."""
    return -(-math.prod(box_shape(box)) * ref.dtype.itemsize // _WIDEST) * _WIDEST


def _holds(window: Box, box: Box) -> bool:
    return all(c <= a and b <= d for (a, b), (c, d) in zip(box, window, strict=True))


def _no_number(ref: TensorRef, box: Box, data: Bits) -> SourceError:
    number = int(np.argmax(data == _NO_EXPONENT))
    inside = unravelled(number, box_shape(box))
    at = flat_index([low + i for (low, _), i in zip(box, inside, strict=True)], ref.shape)
    file, offset, _, _ = next(ref.spans(at, 1))
    return SourceError(
        f"{quote(file.path)}: byte {offset}, in scales {quote(ref.name)}, is 255, which is no power of two",
        "download the file again, or ask those who quantised the model",
    )


def _no_group(ref: TensorRef, group: int, count: int) -> SourceError:
    file = next(ref.places()).file
    return SourceError(
        f"{quote(file.path)}: {quote(ref.name)} names group {group}, but there are {counted(count, 'group')} of scales",
        "download the file again, or ask those who quantised the model",
    )


def _another_shape(parts: Quantised, ref: TensorRef, stated: list[int]) -> SourceError:
    file = next(ref.places()).file
    return SourceError(
        f"{quote(file.path)}: {quote(ref.name)} states the shape {stated}, "
        f"and {quote(parts.codes.ref.name)} was taken to have {list(parts.shape)} like others of its size",
        "download the file again, or ask those who quantised the model",
    )


def numbers_in(ref: TensorRef) -> tuple[int, ...]:
    """Return the whole numbers in a small tensor.

    Raises:
        SourceError: a file was changed, or cannot be read.
    """
    with closing(Windows(ref.nbytes or 1, Access.READ)) as windows:
        data = windows.first(ref, ref.nbytes)
    return tuple(np.frombuffer(data, numpy_dtype(ref.dtype)).tolist())


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
