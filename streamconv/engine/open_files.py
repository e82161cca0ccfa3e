"""The open files of a source: a few at a time, each checked before it is read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import SourceChangedError, reading, source_error
from ..storage import disk, limits, mounts
from ..storage.access import Access
from ..storage.device import InputFile
from ..storage.regions import Placement, Region
from ..tensors.extents import SourceFile
from ..text import quote

_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_WORTH_DROPPING = 64 << 10


class OpenFiles:
    """Reads ranges of files, and keeps the files open that were opened last.

    Args:
        access: how ranges are read.
        drops: drop what was read from the page cache: nobody reads it again, and others need the room.

    Attributes:
        bytes_read: so far.
    """

    def __init__(self, access: Access, drops: bool = False) -> None:
        self.access = access
        self.bytes_read = 0
        self._drops = drops
        self._most = limits.source_files()
        self._files: dict[Path, InputFile] = {}
        self._behind: list[tuple[InputFile, int, int]] = []

    def close(self) -> None:
        """Close all files."""
        while self._files:
            self._close_one()

    def read(self, file: SourceFile, offset: int, target: memoryview) -> None:
        """Read a range through the page cache.

        Raises:
            SourceError: the file was changed, or cannot be read.
        """
        found = self._opened(file)
        self._read_rest(found, file, offset, target)
        self._note_read(found, offset, len(target))

    def read_runs(self, file: SourceFile, offsets: Iterable[int], size: int, target: memoryview) -> None:
        """Read ranges of `size` bytes one behind the other, as `read` does each; the file is checked once.

        Raises:
            SourceError: the file was changed, or cannot be read.
        """
        found = self._opened(file)
        for number, offset in enumerate(offsets):
            self._read_rest(found, file, offset, target[number * size : (number + 1) * size])
            self._note_read(found, offset, size)

    def read_into(self, region: Region, file: SourceFile, offset: int, length: int, is_part: bool) -> Placement:
        """Read a range into a region, past the page cache where that pays; return where in the region it begins.

        Args:
            region: where the range goes.
            file: the file.
            offset, length: the range.
            is_part: it is part of a tensor.

        Raises:
            SourceError: the file was changed, or cannot be read.
        """
        found = self._opened(file)
        placement, done = Placement(0), 0
        if found.goes_direct(length, is_part):
            placement, done = found.read_direct(region, offset, length)
        rest = region.memory(placement + length)[placement + done :]
        self._read_rest(found, file, offset + done, rest)
        self._note_read(found, offset, length)
        return placement

    def drop_behind(self) -> None:
        """Drop what was read so far from the page cache."""
        for file, offset, length in self._behind:
            file.try_drop_cache(offset, length)
        self._behind.clear()

    @staticmethod
    def _read_rest(found: InputFile, file: SourceFile, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = found.read(offset + done, target[done:])
            except OSError as error:
                raise source_error(error, f"cannot read byte {offset + done} of", file.path) from error
            if count == 0:
                raise _changed(file, f"it had {file.size} bytes, now it ends at byte {offset + done}")
            done += count

    def _note_read(self, found: InputFile, offset: int, length: int) -> None:
        self.bytes_read += length
        if self._drops and length >= _WORTH_DROPPING:
            self._behind.append((found, offset, length))

    def _opened(self, file: SourceFile) -> InputFile:
        """The file, open, after a check that it is unchanged."""
        try:
            found = self._files.get(file.path)
            if found is None:
                found = self._files[file.path] = self._open(file.path)
            status = found.status()
        except OSError as error:
            raise source_error(error, "cannot open", file.path) from error
        _check_unchanged(file, status)
        return found

    def _open(self, path: Path) -> InputFile:
        """Open a file, and close others for it."""
        while len(self._files) >= self._most:
            self._close_one()
        while True:
            try:
                return InputFile(path, self.access)
            except OSError as error:
                if error.errno not in _TOO_MANY or not self._files:
                    raise
                self._close_one()

    def _close_one(self) -> None:
        """Close the file that was opened first, and drop what is left of it in the cache: pages that windows share."""
        self._behind.clear()
        found = self._files.pop(next(iter(self._files)))
        if self._drops:
            found.try_drop_cache()
        found.close()


def check_unchanged(files: Iterable[SourceFile]) -> None:
    """Check that the files are as they were when their headers were read.

    Raises:
        SourceChangedError: one was modified.
        SourceError: one no longer exists.
    """
    for file in files:
        with reading(file.path, "cannot stat"):
            _check_unchanged(file, disk.stat(file.path))


def _check_unchanged(file: SourceFile, found: os.stat_result) -> None:
    if found.st_size != file.size:
        raise _changed(file, f"it had {file.size} bytes, now it has {found.st_size}")
    if file.modified not in (None, found.st_mtime_ns):
        raise _changed(file, "its modification time is different")
    # Not the time of its last change: a backup that links to the file, or a chmod, must not cost the work of hours.
    if file.inode not in (None, found.st_ino) and mounts.keeps_inodes(file.path):
        raise _changed(file, "it was replaced by another file of the same size and modification time")


def _changed(file: SourceFile, how: str) -> SourceChangedError:
    return SourceChangedError(
        f"{quote(file.path)} changed during the run: {how}",
        "run again once nothing writes to it",
    )
