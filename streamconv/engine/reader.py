"""Reading: windows of source tensors, mapped, or read into counted buffers, through the page cache or past it.

Each worker has one reader, and a reader holds one window at a time. Whether mapped or read, a window is never larger
than the region the budget gives it: what is asked in a grid that is larger, or mostly holes, is asked in parts.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceChangedError, reading, source_error
from ..storage import access, disk
from ..storage.access import Access
from ..storage.disk import ALIGNMENT
from ..storage.regions import Region
from ..tensors.arrays import Bits, BitType
from ..tensors.dtypes import BF16, F8_E4M3, DType
from ..tensors.grids import Box, Grid, box_shape, flat_index, runs
from ..tensors.refs import SourceFile, TensorRef, overlaps
from ..tensors.view_nodes import Leaf, Scaled, Stored, View, Zeros
from ..text import quote
from . import kernels

_OPEN_FILES = 8
_FIRST = 64 << 10
_WORTH_DROPPING = 64 << 10
_FP8_AND_BF16 = 3  # bytes an element: what is read, and what it becomes beside it
_BITS = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


def bits(dtype: DType) -> BitType:
    """The unsigned integer that holds an element's bits."""
    return _BITS[dtype.itemsize]


class _Open(NamedTuple):
    """Descriptors of an open file: through the page cache, and past it where that is wanted and offered."""

    cached: int
    direct: int | None


