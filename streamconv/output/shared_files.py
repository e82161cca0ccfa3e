"""The files of a result that several processes write: made by one, so that the others only ever open them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import storing
from ..storage import disk, whole_files
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
            made = ResultFile(path, direct=False)
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
