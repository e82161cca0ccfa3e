"""The open files of a result that is compared: a few at a time, for it may have more than a process may open."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from ..errors import reading
from ..storage import disk, limits, whole_files

_MOST = 32
# Of the files that the process may have open; the source's readers have shares of their own.
_SHARE = 16
_TOO_MANY = (errno.EMFILE, errno.ENFILE)


class OpenResults:
    """Reads files, and keeps those open that were read last. Threads may share it; every method may raise `OSError`."""

    def __init__(self) -> None:
        self._most = min(_MOST, max(1, (limits.open_files() or _MOST * _SHARE) // _SHARE))
        self._lock = threading.Lock()
        # Whoever reads takes a descriptor out, so that nobody closes it in the meantime.
        self._idle: dict[Path, int] = {}

    def size(self, path: Path) -> int:
        """Return a file's size in bytes."""
        descriptor = self._taken(path)
        try:
            return disk.fstat(descriptor).st_size
        finally:
            self._give_back(path, descriptor)

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """Read; return fewer bytes only at the end of the file."""
        descriptor = self._taken(path)
        try:
            return whole_files.read_up_to(descriptor, length, offset)
        finally:
            self._give_back(path, descriptor)

    def close(self) -> None:
        """Close all files, and drop them from the page cache."""
        while self._close_one():
            pass

    def _taken(self, path: Path) -> int:
        with self._lock:
            found = self._idle.pop(path, None)
        while found is None:
            try:
                found = disk.open_file(path, os.O_RDONLY)
            except OSError as error:
                if error.errno not in _TOO_MANY or not self._close_one():
                    raise
        return found

    def _give_back(self, path: Path, descriptor: int) -> None:
        with self._lock:
            other = self._idle.pop(path, None)
            self._idle[path] = descriptor
            is_full = len(self._idle) > self._most
        if other is not None:
            disk.close_quietly(other)
        if is_full:
            self._close_one()

    def _close_one(self) -> bool:
        """Close the file that was not read for the longest time, if any is open."""
        with self._lock:
            descriptor = self._idle.pop(next(iter(self._idle)), None) if self._idle else None
        if descriptor is None:
            return False
        disk.try_drop_cache(descriptor)
        disk.close_quietly(descriptor)
        return True


def are_same_file(one: Path, other: Path) -> bool:
    """Return whether two names are one file; not where one of them is missing.

    Raises:
        SourceError: the system cannot tell.
    """
    with reading(one, "cannot stat"):
        return bool(disk.mode(one) and disk.mode(other)) and disk.device_and_inode(one) == disk.device_and_inode(other)