class Reader:
    """Reads boxes of tensors, one window at a time.

    Args:
        region_bytes: bytes of a window at the most.
        access: how windows come from files.
        drops: drop what was read from the page cache, for nobody comes back to it, and others need the room.
    """

    def __init__(self, region_bytes: int, access: Access, drops: bool = False) -> None:
        self.region_bytes = region_bytes
        self.access = access
        self.drops = drops
        self.bytes_read = 0
        self._buffer = Region(region_bytes)
        self._files: dict[Path, _Open] = {}
        self._behind: list[tuple[int, int, int]] = []

    def close(self) -> None:
        """Close the files it holds open."""
        while self._files:
            self._close_one()

    def fill(self, view: View, box: Box, target: Bits, dtype: DType) -> int:
        """Fill `target`, a flat buffer of the box's elements in row-major order, with a box of a view, cast to `dtype`.

        Returns:
            How many finite values became infinite.

        Raises:
            SourceError: a file is not as it was, or cannot be read.
        """
        overflowed = 0
        for piece in view.box(box):
            if isinstance(piece.leaf, Zeros):
                _strided(target, piece.grid, None)[...] = 0
                continue
            for grid in self.split_to_fit(piece.leaf, piece.grid):
                overflowed += self._copy(piece.leaf, grid, target, dtype)
        return overflowed

    def _copy(self, leaf: Leaf, grid: Grid, target: Bits, dtype: DType) -> int:
        """One strided copy. The window is gone when this returns: the next one must not be held beside it."""
        if isinstance(leaf, Scaled) and _is_box(grid):
            weight, scale = self._quantised(leaf, grid.bounds())
            top, left = grid.start
            return kernels.dequantise(weight, scale, _as_box(target, grid), dtype, top, left, leaf.block)
        source = _strided(self._window(leaf, grid.bounds()), grid, grid.bounds())
        return kernels.cast(source, _strided(target, grid, None), leaf.dtype, dtype)

    def as_stored(self, view: View, box: Box, dtype: DType) -> Bits | None:
        """The box's bytes as they lie in the source, where nothing has to be moved or cast, else `None`.

        The array is valid until the next call.
        """
        piece = next(view.box(box))
        bounds = piece.grid.bounds()
        shape = box_shape(bounds)
        if (
            not isinstance(piece.leaf, Stored)
            or piece.leaf.dtype != dtype
            or math.prod(shape) != math.prod(box_shape(box))
        ):
            return None
        run, _ = runs(bounds, piece.leaf.shape)
        if run < math.prod(shape) or run * dtype.itemsize > self.region_bytes or not _in_order(piece.grid, shape):
            return None
        return self._window(piece.leaf, bounds).reshape(-1)

    def split_to_fit(self, leaf: Leaf, grid: Grid) -> Iterator[Grid]:
        """`grid`, halved until its bounds fit the region and are not mostly holes."""
        size = math.prod(box_shape(grid.bounds()))
        itemsize = leaf.dtype.itemsize
        if isinstance(leaf, Scaled):
            itemsize = F8_E4M3.itemsize if _is_box(grid) else _FP8_AND_BF16
        if (size * itemsize <= self.region_bytes and size <= 2 * grid.count) or grid.count == 1:
            yield grid
            return
        loop = max(grid.loops, key=lambda p: p.step * math.prod(leaf.shape[p.axis + 1 :]))
        half = loop.count // 2
        yield from self.split_to_fit(leaf, grid.part(loop, 0, half))
        yield from self.split_to_fit(leaf, grid.part(loop, half, loop.count))

    # -- windows -------------------------------------------------------------------------------------------------------

    def _window(self, leaf: Leaf, box: Box) -> Bits:
        """A box of a leaf, in the leaf's dtype, as an array of the box's shape."""
        if isinstance(leaf, Scaled):
            return self._dequantised(leaf, box)
        if isinstance(leaf, Stored):
            return self._stored(leaf.ref, box)
        raise TypeError(type(leaf))

    def _stored(self, ref: TensorRef, box: Box) -> Bits:
        itemsize, shape = ref.dtype.itemsize, box_shape(box)
        low = flat_index([a for a, _ in box], ref.shape) * itemsize
        high = (flat_index([b - 1 for _, b in box], ref.shape) + 1) * itemsize
        size = math.prod(shape) * itemsize
        (number, inside, *_), *others = overlaps(_lengths(ref), low, high - low)
        self._drop_behind()
        file, place = ref.extents[number].file, ref.extents[number].offset + inside
        if others:
            return self._read_box(ref, box)
        if self.access is Access.MAP and high - low <= min(self.region_bytes, 2 * size):
            self._buffer.release()
            data = self._map(file, place, high - low)
            strides = [math.prod(ref.shape[a + 1 :]) * itemsize for a in range(len(shape))]
            flat = np.frombuffer(data, np.uint8)
            return np.ndarray(shape, bits(ref.dtype), flat, 0, strides)
        least = access.DIRECT_LEAST if size == ref.nbytes else access.DIRECT_LEAST_OF_PART
        if self.access is Access.DIRECT and least <= high - low == size:
            phase = self._read_directly(file, place, size)
            return self._buffer.array(math.prod(shape), bits(ref.dtype), phase).reshape(shape)
        return self._read_box(ref, box)

    def _map(self, file: SourceFile, offset: int, length: int) -> memoryview:
        descriptor = self._open(file).cached
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            mapping = disk.map_file(descriptor, offset + length - start, start)
        except ValueError as error:
            raise _changed(file, str(error)) from error
        except OSError as error:
            raise source_error(error, "cannot map", file.path) from error
        self._note_read(descriptor, offset, length)
        return memoryview(mapping)[offset - start :]

    def _read_box(self, ref: TensorRef, box: Box) -> Bits:
        """A box read into the buffer, contiguous run by contiguous run."""
        shape, itemsize = box_shape(box), ref.dtype.itemsize
        count = math.prod(shape)
        target = self._buffer.array(count, bits(ref.dtype))
        run, starts = runs(box, ref.shape)
        view, size = target.view(np.uint8).data, run * itemsize
        for number, first in enumerate(starts):
            self._read(ref, first * itemsize, view[number * size : (number + 1) * size])
        return target.reshape(shape)

    def first(self, ref: TensorRef, count: int) -> bytes:
        """The first `count` bytes of a tensor."""
        target = bytearray(count)
        self._read(ref, 0, memoryview(target))
        return bytes(target)

    def _read(self, ref: TensorRef, offset: int, target: memoryview) -> None:
        """Bytes `offset` … of a tensor, across its extents."""
        for number, inside, low, high in overlaps(_lengths(ref), offset, len(target)):
            extent = ref.extents[number]
            self._read_file(extent.file, extent.offset + inside, target[low:high])

    def _read_directly(self, file: SourceFile, offset: int, length: int) -> int:
        """Read whole pages past the page cache, but for what it has; says where in the buffer byte `offset` is."""
        phase = offset % ALIGNMENT
        start, needed = offset - phase, phase + length
        pages = self._buffer.array(-(-needed // ALIGNMENT) * ALIGNMENT, np.dtype(np.uint8)).data
        found, done = self._open(file), 0
        if found.direct is not None:
            done = min(needed, disk.read_pages(found.direct, pages, start))
        self._read_all(found.cached, file, start + done, pages[done:needed])
        self._note_read(found.cached, offset, length)
        return phase

    def _read_file(self, file: SourceFile, offset: int, target: memoryview) -> None:
        descriptor = self._open(file).cached
        self._read_all(descriptor, file, offset, target)
        self._note_read(descriptor, offset, len(target))

    @staticmethod
    def _read_all(descriptor: int, file: SourceFile, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = disk.read_into(descriptor, target[done:], offset + done)
            except OSError as error:
                raise source_error(error, f"cannot read byte {offset + done} of", file.path) from error
            if count == 0:
                raise _changed(file, f"it ends at byte {offset + done}")
            done += count

    def _dequantised(self, leaf: Scaled, box: Box) -> Bits:
        """A box of an FP8 matrix times its scales, as BF16; it lies behind the weights in the buffer."""
        weight, scale = self._quantised(leaf, box)
        behind = ALIGNMENT + weight.size + weight.size % BF16.itemsize
        target = self._buffer.array(weight.size, bits(BF16), behind).reshape(weight.shape)
        kernels.dequantise(weight, scale, target, BF16, box[0][0], box[1][0], leaf.block)
        return target

    def _quantised(self, leaf: Scaled, box: Box) -> tuple[Bits, NDArray[np.float32]]:
        """A box of an FP8 matrix, and the scales of the blocks it touches."""
        (top, bottom), (left, right) = box
        rows, columns = leaf.block
        scale_box = ((top // rows, -(-bottom // rows)), (left // columns, -(-right // columns)))
        scale = self._stored(leaf.scale, scale_box).view(np.float32).copy()
        return self._stored(leaf.weight, box), scale

    # -- files ---------------------------------------------------------------------------------------------------------

    def _note_read(self, descriptor: int, offset: int, length: int) -> None:
        self.bytes_read += length
        if self.drops and length >= _WORTH_DROPPING:
            self._behind.append((descriptor, offset, length))

    def _drop_behind(self) -> None:
        """Drop the windows before this one, which are mapped no more."""
        for descriptor, offset, length in self._behind:
            disk.try_drop_cache(descriptor, offset, length)
        self._behind.clear()

    def _close_one(self) -> None:
        """Close the file that was opened first, and drop what is left of it in the cache: the pages windows share."""
        self._behind.clear()
        found = self._files.pop(next(iter(self._files)))
        if self.drops:
            disk.try_drop_cache(found.cached)
        disk.close_quietly(found.cached)
        if found.direct is not None:
            disk.close_quietly(found.direct)

    def _open(self, file: SourceFile) -> _Open:
        """The file's descriptors, after a look whether the file is as long as it was: less, mapped, would be fatal."""
        found = self._files.get(file.path)
        try:
            if found is None:
                if len(self._files) >= _OPEN_FILES:
                    self._close_one()
                found = _Open(disk.open_file(file.path, os.O_RDONLY), None)
                if self.access is Access.DIRECT:
                    found = found._replace(direct=disk.open_direct(found.cached, os.O_RDONLY))
                self._files[file.path] = found
            status = disk.fstat(found.cached)
        except OSError as error:
            raise source_error(error, "cannot open", file.path) from error
        _check_unchanged(file, status)
        return found


def check_unchanged(files: Iterable[SourceFile]) -> None:
    """Look once more whether the files are what they were.

    Raises:
        SourceChangedError: one was written to.
        SourceError: one is gone.
    """
    for file in files:
        with reading(file.path, "cannot look at"):
            _check_unchanged(file, disk.stat(file.path))


def _check_unchanged(file: SourceFile, found: os.stat_result) -> None:
    if found.st_size != file.size:
        raise _changed(file, f"it has {found.st_size} bytes now")
    if file.modified not in (None, found.st_mtime_ns):
        raise _changed(file, "and was written to since")


def same_start(one: TensorRef, other: TensorRef) -> bool:
    """Whether two tensors have shape, dtype and their first 64 KiB in common.

    Raises:
        SourceError: a file is not as it was, or cannot be read.
    """
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    count = min(one.nbytes, _FIRST)
    with closing(Reader(count or 1, Access.READ)) as reader:
        return reader.first(one, count) == reader.first(other, count)


def _changed(file: SourceFile, what: str) -> SourceChangedError:
    return SourceChangedError(
        f"{quote(file.path)} changed during the run: it had {file.size} bytes, {what}; run again when it is at rest"
    )


def _lengths(ref: TensorRef) -> Iterator[int]:
    return (extent.length for extent in ref.extents)


def _strided(flat: Bits, grid: Grid, bounds: Box | None) -> Bits:
    """The grid's elements, in the order of its loops: in the buffer (no bounds), or in a window with these bounds."""
    shape = [loop.count for loop in grid.loops]
    if bounds is None:
        base = flat[grid.offset :]
        strides = [loop.stride * flat.itemsize for loop in grid.loops]
    else:
        base = flat
        strides = [loop.step * flat.strides[loop.axis] for loop in grid.loops]
    return np.lib.stride_tricks.as_strided(base, shape, strides)


def _is_box(grid: Grid) -> bool:
    """Whether the grid is all of its bounds, each axis one loop: the axes may lie in any order in the buffer."""
    axes = {loop.axis for loop in grid.loops}
    return len(axes) == len(grid.loops) and all(loop.step == 1 for loop in grid.loops)


def _as_box(flat: Bits, grid: Grid) -> Bits:
    """The places in the buffer of a grid that is a box, with the shape and the axes of the box."""
    strides = [0] * len(grid.start)
    for loop in grid.loops:
        strides[loop.axis] = loop.stride * flat.itemsize
    return np.lib.stride_tricks.as_strided(flat[grid.offset :], box_shape(grid.bounds()), strides)


def _in_order(grid: Grid, shape: tuple[int, ...]) -> bool:
    """Whether the grid puts the elements of a dense box of `shape` in row-major order."""
    return all(loop.step == 1 and loop.stride == math.prod(shape[loop.axis + 1 :]) for loop in grid.loops)


def read_box(reader: Reader, view: View, box: Box, spare: Region) -> Bits:
    """A box of a view in row-major order, moved into `spare` where it does not lie so on disk."""
    data = reader.as_stored(view, box, view.dtype)
    if data is None:
        data = spare.array(math.prod(box_shape(box)), bits(view.dtype))
        reader.fill(view, box, data, view.dtype)
    return data
