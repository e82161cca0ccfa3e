"""Every call on files: the one place that a test replaces to make storage fail.

`PRIMITIVES` make one system call each; the other functions, and those in `whole_files`, are made of them. An `OSError`
passes through unchanged: the caller knows what the file is for, and turns it into a message (`errors.reading`,
`errors.storing`).

What a build of Python lacks, because the C library that it was built against did, is like what a kernel lacks: all but
the most basic calls have something that is done in their place.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from stat import S_ISDIR, S_ISLNK, S_ISREG

from ..paths import PathLike
from . import libc

#: What goes past the page cache begins and ends at multiples of this at least, in the file and in memory: the blocks of
#: nearly every disk, and the least that the memory of any may have to be aligned to.
ALIGNMENT = 4096

#: Refuse a link in place of the file: `open_file`.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_ONLY_DIRECTORY = getattr(os, "O_DIRECTORY", 0)

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
#: What a kernel or a file system answers that cannot do what is asked.
NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_NO_EXCHANGE = (errno.EPERM, errno.EXDEV, errno.ENOTTY, *NOT_OFFERED)
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EXDEV, errno.EMLINK, *NOT_OFFERED)
_NO_LOCKS = (errno.ENOLCK, *NOT_OFFERED)

#: The functions that make one system call each: what fault injection replaces.
PRIMITIVES = (
    *("open_file", "close", "read", "read_into", "is_cached", "write", "truncate", "seek"),
    *("sync", "sync_data", "drop_cache", "fstat", "stat", "may_read", "may_write", "listdir"),
    *("make_directory", "remove_directory", "remove", "rename", "exchange", "hard_link", "lock", "free_bytes"),
    "memory_file",
)

# -- primitives --------------------------------------------------------------------------------------------------------


@contextmanager
def _if_offered(refusals: Sequence[int] = NOT_OFFERED) -> Iterator[None]:
    """Skip the block where the kernel, or this build of Python, cannot do what it asks for."""
    try:
        yield
    except (AttributeError, NotImplementedError):
        return
    except OSError as error:
        if error.errno not in refusals:
            raise


def open_file(path: PathLike, flags: int, mode: int = 0o666) -> int:
    """Open the file and return its descriptor, which no child inherits. A file created here gets `mode & ~umask`."""
    return os.open(path, flags, mode)


def close(descriptor: int) -> None:
    """Close the descriptor."""
    os.close(descriptor)


def read(descriptor: int, length: int, offset: int) -> bytes:
    """Read up to `length` bytes at `offset`. The kernel may return fewer, not only at the end of the file."""
    return os.pread(descriptor, length, offset)


def read_into(descriptor: int, target: memoryview, offset: int) -> int:
    """Read into `target`; return the number of bytes read."""
    with suppress(AttributeError, NotImplementedError):
        return os.preadv(descriptor, [target], offset)
    data = os.pread(descriptor, len(target), offset)
    target[: len(data)] = data
    return len(data)


def is_cached(descriptor: int, offset: int) -> bool:
    """Return whether the page cache holds the byte at `offset`, which is in the file. Nothing is read for the answer.

    Raises:
        OSError: it cannot be known, also because of whose file it is.
    """
    status, start = os.fstat(descriptor), offset - offset % mmap.ALLOCATIONGRANULARITY
    # Of a file that we neither own nor may write to, Linux (since 5.2) says that all of it is cached.
    if status.st_uid != os.geteuid() and not os.access(f"/proc/self/fd/{descriptor}", os.W_OK):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    length = min(mmap.PAGESIZE, status.st_size - start)
    # Never touched: a page fault that meets a broken disk is not an error but a signal.
    return length > 0 and libc.is_resident(mmap.mmap(descriptor, length, mmap.MAP_PRIVATE, offset=start))


def write(descriptor: int, data: memoryview, offset: int) -> int:
    """Write at `offset`; return the number of bytes written."""
    return os.pwrite(descriptor, data, offset)


def truncate(descriptor: int, size: int) -> None:
    """Set the file's size in bytes."""
    os.ftruncate(descriptor, size)


def sync(descriptor: int) -> None:
    """Make a file, or the entries of a directory, durable."""
    os.fsync(descriptor)


def sync_data(descriptor: int) -> None:
    """Make a file's data durable, and the metadata needed to read it."""
    with _if_offered():
        os.fdatasync(descriptor)
        return
    os.fsync(descriptor)


