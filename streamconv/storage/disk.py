"""Every call on files: the one place that a test replaces to make storage fail.

`PRIMITIVES` make one system call each; the other functions, and those in `whole_files`, are made of them. An `OSError`
passes through unchanged: the caller knows what the file is for, and turns it into a message (`errors.reading`,
`errors.storing`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from contextlib import suppress
from stat import S_ISDIR, S_ISLNK, S_ISREG

from ..paths import PathLike

#: What goes past the page cache begins and ends at multiples of this at least, in the file and in memory: the blocks of
#: nearly every disk, and the least that the memory of any may have to be aligned to.
ALIGNMENT = 4096

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_NO_LOCKS = (errno.ENOLCK, *_NOT_OFFERED)

#: The functions that make one system call each: what fault injection replaces.
PRIMITIVES = (
    *("open_file", "close", "read", "read_into", "read_cached", "advise_random", "write", "truncate"),
    *("sync", "sync_data", "drop_cache", "fstat", "stat", "listdir", "make_directory", "remove_directory", "remove"),
    *("rename", "exchange", "lock", "free_bytes", "seek"),
)

# -- primitives --------------------------------------------------------------------------------------------------------


def open_file(path: PathLike, flags: int, mode: int = 0o666) -> int:
    """Open the file and return its descriptor. A file created here gets `mode & ~umask`."""
    return os.open(path, flags | os.O_CLOEXEC, mode)


def close(descriptor: int) -> None:
    """Close the descriptor."""
    os.close(descriptor)


def read(descriptor: int, length: int, offset: int) -> bytes:
    """Read up to `length` bytes at `offset`. The kernel may return fewer, not only at the end of the file."""
    return os.pread(descriptor, length, offset)


def read_into(descriptor: int, target: memoryview, offset: int) -> int:
    """Read into `target`; return the number of bytes read."""
    return os.preadv(descriptor, [target], offset)


def read_cached(descriptor: int, target: memoryview, offset: int) -> int:
    """Read into `target` only what the page cache holds; return the number of bytes read.

    Raises:
        BlockingIOError: the page cache holds none of it, or this Python cannot ask: one built against glibc older
            than 2.26 (conda-forge's, uv's) lacks both the flag and the call that takes it.
    """
    nowait = getattr(os, "RWF_NOWAIT", None)
    if nowait is None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return os.preadv(descriptor, [target], offset, nowait)


def advise_random(descriptor: int) -> None:
    """Turn off read-ahead for the file."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


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
    os.fdatasync(descriptor)


def drop_cache(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Drop clean, unmapped pages in a range from the page cache; without a range, of the whole file."""
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def fstat(descriptor: int) -> os.stat_result:
    """Return the status of an open file."""
    return os.fstat(descriptor)


def stat(path: PathLike, follow: bool = True) -> os.stat_result:
    """Return the status of a path; of a link's target, or with `follow=False` of the link itself."""
    return os.stat(path, follow_symlinks=follow)  # noqa: PTH116


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
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_OFFERED:
        return False
    raise OSError(number, os.strerror(number), os.fspath(other))


def lock(descriptor: int) -> bool | None:
    """Try to lock a file until it is closed; return whether that worked, `None` where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def free_bytes(directory: PathLike) -> int:
    """Return the bytes free on the directory's file system."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


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
    """Return whether a file system is mounted at the path."""
    return os.path.ismount(path)


def device_and_inode(path: PathLike) -> tuple[int, int]:
    """Return device and inode, which all names of one file share."""
    found = stat(path)
    return found.st_dev, found.st_ino


def resolve(path: PathLike) -> str:
    """Return the absolute path with links followed, as far as it exists."""
    return os.path.realpath(path)


def read_up_to(descriptor: int, length: int, offset: int) -> bytes:
    """Read `length` bytes at `offset`; return fewer only at the end of the file."""
    pieces = []
    while length and (piece := read(descriptor, length, offset)):
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    done = 0
    while done < len(data):
        done += write(descriptor, data[done:], offset + done)


def next_hole(descriptor: int, offset: int, end: int) -> tuple[int, int] | None:
    """Return begin and end of the first hole in a range of a file, `None` without one or where nobody knows."""
    try:
        begin = seek(descriptor, offset, os.SEEK_HOLE)
    except OSError:
        return None
    if begin >= end:
        return None
    try:
        return begin, min(end, seek(descriptor, begin, os.SEEK_DATA))
    except OSError:
        return begin, end


def open_direct(descriptor: int, flags: int) -> int | None:
    """Open a second descriptor of an open file with O_DIRECT; return `None` where the kernel refuses."""
    with suppress(OSError, AttributeError):
        return open_file(f"/proc/self/fd/{descriptor}", flags | os.O_DIRECT)
    return None


def read_blocks(direct: int, target: memoryview, offset: int, unit: int) -> int:
    """Read past the page cache; `target` and `offset` are multiples of `unit`.

    Returns:
        The number of bytes read: fewer at the end of the file, or when the kernel refuses O_DIRECT; the error
        resurfaces when the caller reads the rest through the page cache.
    """
    done = 0
    with suppress(OSError):
        while done < len(target) and done % unit == 0:
            count = read_into(direct, target[done:], offset + done)
            if not count:
                break
            done += count
    return done


def write_blocks(cached: int, direct: int, data: memoryview, offset: int, unit: int) -> None:
    """Write past the page cache, and through it what the kernel refuses; all are multiples of `unit`."""
    done = 0
    try:
        while done < len(data) and done % unit == 0:
            done += write(direct, data[done:], offset + done)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
    write_all(cached, data[done:], offset + done)


def sync_directory(path: PathLike) -> None:
    """Make the entries of a directory durable, where the file system can."""
    descriptor = open_file(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
    finally:
        close_quietly(descriptor)
