"""Links: ranks that hold the same share one file, by a name each."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import storing
from ..storage import disk, whole_files
from ..tensors.refs import OutputFile
from .paths import ResultPaths


def make_links(files: Iterable[OutputFile], paths: ResultPaths) -> None:
    """Give complete and durable files their further names; copy them where the file system has no hard links.

    Args:
        files: the files.
        paths: where they lie while they are built.

    Raises:
        StorageError: the file system refuses.
    """
    folders = set()
    for file in files:
        for name in file.links:
            place = paths.file(name)
            with storing(place):
                whole_files.make_directories(paths.path, Path(name).parent)
                _link(paths.file(file.name), place)
            folders.add(place.parent)
    for folder in folders:
        with storing(folder):
            disk.sync_directory(folder)


def _link(path: Path, name: Path) -> None:
    if disk.hard_link(path, name):
        return
    descriptor = disk.open_file(path, os.O_RDONLY)
    try:
        whole_files.copy_synced(descriptor, name)
    finally:
        disk.close_quietly(descriptor)