def drop_cache(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Drop clean, unmapped pages in a range from the page cache; without a range, of the whole file.

    A hint: where the kernel takes none, nothing is dropped.
    """
    with _if_offered():
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def fstat(descriptor: int) -> os.stat_result:
    """Return the status of an open file."""
    return os.fstat(descriptor)


def stat(path: PathLike, follow: bool = True) -> os.stat_result:
    """Return the status of a path; of a link's target, or with `follow=False` of the link itself."""
    return os.stat(path, follow_symlinks=follow)  # noqa: PTH116


def may_write(path: PathLike) -> bool:
    """Return whether the system would let this process write to a file, or change a directory's entries."""
    return os.access(path, os.W_OK)


def may_read(path: PathLike) -> bool:
    """Return whether the system would let this process read a file."""
    return os.access(path, os.R_OK)


def listdir(directory: PathLike) -> list[str]:
    """Return the names in a directory, sorted."""
    return sorted(os.listdir(directory))  # noqa: PTH208


def make_directory(path: PathLike) -> None:
    """Make a directory."""
    os.mkdir(path)  # noqa: PTH102


def remove_directory(path: PathLike) -> None:
    """Remove an empty directory."""
    os.rmdir(path)  # noqa: PTH106


def remove(path: PathLike) -> None:
    """Remove a file or a link."""
    os.unlink(path)  # noqa: PTH108


def rename(one: PathLike, other: PathLike) -> None:
    """Rename a file or directory, replacing what has that name."""
    os.replace(one, other)  # noqa: PTH105


def exchange(one: PathLike, other: PathLike) -> bool:
    """Swap two names in one step; return whether the file system can."""
    with _if_offered(_NO_EXCHANGE):
        libc.swap_names(os.fsencode(one), os.fsencode(other))
        return True
    return False


def hard_link(path: PathLike, name: PathLike) -> bool:
    """Give a file another name; return whether the file system can."""
    with _if_offered(_NO_LINKS):
        os.link(path, name)
        return True
    return False


def lock(descriptor: int, shared: bool = False) -> bool | None:
    """Try to lock a file until it is closed, alone or together with others that share the lock.

    Returns:
        Whether that worked; `None` where there are no locks.
    """
    try:
        with _if_offered(_NO_LOCKS):
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    return None


def memory_file() -> int:
    """Make a file in memory that no directory lists; return its descriptor.

    Raises:
        OSError: the system, or this build of Python, has no such files (ENOSYS).
    """
    with _if_offered():
        return os.memfd_create("streamconv")
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def free_bytes(directory: PathLike) -> int | None:
    """Return the bytes free on the directory's file system, `None` where it does not say."""
    with _if_offered():
        found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize
    return None


def seek(descriptor: int, offset: int, whence: int) -> int:
    """Move the file's position and return it; `os.SEEK_HOLE` and `os.SEEK_DATA` find holes.

    Raises:
        OSError: the file system does not tell, or there is nothing more to find (ENXIO).
    """
    return os.lseek(descriptor, offset, whence)


# -- made of them ------------------------------------------------------------------------------------------------------


def close_quietly(descriptor: int) -> None:
    """Close, ignoring errors: for files that were only read, or are synced already."""
    with suppress(OSError):
        close(descriptor)


def try_drop_cache(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Drop pages from the page cache, ignoring errors."""
    with suppress(OSError):
        drop_cache(descriptor, offset, length)


def mode(path: PathLike, follow: bool = True) -> int:
    """Return the mode of what a path leads to, 0 where nothing exists or could exist."""
    try:
        return stat(path, follow).st_mode
    except OSError as error:
        if error.errno in _ABSENT:
            return 0
        raise
    except ValueError:
        return 0


def exists(path: PathLike) -> bool:
    """Return whether the name is taken, if only by a dangling link."""
    return mode(path, follow=False) != 0


def is_file(path: PathLike) -> bool:
    """Return whether the path is a regular file, or a link to one."""
    return S_ISREG(mode(path))


def is_directory(path: PathLike) -> bool:
    """Return whether the path is a directory, or a link to one."""
    return S_ISDIR(mode(path))


def is_link(path: PathLike) -> bool:
    """Return whether the path is a symbolic link."""
    return S_ISLNK(mode(path, follow=False))


def is_mount(path: PathLike) -> bool:
    """Return whether another file system is mounted at the path; `mounts.is_mount` knows of the same one too."""
    return os.path.ismount(path)


def device_and_inode(path: PathLike) -> tuple[int, int]:
    """Return device and inode, which all names of one file share."""
    found = stat(path)
    return found.st_dev, found.st_ino


def resolve(path: PathLike) -> str:
    """Return the absolute path with links followed, as far as it exists."""
    return os.path.realpath(path)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    done = 0
    while done < len(data):
        done += write(descriptor, data[done:], offset + done)


def sync_directory(path: PathLike) -> None:
    """Make the entries of a directory durable, where the file system can."""
    descriptor = open_file(path, os.O_RDONLY | _ONLY_DIRECTORY)
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        close_quietly(descriptor)
