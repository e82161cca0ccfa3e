"""Files that move long runs past the page cache, where the file system allows it, and all else through it.

The device moves whole blocks, in the file as in memory. What that asks of a buffer is a `Placement`, which nobody else
needs to understand: `Region.array` gives memory that lies so, and `lies_at` tells whether other memory does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..tensors.arrays import Bits
from . import access, disk, streams, whole_files
from .access import Access
from .regions import UNIT, Placement, Region, placement_of

#: Where the kernel says how large a device's blocks are: of a disk, and of the disk that a partition lies on.
_BLOCK_SIZES = ("/sys/dev/block/{}:{}/queue/logical_block_size", "/sys/dev/block/{}:{}/../queue/logical_block_size")
_LIMIT = 1 << 10


class _DirectFile:
    """A second descriptor of an open file, which goes past the page cache.

    Attributes:
        descriptor: the descriptor.
        unit: bytes of which every request is a multiple, and begins at one, in the file as in memory.
    """

    def __init__(self, descriptor: int, unit: int) -> None:
        self.descriptor = descriptor
        self.unit = unit

    @classmethod
    def open(cls, descriptor: int, flags: int) -> _DirectFile | None:
        """Open it; return `None` where the kernel refuses, or asks for larger blocks than a region is made for."""
        with suppress(OSError):
            unit = direct_unit(disk.fstat(descriptor).st_dev)
            if unit <= UNIT and (direct := open_direct(descriptor, flags)) is not None:
                return cls(direct, unit)
        return None


def direct_unit(device: int) -> int:
    """Return the unit of a device's requests past the page cache: its blocks, and at least `disk.ALIGNMENT` bytes.

    Args:
        device: its number, as in `os.stat_result.st_dev`.
    """
    for path in _BLOCK_SIZES:
        with suppress(OSError, ValueError):
            size = int(whole_files.read_file(path.format(os.major(device), os.minor(device)), _LIMIT))
            return max(disk.ALIGNMENT, size)
    return disk.ALIGNMENT


class InputFile:
    """A file open for reading. Every method may raise `OSError`.

    Args:
        path: where it lies.
        access: how it is read.
        flags: further flags to open it with.
    """

    def __init__(self, path: Path, access: Access, flags: int = 0) -> None:
        self._descriptor = disk.open_file(path, os.O_RDONLY | flags)
        self._direct = _DirectFile.open(self._descriptor, os.O_RDONLY) if access.is_direct else None
        self._access = access
        self._is_far = access is Access.FAR

    def close(self) -> None:
        """Close the file, ignoring errors."""
        disk.close_quietly(self._descriptor)
        if self._direct is not None:
            disk.close_quietly(self._direct.descriptor)

    def status(self) -> os.stat_result:
        """Return the file's status."""
        return disk.fstat(self._descriptor)

    def try_drop_cache(self, offset: int = 0, length: int = 0) -> None:
        """Drop a range, or the whole file, from the page cache, ignoring errors."""
        disk.try_drop_cache(self._descriptor, offset, length)

    def read(self, offset: int, target: memoryview) -> int:
        """Read through the page cache; return the number of bytes read, 0 at the end of the file."""
        if self._is_far:
            return streams.read_pieces(lambda at, piece: disk.read_into(self._descriptor, piece, at), offset, target)
        return disk.read_into(self._descriptor, target, offset)

    def goes_direct(self, length: int, is_part: bool) -> bool:
        """Return whether so many bytes are worth reading past the page cache.

        Args:
            length: bytes of the run.
            is_part: the run is part of a tensor, so that read-ahead would fetch what is not needed.
        """
        least = access.DIRECT_LEAST_OF_PART if is_part else access.DIRECT_LEAST
        return self._access.is_direct and length >= least

    def read_direct(self, region: Region, offset: int, length: int) -> tuple[Placement, int]:
        """Read whole blocks past the page cache into a region, as far as the kernel allows.

        Returns:
            Where the bytes begin in the region, and how many of them are read; the caller reads the rest.
        """
        placement = Placement(offset % UNIT)
        if self._direct is None:
            return placement, 0
        unit = self._direct.unit
        low, high = placement // unit * unit, -(-(placement + length) // unit) * unit
        done = self._read_blocks(self._direct, offset - placement + low, region.memory(high)[low:])
        return placement, min(max(low + done - placement, 0), length)

    def _read_blocks(self, direct: _DirectFile, offset: int, target: memoryview) -> int:
        if self._is_far:
            return streams.read_pieces(
                lambda at, piece: read_blocks(direct.descriptor, piece, at, direct.unit), offset, target
            )
        return read_blocks(direct.descriptor, target, offset, direct.unit)


