"""The destination: built under `DEST.partial`, synced, and there under its final name by one rename, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import fnmatch
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .config import COMPANIONS
from .errors import DestinationError, StorageError, UsageError, quote, storage_error
from .tensors import Catalog
from .units import format_size

MANIFEST = "streamconv.json"
_MARKER = ".streamconv"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100

_WEIGHTS = (".safetensors", ".ckpt", ".bin")

#: What a directory may hold beside weights and still be replaced by --overwrite: the files of a checkpoint.
_CHECKPOINT_ENDINGS = (
    *_WEIGHTS,
    ".json",
    ".model",
    ".txt",
    ".py",
    ".jinja",
    ".tiktoken",
    ".md",
)


class Destination:
    """A directory of files, or a single file (`.ckpt`, or torch's), to be written.

    Args:
        path: its final name.
        single: it is one file, with its manifest beside it.
    """

    def __init__(self, path: Path, single: bool) -> None:
        self.path = path if single else _nameable(path)
        self.single = single
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._lock: int | None = None

    def check(self, source: Catalog, overwrite: bool) -> None:
        """Refuse a destination that is the source, that holds it, or that is not ours to write.

        Raises:
            UsageError: it has no parent directory.
            DestinationError: it exists and may not be replaced.
            StorageError: it cannot be looked at.
        """
        try:
            self._check(source, overwrite)
        except OSError as error:
            raise storage_error(error, "cannot look at", error.filename or self.path) from error

    def _check(self, source: Catalog, overwrite: bool) -> None:
        if not self.path.parent.is_dir():
            raise UsageError(f"{quote(self.path.parent)} is not a directory: create it first")
        self._check_apart(source)
        if not os.path.lexists(self.path):
            return
        self._check_kind()
        if not self.single and not any(self.path.iterdir()):
            return
        if not overwrite:
            raise DestinationError(
                f"{quote(self.path)} exists; choose another destination, or replace it with --overwrite"
            )
        if not self.single:
            self._check_replaceable()

    def _check_kind(self) -> None:
        if self.single and not self.path.is_file():
            raise DestinationError(f"{quote(self.path)} exists and is not a regular file; choose another destination")
        if not self.single and not self.path.is_dir():
            raise DestinationError(f"{quote(self.path)} exists and is not a directory; choose another destination")
        if os.path.ismount(self.path):
            raise DestinationError(
                f"{quote(self.path)} is a mount point, which no rename can put in place: name a directory inside it"
            )

    def _check_apart(self, source: Catalog) -> None:
        """By inode: a name says nothing about what lies behind links and mounts."""
        inside = {_identity(p) for p in (self.path, *self.path.absolute().parents) if p.exists()}
        entries = self.path.iterdir() if self.path.is_dir() else ()
        held = {_identity(p) for p in (self.path, self.partial, *entries) if p.exists()}
        if source.path.is_dir() and _identity(source.path) in inside:
            raise DestinationError(
                f"{quote(self.path)} lies in the source's directory, which is never written to: "
                "choose another destination"
            )
        for file in source.files:
            # A source that is gone by now is the reader's to report.
            if file.path.exists() and _identity(file.path) in held:
                raise DestinationError(
                    f"{quote(self.path)} holds the source {quote(file.path.name)}: choose another destination"
                )

    def _check_replaceable(self) -> None:
        entries = sorted(self.path.iterdir())
        foreign = [p.name for p in entries if p.is_dir() or not _of_checkpoint(p.name)]
        if foreign or not any(p.name.endswith(_WEIGHTS) for p in entries):
            what = f"files that belong to no checkpoint ({quote(foreign[0])})" if foreign else "no weights"
            raise DestinationError(
                f"{quote(self.path)} holds {what}: --overwrite replaces only checkpoints; "
                "remove it yourself, or choose another destination"
            )

    def check_room(self, size: int) -> None:
        """Refuse what the file system has no room for.

        Raises:
            StorageError: fewer than `size` bytes are free.
        """
        stat = os.statvfs(self.path.parent)
        free = stat.f_bavail * stat.f_frsize
        if free < size:
            raise StorageError(
                f"{quote(self.path.parent)} has {format_size(free)} free, the output takes {format_size(size)}: "
                "make room, or choose another destination (nothing was written)"
            )

    @contextlib.contextmanager
    def building(self) -> Iterator[Path]:
        """The place to build in: `DEST.partial`, locked, empty at first, and removed if the run does not end well.

        Raises:
            DestinationError: another process is writing there, or the place holds what is not ours.
            StorageError: it cannot be made.
        """
        try:
            try:
                self._take()
            except OSError as error:
                raise storage_error(error, "cannot create", self.partial) from error
            yield self.partial
        except BaseException:
            self._remove()
            raise
        finally:
            self._release()

    def _take(self) -> None:
        self._check_partial()
        if not self.single:
            self.partial.mkdir(exist_ok=True)
        if not self._take_lock(os.O_CREAT):
            raise DestinationError(f"{quote(self.partial)} is being written by another process: wait for it to end")
        if self.single:
            os.ftruncate(self._lock or 0, 0)
        else:
            self._empty()

    def _take_lock(self, flags: int = 0) -> bool:
        """Lock the partial, unless another process holds it."""
        name = self.partial if self.single else self.partial / _MARKER
        self._lock = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o666)
        # The holder may have finished between open and lock: what is locked then is its result, under the final name.
        if _lock(self._lock) and name.exists() and os.path.samestat(os.fstat(self._lock), name.stat()):
            return True
        self._release()
        return False

    def _check_partial(self) -> None:
        if os.path.lexists(self.partial) and not self._is_ours():
            raise DestinationError(f"{quote(self.partial)} is in the way and was not made by streamconv: move it")

    def _is_ours(self) -> bool:
        """Whether a run may have left the partial behind."""
        if self.partial.is_symlink() or self.single:
            return self.partial.is_file() and not self.partial.is_symlink()
        return self.partial.is_dir() and ((self.partial / _MARKER).is_file() or not any(self.partial.iterdir()))

    def _empty(self) -> None:
        for entry in self.partial.iterdir():
            if entry.name != _MARKER:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            if self._lock is not None or self._take_left():
                self._unlink()

    def _take_left(self) -> bool:
        """Lock what a signal kept from being locked, unless it is foreign or held by another process."""
        if not self._is_ours():
            return False
        if not self.single and not (self.partial / _MARKER).exists():
            self.partial.rmdir()
            return False
        return self._take_lock()

    def _unlink(self) -> None:
        if self.single:
            self.partial.unlink(missing_ok=True)
            self._waiting.unlink(missing_ok=True)
        else:
            shutil.rmtree(self.partial)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def commit(self, manifest: bytes) -> None:
        """Give the built and synced files their final name, with their manifest.

        Raises:
            StorageError: the file system refuses.
        """
        try:
            self._commit_file(manifest) if self.single else self._commit_directory(manifest)
            sync_directory(self.path.parent)
        except OSError as error:
            raise storage_error(error, "cannot put in place", self.path) from error

    def _commit_file(self, manifest: bytes) -> None:
        """The old manifest goes first, the new one comes last: never does one stand beside another's checkpoint."""
        beside = self.path.with_name(f"{self.path.name}.{MANIFEST}")
        write_synced(self._waiting, manifest)
        beside.unlink(missing_ok=True)
        self.partial.rename(self.path)
        self._waiting.rename(beside)

    @property
    def _waiting(self) -> Path:
        """The manifest of a single file, until the file is in place."""
        return self.path.with_name(f"{self.path.name}.{MANIFEST}.partial")

    def _commit_directory(self, manifest: bytes) -> None:
        write_synced(self.partial / MANIFEST, manifest)
        (self.partial / _MARKER).unlink()
        sync_directory(self.partial)
        if not self.path.is_dir() or not any(self.path.iterdir()):
            self.partial.rename(self.path)
            return
        _exchange(self.partial, self.path)
        shutil.rmtree(self.partial)


def _lock(descriptor: int) -> bool:
    """Lock a file for this process alone; on a file system without locks, go on without."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise
    return True


def write_synced(path: Path, data: bytes) -> None:
    """Write a small file whole, durable when this returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_synced(source: Path, target: Path) -> None:
    """Copy a file's content, durable when this returns."""
    with source.open("rb") as read, target.open("wb") as file:
        shutil.copyfileobj(read, file)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step; where the file system cannot, in two, with the old one aside in between."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2") and libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    aside = other.with_name(other.name + ".old")
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def _nameable(path: Path) -> Path:
    """The directory by a name that a rename can put in place: of a link, and of `.`, what they lead to.

    Raises:
        UsageError: it is the root.
    """
    if path.name in ("", "..") or os.path.islink(path):  # noqa: PTH114 - is_symlink raises for long names
        path = Path(os.path.realpath(path))
    if not path.name:
        raise UsageError(f"{quote(path)} is the root of the file system: name a directory in it")
    return path


def _of_checkpoint(name: str) -> bool:
    return name.endswith(_CHECKPOINT_ENDINGS) or any(fnmatch.fnmatchcase(name, pattern) for pattern in COMPANIONS)


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino
