"""The trial: what a run will ask of the place where its result goes, done there in small before anything is written.

Some mounts cannot do all of it (object stores, old FUSE file systems), and hours may lie between a run's first byte and
the rename at its end. What is tried lies next to the result, under names that are nobody else's: a run that was killed
in its trial leaves them, and the next one removes them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import StorageError, storage_error
from ..storage import disk, whole_files
from ..text import quote
from .paths import ResultPaths

#: Errors that say nothing about what the file system can do.
_OF_THE_MOMENT = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EMFILE, errno.ENFILE),
    *(errno.ENOMEM, errno.ENAMETOOLONG, errno.EINTR, errno.EAGAIN, errno.ESTALE),
)


def try_place(paths: ResultPaths) -> None:
    """Create, write and sync a small result next to the real one, give it a name, replace one if that will be done.

    Raises:
        StorageError: the place cannot do all of it; the message says what.
    """
    try:
        _try_place(paths, "file" if paths.is_file else "directory")
    except BaseException:
        with suppress(OSError):
            remove_trial(paths)
        raise


def _try_place(paths: ResultPaths, kind: str) -> None:
    with _trying(paths, f"remove a {kind} in"):
        remove_trial(paths)
    _build(paths)
    with _trying(paths, f"rename a {kind} in"):
        disk.rename(paths.trial, paths.trial_target)
    if disk.exists(paths.path):
        with _trying(paths, f"replace a {kind} by a rename in"):
            _replace(paths)
    with _trying(paths, f"remove a {kind} in"):
        remove_trial(paths)


def offers_links(paths: ResultPaths) -> bool:
    """Return whether the place of a directory has hard links from one folder to another.

    Raises:
        OSError: the file system refuses something else.
    """
    remove_trial(paths)
    disk.make_directory(paths.trial)
    file = paths.trial / "file"
    disk.close_quietly(disk.open_file(file, os.O_RDWR | os.O_CREAT | disk.NO_FOLLOW))
    found = disk.hard_link(file, paths.trial_target)
    remove_trial(paths)
    return found


def remove_trial(paths: ResultPaths) -> None:
    """Remove what a trial left."""
    for path in (paths.trial, paths.trial_target):
        if disk.exists(path):
            whole_files.remove_any(path)


def _build(paths: ResultPaths) -> None:
    file = paths.trial
    if not paths.is_file:
        with _trying(paths, "create a directory in"):
            disk.make_directory(paths.trial)
        file = paths.trial / "file"
    with _trying(paths, "create a file in"):
        descriptor = disk.open_file(file, os.O_RDWR | os.O_CREAT | disk.NO_FOLLOW)
    try:
        with _trying(paths, "set the size of a file in"):
            disk.truncate(descriptor, 2 * disk.ALIGNMENT)
        with _trying(paths, "write into the middle of a file in"):
            disk.write_all(descriptor, memoryview(b"trial"), disk.ALIGNMENT)
        with _trying(paths, "make a file durable in"):
            disk.sync(descriptor)
    finally:
        disk.close_quietly(descriptor)


def _replace(paths: ResultPaths) -> None:
    if paths.is_file:
        disk.close_quietly(disk.open_file(paths.trial, os.O_RDWR | os.O_CREAT | disk.NO_FOLLOW))
        disk.rename(paths.trial, paths.trial_target)
        return
    disk.make_directory(paths.trial)
    if disk.listdir(paths.path):
        # Where names cannot be swapped, two renames do.
        disk.exchange(paths.trial, paths.trial_target)
    else:
        disk.rename(paths.trial_target, paths.trial)


@contextmanager
def _trying(paths: ResultPaths, what: str) -> Iterator[None]:
    """Say of an error in the block what the place cannot do, and that nothing is lost."""
    folder = paths.path.parent
    try:
        yield
    except OSError as error:
        if error.errno in _OF_THE_MOMENT:
            raise storage_error(error, f"cannot {what}", folder) from error
        raise StorageError(
            f"cannot {what} {quote(folder)}, which every result needs: {error.strerror}; nothing was written",
            "choose a destination on another file system, such as a local disk, and copy the result from there",
        ) from error