class ResultFile:
    """A file open for writing and reading back. Every method may raise `OSError`.

    Args:
        path: where it lies.
        access: how it is written.
        create: create it where there is none.
    """

    def __init__(self, path: Path, access: Access, create: bool = True) -> None:
        self._path, self._access = path, access
        self._open: int | None = None
        self._direct: _DirectFile | None = None
        self._open_with(os.O_CREAT if create else 0)

    def _open_with(self, flag: int) -> None:
        self._open = disk.open_file(self._path, os.O_RDWR | flag | disk.NO_FOLLOW)
        self._direct = _DirectFile.open(self._open, os.O_WRONLY) if self._access.is_direct else None

    @property
    def is_open(self) -> bool:
        """Whether `close` was not called, or `reopen` after it."""
        return self._open is not None

    def reopen(self) -> None:
        """Open the file again after `close`."""
        self._open_with(0)

    @property
    def _descriptor(self) -> int:
        if self._open is None:
            raise ValueError(f"{self._path} is closed")
        return self._open

    def close(self) -> None:
        """Close the file, ignoring errors."""
        opened, direct = self._open, self._direct
        self._open = self._direct = None
        if opened is not None:
            disk.close_quietly(opened)
        if direct is not None:
            disk.close_quietly(direct.descriptor)

    def size(self) -> int:
        """Return the file's size."""
        return disk.fstat(self._descriptor).st_size

    def set_size(self, size: int) -> None:
        """Give the file this size, unless it has it."""
        if self.size() != size:
            disk.truncate(self._descriptor, size)

    def read(self, offset: int, length: int) -> bytes:
        """Read through the page cache; return fewer bytes only at the end of the file."""
        return whole_files.read_up_to(self._descriptor, length, offset)

    def write(self, offset: int, data: memoryview, cached: int = 0) -> None:
        """Write past the page cache what is long and placed as in the file, and the rest through it.

        Args:
            offset: where the bytes belong.
            data: the bytes.
            cached: how many of them, at the beginning, the page cache has to keep, because they will be read back.
        """
        self._write_cached(offset, data[:cached])
        self._write(offset + cached, data[cached:])

    def _write(self, offset: int, data: memoryview) -> None:
        direct = self._direct
        if direct is None or len(data) < access.DIRECT_LEAST or (placement_of(data) - offset) % direct.unit:
            self._write_cached(offset, data)
            return
        low = min(-offset % direct.unit, len(data))
        high = low + (len(data) - low) // direct.unit * direct.unit
        self._write_cached(offset, data[:low])
        self._put(partial(_write_direct, self._descriptor, direct), offset + low, data[low:high])
        self._write_cached(offset + high, data[high:])

    def _write_cached(self, offset: int, data: memoryview) -> None:
        self._put(lambda at, piece: disk.write_all(self._descriptor, piece, at), offset, data)

    def _put(self, write: Callable[[int, memoryview], None], offset: int, data: memoryview) -> None:
        if self._access is Access.FAR:
            streams.write_pieces(write, offset, data)
        else:
            write(offset, data)

    def sync_data(self) -> None:
        """Make what was written durable."""
        disk.sync_data(self._descriptor)

    def sync(self) -> None:
        """Make the file durable."""
        disk.sync(self._descriptor)

    def try_drop_cache(self, offset: int = 0, length: int = 0) -> None:
        """Drop a range, or the whole file, from the page cache, ignoring errors."""
        disk.try_drop_cache(self._descriptor, offset, length)


def placement_to_write(offset: int, length: int) -> Placement | None:
    """Return how bytes have to be placed for `ResultFile` to write them past the page cache.

    Args:
        offset: where they belong in the file.
        length: how many they are.

    Returns:
        `None` where it would not do that anyway.
    """
    return Placement(offset % UNIT) if length >= access.DIRECT_LEAST else None


def lies_at(data: Bits, placement: Placement | None) -> bool:
    """Return whether a buffer is placed so, for the blocks of nearly every disk; any is where there is no placement.

    A disk with larger blocks gets what does not lie so for them through the page cache.
    """
    return placement is None or (placement_of(data) - placement) % disk.ALIGNMENT == 0


def open_direct(descriptor: int, flags: int) -> int | None:
    """Open a second descriptor of an open file with O_DIRECT; return `None` where the kernel refuses."""
    with suppress(OSError, AttributeError):
        return disk.open_file(f"/proc/self/fd/{descriptor}", flags | os.O_DIRECT)
    return None


def read_blocks(direct: int, target: memoryview, offset: int, unit: int) -> int:
    """Read past the page cache; `target` and `offset` are multiples of `unit`.

    Returns:
        The number of bytes read: fewer at the end of the file, or when the kernel refuses O_DIRECT; the error
        resurfaces when the caller reads the rest through the page cache.
    """
    done = 0
    with suppress(OSError):
        while done < len(target) and done % unit == 0:
            count = disk.read_into(direct, target[done:], offset + done)
            if not count:
                break
            done += count
    return done


def _write_direct(cached: int, direct: _DirectFile, offset: int, data: memoryview) -> None:
    write_blocks(cached, direct.descriptor, data, offset, direct.unit)


def write_blocks(cached: int, direct: int, data: memoryview, offset: int, unit: int) -> None:
    """Write past the page cache, and through it what the kernel refuses; all are multiples of `unit`."""
    done = 0
    try:
        while done < len(data) and done % unit == 0:
            done += disk.write(direct, data[done:], offset + done)
    except OSError as error:
        if error.errno not in disk.NOT_OFFERED:
            raise
    disk.write_all(cached, data[done:], offset + done)
