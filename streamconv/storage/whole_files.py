"""Whole small files, directory trees, and holes of files: made of the calls in `disk`, which a test can make fail."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR

from ..paths import PathLike
from ..units import CHUNK
from . import disk

#: What is in a file is replaced; a link in its place is refused, for it may lead to what is another's.
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | disk.NO_FOLLOW


def read_up_to(descriptor: int, length: int, offset: int) -> bytes:
    """Read `length` bytes at `offset`; return fewer only at the end of the file."""
    pieces = []
    while length and (piece := disk.read(descriptor, length, offset)):
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_file(path: PathLike, limit: int) -> bytes:
    """Return the first `limit` bytes of a small file."""
    descriptor = disk.open_file(path, os.O_RDONLY)
    try:
        return read_up_to(descriptor, limit, 0)
    finally:
        disk.close_quietly(descriptor)


def write_synced(path: PathLike, data: bytes) -> None:
    """Write a small file, durable when this returns."""
    descriptor = disk.open_file(path, _NEW)
    try:
        disk.write_all(descriptor, memoryview(data), 0)
        disk.sync(descriptor)
    finally:
        disk.close_quietly(descriptor)


def copy_synced(source: int, target: PathLike) -> None:
    """Copy the content of an open file, durable when this returns."""
    descriptor = disk.open_file(target, _NEW)
    try:
        at = 0
        while data := disk.read(source, CHUNK, at):
            disk.write_all(descriptor, memoryview(data), at)
            at += len(data)
        disk.sync(descriptor)
    finally:
        disk.close_quietly(descriptor)


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory, sorted; none where it is not there, or may not be listed."""
    with suppress(OSError):
        return disk.listdir(directory)
    return []


def make_directories(root: PathLike, inside: PathLike) -> None:
    """Make a subfolder of `root`, and those above it, unless they exist; the names are durable when this returns."""
    place = Path(root)
    for part in Path(inside).parts:
        place = place / part
        if not disk.exists(place):
            # Another process may have made it by now.
            with suppress(FileExistsError):
                disk.make_directory(place)
            disk.sync_directory(place.parent)


def remove_any(path: PathLike) -> None:
    """Remove a file, a link, or a directory and everything in it."""
    if S_ISDIR(disk.mode(path, follow=False)):
        remove_tree(path)
    else:
        disk.remove(path)


def remove_tree(path: PathLike) -> None:
    """Remove a directory and everything in it; links are removed, not followed."""
    for name in disk.listdir(path):
        remove_any(Path(path, name))
    disk.remove_directory(path)


def next_hole(descriptor: int, offset: int, end: int) -> tuple[int, int] | None:
    """Return begin and end of the first hole in a range of a file, `None` without one or where nobody knows."""
    try:
        begin = disk.seek(descriptor, offset, os.SEEK_HOLE)
    except (OSError, AttributeError):
        return None
    if begin >= end:
        return None
    try:
        return begin, min(end, disk.seek(descriptor, begin, os.SEEK_DATA))
    except OSError:
        return begin, end
