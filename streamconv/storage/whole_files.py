"""Whole small files and directory trees, handled by the calls in `disk`, so that a test can make them fail there."""

from __future__ import annotations

import os
from pathlib import Path
from stat import S_ISDIR

from ..paths import PathLike
from ..units import CHUNK
from . import disk


def read_file(path: PathLike, limit: int) -> bytes:
    """Return the first `limit` bytes of a small file."""
    descriptor = disk.open_file(path, os.O_RDONLY)
    try:
        return disk.read_up_to(descriptor, limit, 0)
    finally:
        disk.close_quietly(descriptor)


def write_synced(path: PathLike, data: bytes) -> None:
    """Write a small file, durable when this returns."""
    descriptor = disk.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        disk.write_all(descriptor, memoryview(data), 0)
        disk.sync(descriptor)
    finally:
        disk.close_quietly(descriptor)


def copy_synced(source: PathLike, target: PathLike) -> None:
    """Copy a file's content, durable when this returns."""
    read_from = disk.open_file(source, os.O_RDONLY)
    try:
        descriptor = disk.open_file(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            at = 0
            while data := disk.read(read_from, CHUNK, at):
                disk.write_all(descriptor, memoryview(data), at)
                at += len(data)
            disk.sync(descriptor)
        finally:
            disk.close_quietly(descriptor)
    finally:
        disk.close_quietly(read_from)


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
