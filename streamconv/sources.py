"""Reading: windows of source tensors, mapped where files are in memory anyway, read into counted buffers elsewhere.

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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import disk, kernels
from .dtypes import BF16, F8_E4M3, DType
from .errors import SourceChangedError, UsageError, quote, reading, source_error
from .grids import Box, Grid, box_shape, flat_index, runs
from .tensors import SourceFile, TensorRef, overlaps
from .views import Leaf, Scaled, Stored, View, Zeros

Bits = NDArray[np.unsignedinteger[Any]]
BitType = np.dtype[np.unsignedinteger[Any]]

_IN_MEMORY = ("tmpfs", "ramfs")
_IO = ("auto", "map", "read")
_MOUNTS = 4 << 20
_OPEN_FILES = 8
_FIRST = 64 << 10
_WORTH_DROPPING = 64 << 10
_FP8_AND_BF16 = 3  # bytes an element: what is read, and what it becomes beside it
_BITS = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


def bits(dtype: DType) -> BitType:
    """The unsigned integer that holds an element's bits."""
    return _BITS[dtype.itemsize]


class Region:
    """Anonymous memory of a fixed size, used again and again; resident only where it was touched."""

    def __init__(self, size: int) -> None:
        # Private: shared anonymous pages would stay allocated after MADV_DONTNEED, only not count as ours any more.
        self._map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._used = False

    def array(self, count: int, dtype: BitType, offset: int = 0) -> Bits:
        """`count` elements from byte `offset` of it, as an array."""
        self._used = True
        return np.frombuffer(self._map, dtype, count, offset)

    def release(self) -> None:
        """Give its pages back."""
        if self._used:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._used = False


class Reader:
    """Reads boxes of tensors, one window at a time.

    Args:
        region: bytes of a window at the most.
        mapped: map windows of files; otherwise read them.
        drops: drop what was read from the page cache, for nobody comes back to it, and others need the room.
    """

    def __init__(self, region: int, mapped: bool, drops: bool = False) -> None:
        self.region = region
        self.mapped = mapped
        self.drops = drops
        self.bytes_read = 0
        self._buffer = Region(region)
        self._files: dict[Path, int] = {}
        self._behind: list[tuple[int, int, int]] = []

    def close(self) -> None:
        """Close the files it holds open."""
        while self._files:
            self._close_one()

    def place(self, view: View, box: Box, target: Bits, dtype: DType) -> int:
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
            for grid in self.parts(piece.leaf, piece.grid):
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

    def contiguous(self, view: View, box: Box, dtype: DType) -> Bits | None:
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
        if run < math.prod(shape) or run * dtype.itemsize > self.region or not _in_order(piece.grid, shape):
            return None
        return self._window(piece.leaf, bounds).reshape(-1)

    def parts(self, leaf: Leaf, grid: Grid) -> Iterator[Grid]:
        """`grid`, halved until its bounds fit the region and are not mostly holes."""
        size = math.prod(box_shape(grid.bounds()))
        itemsize = leaf.dtype.itemsize
        if isinstance(leaf, Scaled):
            itemsize = F8_E4M3.itemsize if _is_box(grid) else _FP8_AND_BF16
        if (size * itemsize <= self.region and size <= 2 * grid.count) or grid.count == 1:
            yield grid
            return
        loop = max(grid.loops, key=lambda p: p.step * math.prod(leaf.shape[p.axis + 1 :]))
        half = loop.count // 2
        yield from self.parts(leaf, grid.part(loop, 0, half))
        yield from self.parts(leaf, grid.part(loop, half, loop.count))

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
        if self.mapped and not others and high - low <= min(self.region, 2 * size):
            self._buffer.release()
            data = self._map(ref.extents[number].file, ref.extents[number].offset + inside, high - low)
            strides = [math.prod(ref.shape[a + 1 :]) * itemsize for a in range(len(shape))]
            flat = np.frombuffer(data, np.uint8)
            return np.ndarray(shape, bits(ref.dtype), flat, 0, strides)
        return self._read_box(ref, box)

    def _map(self, file: SourceFile, offset: int, length: int) -> memoryview:
        descriptor = self._open(file)
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

    def _read_file(self, file: SourceFile, offset: int, target: memoryview) -> None:
        descriptor, done = self._open(file), 0
        while done < len(target):
            try:
                count = disk.read_into(descriptor, target[done:], offset + done)
            except OSError as error:
                raise source_error(error, f"cannot read byte {offset + done} of", file.path) from error
            if count == 0:
                raise _changed(file, f"it ends at byte {offset + done}")
            done += count
        self._note_read(descriptor, offset, done)

    def _dequantised(self, leaf: Scaled, box: Box) -> Bits:
        """A box of an FP8 matrix times its scales, as BF16; it lies behind the weights in the buffer."""
        weight, scale = self._quantised(leaf, box)
        behind = weight.size + weight.size % BF16.itemsize
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
            disk.drop(descriptor, offset, length)
        self._behind.clear()

    def _close_one(self) -> None:
        """Close the file that was opened first, and drop what is left of it in the cache: the pages windows share."""
        self._behind.clear()
        descriptor = self._files.pop(next(iter(self._files)))
        if self.drops:
            disk.drop(descriptor)
        disk.release(descriptor)

    def _open(self, file: SourceFile) -> int:
        """The file's descriptor, after a look whether the file is as long as it was: less, mapped, would be fatal."""
        descriptor = self._files.get(file.path)
        try:
            if descriptor is None:
                if len(self._files) >= _OPEN_FILES:
                    self._close_one()
                descriptor = self._files[file.path] = disk.open_file(file.path, os.O_RDONLY)
            found = disk.status(descriptor)
        except OSError as error:
            raise source_error(error, "cannot open", file.path) from error
        _check_unchanged(file, found)
        return descriptor


