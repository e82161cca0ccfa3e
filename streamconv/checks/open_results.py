"""The open files of a result that is compared: a few at a time, for it may have more than a process may open."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..errors import reading
from ..storage import access, disk, limits
from ..storage.access import Access
from ..storage.device import InputFile
from ..storage.regions import Placement, Region
from ..tensors.extents import SourceFile

_MOST = 32
# Of the files that the process may have open; the source's readers have shares of their own.
_SHARE = 16
_TOO_MANY = (errno.EMFILE, errno.ENFILE)


def access_to(io: str, paths: Iterable[Path]) -> Access:
    """Choose how a result's files are read; what is missing, or is no file, does not matter.

    Args:
        io: a word that `access.check_io` accepts.
        paths: the files.
    """
    found = []
    for path in paths:
        with suppress(OSError):
            if disk.is_file(path):
                found.append(SourceFile(path, disk.stat(path).st_size))
    return access.for_reading(io, found).access


class OpenResults:
    """Reads files, and keeps those open that were read last. Threads may share it; every method may raise `OSError`.

    Args:
        access: how long ranges are read.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._most = min(_MOST, max(1, (limits.open_files() or _MOST * _SHARE) // _SHARE))
        self._lock = threading.Lock()
        # Whoever reads takes a file out, so that nobody closes it in the meantime; the one used last is at the end.
        self._idle: list[tuple[Path, InputFile]] = []

    def size(self, path: Path) -> int:
        """Return a file's size in bytes."""
        file = self._taken(path)
        try:
            return file.status().st_size
        finally:
            self._give_back(path, file)

    def read(self, path: Path, offset: int, length: int, region: Region) -> memoryview:
        """Read into a region; return what was read, fewer bytes only at the end of the file."""
        file = self._taken(path)
        try:
            placement, done = Placement(0), 0
            if file.goes_direct(length, is_part=False):
                placement, done = file.read_direct(region, offset, length)
            found = region.memory(placement + length)[placement:]
            while done < length and (count := file.read(offset + done, found[done:])):
                done += count
            return found[:done]
        finally:
            self._give_back(path, file)

    def try_drop_cache(self, path: Path, offset: int, length: int) -> None:
        """Drop a range from the page cache, ignoring errors of that."""
        file = self._taken(path)
        try:
            file.try_drop_cache(offset, length)
        finally:
            self._give_back(path, file)

    def close(self) -> None:
        """Close all files, and drop them from the page cache."""
        while self._close_one():
            pass

    def _taken(self, path: Path) -> InputFile:
        with self._lock:
            for number in reversed(range(len(self._idle))):
                if self._idle[number][0] == path:
                    return self._idle.pop(number)[1]
        while True:
            try:
                return InputFile(path, self._access, os.O_NONBLOCK)
            except OSError as error:
                if error.errno not in _TOO_MANY or not self._close_one():
                    raise

    def _give_back(self, path: Path, file: InputFile) -> None:
        with self._lock:
            self._idle.append((path, file))
            is_full = len(self._idle) > self._most
        if is_full:
            self._close_one()

    def _close_one(self) -> bool:
        """Close the file that was not read for the longest time, if any is open."""
        with self._lock:
            if not self._idle:
                return False
            _, file = self._idle.pop(0)
        file.try_drop_cache()
        file.close()
        return True


def are_same_file(one: Path, other: Path) -> bool:
    """Return whether two names are one file; not where one of them is missing.

    Raises:
        SourceError: the system cannot tell.
    """
    with reading(one, "cannot stat"):
        return bool(disk.mode(one) and disk.mode(other)) and disk.device_and_inode(one) == disk.device_and_inode(other)
