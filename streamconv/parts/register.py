"""Which processes share a conversion, and which of them have ended: a small file for each, next to the parts' journals.

DEST.partial.parts/share-3-of-16    `at work`, written again for each part; at the end `ended`
DEST.partial.parts/join             who puts the result together, where there are no locks to tell
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..errors import storing
from ..output.lock import ENDED, SHARE, SILENCE, is_at_work
from ..storage import disk, whole_files
from .share import Share

_AT_WORK = b"at work"
_JOIN = "join"


def note(folder: Path, mine: Share, has_ended: bool) -> None:
    """Note that a process is at work on its share, or that it has converted all of it.

    Raises:
        StorageError: the file system refuses.
    """
    path = folder / _name(mine.number, mine.of)
    with storing(path):
        whole_files.write_synced(path, ENDED if has_ended else _AT_WORK)
        disk.sync_directory(folder)


def missing(folder: Path, of: int) -> list[int]:
    """Return the numbers of the shares that have not ended, of so many.

    Raises:
        StorageError: the file system refuses.
    """
    with storing(folder, "cannot read"):
        there = set(disk.listdir(folder)) if disk.is_directory(folder) else set()
        return [n for n in range(1, of + 1) if _name(n, of) not in there or is_at_work(folder / _name(n, of))]


def _name(number: int, of: int) -> str:
    return f"{SHARE}{number}-of-{of}"


def take_join(folder: Path) -> bool:
    """Return whether this process is to put the result together, where there are no locks: the first that asks.

    Raises:
        StorageError: the file system refuses.
    """
    path = folder / _JOIN
    with storing(path, "cannot create"):
        if disk.exists(path) and time.time() - disk.stat(path).st_mtime >= SILENCE:
            disk.remove(path)
        try:
            disk.close_quietly(disk.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | disk.NO_FOLLOW))
        except (FileExistsError, FileNotFoundError):
            return False
    return True


def leave_join(folder: Path) -> None:
    """Let another process put the result together.

    Raises:
        StorageError: the file system refuses.
    """
    path = folder / _JOIN
    with storing(path, "cannot remove"):
        if disk.exists(path):
            disk.remove(path)
