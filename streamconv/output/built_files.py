"""The files that hold tensors, where a result is built."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import storing
from ..storage import disk, whole_files
from ..storage.access import Access
from ..storage.device import ResultFile
from ..tensors.refs import OutputFile
from .journal import Journal
from .paths import ResultPaths


def make_files(paths: ResultPaths, files: Iterable[OutputFile], journal: Journal) -> None:
    """Make what is missing of the files where the result is built, and the place for the journals of their parts.

    Raises:
        StorageError: the file system refuses.
    """
    folders: set[Path] = set()
    for file in files:
        path = paths.partial_file(file.name)
        with storing(path, "cannot create"):
            made = ResultFile(path, Access.READ)
            try:
                made.set_size(file.size)
                made.sync()
            finally:
                made.close()
        folders.add(path.parent)
    for folder in sorted(folders):
        with storing(folder):
            disk.sync_directory(folder)
    with storing(paths.parts, "cannot create"):
        whole_files.make_directories(paths.parts.parent, paths.parts.name)
    journal.append([["parts"]])


def allocated(paths: ResultPaths, files: Sequence[OutputFile]) -> int:
    """Return the bytes on disk that the files take already.

    Raises:
        StorageError: the system cannot stat one.
    """
    with storing(paths.partial, "cannot stat"):
        every = [paths.partial_file(file.name) for file in files]
        return 512 * sum(disk.stat(path, follow=False).st_blocks for path in every if disk.exists(path))


def is_there(paths: ResultPaths, file: OutputFile) -> bool:
    """Return whether a file is there, and as long as it was made.

    Raises:
        StorageError: the system cannot stat it.
    """
    path = paths.partial_file(file.name)
    with storing(path, "cannot stat"):
        found = disk.stat(path, follow=False) if disk.exists(path) else None
    return found is not None and stat.S_ISREG(found.st_mode) and found.st_size == file.size


def drop_cache(paths: ResultPaths, files: Iterable[OutputFile]) -> None:
    """Drop files, which are synced, from the page cache.

    Raises:
        StorageError: one cannot be opened.
    """
    for file in files:
        drop_range(paths, file)


def drop_range(paths: ResultPaths, file: OutputFile, offset: int = 0, length: int = 0) -> None:
    """Drop a range of a synced file, or all of it, from the page cache.

    Raises:
        StorageError: it cannot be opened.
    """
    path = paths.partial_file(file.name)
    with storing(path, "cannot open"):
        descriptor = disk.open_file(path, os.O_RDONLY)
        disk.drop_cache(descriptor, offset, length)
        disk.close_quietly(descriptor)