def check_unchanged(files: Iterable[SourceFile]) -> None:
    """Look once more whether the files are what they were.

    Raises:
        SourceChangedError: one was written to.
        SourceError: one is gone.
    """
    for file in files:
        with reading(file.path, "cannot look at"):
            _check_unchanged(file, disk.look(file.path))


def _check_unchanged(file: SourceFile, found: os.stat_result) -> None:
    if found.st_size != file.size:
        raise _changed(file, f"it has {found.st_size} bytes now")
    if file.modified not in (None, found.st_mtime_ns):
        raise _changed(file, "and was written to since")


def alike(one: TensorRef, other: TensorRef) -> bool:
    """Whether two tensors have shape, dtype and their first 64 KiB in common.

    Raises:
        SourceError: a file is not as it was, or cannot be read.
    """
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    count = min(one.nbytes, _FIRST)
    with closing(Reader(count or 1, mapped=False)) as reader:
        return reader.first(one, count) == reader.first(other, count)


def check_io(io: str) -> None:
    """Refuse what is no way to read.

    Raises:
        UsageError: not one of `auto`, `map`, `read`.
    """
    if io not in _IO:
        raise UsageError(f"--io {quote(io)}: not one of {', '.join(_IO)}")


def uses_mapping(io: str, files: tuple[SourceFile, ...]) -> bool:
    """Whether windows are mapped: as `--io` says; for `auto`, where the files are in memory anyway.

    Elsewhere large reads are faster, twice where the device reads little ahead, and a page fault that meets a lost
    network or a broken disk is not a signal but an error (figures: `docs/performance.md`).
    """
    if io != "auto":
        return io == "map"
    return any(_file_system(file.path) in _IN_MEMORY for file in files[:1])


def _file_system(path: Path) -> str:
    """The type of the file system that `path` lies on, from the mount table."""
    try:
        device = disk.look(path).st_dev
        lines = disk.read_file("/proc/self/mountinfo", _MOUNTS).decode(errors="replace").splitlines()
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return next((line.split(" - ")[1].split()[0] for line in lines if line.split()[2] == wanted), "")


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
