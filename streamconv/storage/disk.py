"""Every operation on files goes through here: the one place that a test replaces to make storage fail.

The first half are primitives, one call of the system each; the second half is made of them. An `OSError` passes through
as it is: who knows what the file was for says so in words (`errors.reading`, `errors.storing`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

StrPath = str | os.PathLike[str]

#: What goes past the page cache begins and ends at multiples of this, in the file and in memory: enough for any disk.
ALIGNMENT = 4096

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_PIECE = 1 << 20

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_NO_LOCKS = (errno.ENOLCK, *_NOT_OFFERED)

# -- primitives --------------------------------------------------------------------------------------------------------


def open_file(path: StrPath, flags: int, mode: int = 0o666) -> int:
    """A descriptor of the file; what it becomes new has `mode` less the umask."""
    return os.open(path, flags | os.O_CLOEXEC, mode)


def close(descriptor: int) -> None:
    """Let go of it."""
    os.close(descriptor)


def read(descriptor: int, length: int, offset: int) -> bytes:
    """At most `length` bytes at `offset`; fewer at the end of the file, or for no reason at all."""
    return os.pread(descriptor, length, offset)


def read_into(descriptor: int, target: memoryview, offset: int) -> int:
    """Read into memory; how many bytes it became."""
    return os.preadv(descriptor, [target], offset)


def read_cached(descriptor: int, target: memoryview, offset: int) -> int:
    """Read what the page cache has; how many bytes it became.

    Raises:
        BlockingIOError: it has none of it, or this Python cannot ask: one that was built against a C library before
            glibc 2.26, as conda-forge's and uv's are, has neither the flag nor the call that takes it.
    """
    nowait = getattr(os, "RWF_NOWAIT", None)
    if nowait is None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return os.preadv(descriptor, [target], offset, nowait)


def expect_no_order(descriptor: int) -> None:
    """Have the system read nothing ahead."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def write(descriptor: int, data: memoryview, offset: int) -> int:
    """Write at `offset`; how many bytes it became."""
    return os.pwrite(descriptor, data, offset)


def truncate(descriptor: int, size: int) -> None:
    """Make the file `size` bytes long."""
    os.ftruncate(descriptor, size)


def map_file(descriptor: int, length: int, offset: int) -> mmap.mmap:
    """A read-only mapping; `offset` is a multiple of the allocation granularity.

    Raises:
        ValueError: the file ends before.
    """
    return mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset)


def sync(descriptor: int) -> None:
    """Make a file, or the names in a directory, durable."""
    os.fsync(descriptor)


def sync_data(descriptor: int) -> None:
    """Make the bytes of a file durable, and as much of the rest as reading them takes."""
    os.fdatasync(descriptor)


def forget(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Drop from the page cache what lies whole in a range (without one: all of the file), is on disk and not mapped."""
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def status(descriptor: int) -> os.stat_result:
    """What the system knows of an open file."""
    return os.fstat(descriptor)


def look(path: StrPath, follow: bool = True) -> os.stat_result:
    """What the system knows of a name; of a link what it leads to, or itself."""
    return os.stat(path, follow_symlinks=follow)  # noqa: PTH116


def names(directory: StrPath) -> list[str]:
    """The names in a directory, sorted."""
    return sorted(os.listdir(directory))  # noqa: PTH208


def make_directory(path: StrPath) -> None:
    """Make a directory."""
    os.mkdir(path)  # noqa: PTH102


def remove_directory(path: StrPath) -> None:
    """Remove an empty directory."""
    os.rmdir(path)  # noqa: PTH106


def remove(path: StrPath) -> None:
    """Remove a file or a link."""
    os.unlink(path)  # noqa: PTH108


def rename(one: StrPath, other: StrPath) -> None:
    """Give a file or directory another name, in place of what has it."""
    os.replace(one, other)  # noqa: PTH105


def exchange(one: StrPath, other: StrPath) -> bool:
    """Swap two names in one step; whether the file system can."""
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
    """Lock a file for this process alone, until it is closed: whether that worked; `None` where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def room(directory: StrPath) -> int:
    """Bytes that are free there."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


# -- made of them ------------------------------------------------------------------------------------------------------


def release(descriptor: int) -> None:
    """Let go of a file that was only read, or was synced: nothing that could be lost depends on how that ends."""
    with suppress(OSError):
        close(descriptor)


def drop(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Forget what nobody comes back to, if the system will: nothing depends on it but room for others."""
    with suppress(OSError):
        forget(descriptor, offset, length)


def mode(path: StrPath, follow: bool = True) -> int:
    """The mode of what a name leads to, 0 where there is nothing, nor could be."""
    try:
        return look(path, follow).st_mode
    except OSError as error:
        if error.errno in _ABSENT:
            return 0
        raise
    except ValueError:
        return 0


def exists(path: StrPath) -> bool:
    """Whether the name is taken, if only by a link that leads nowhere."""
    return mode(path, follow=False) != 0


def is_file(path: StrPath) -> bool:
    """Whether it is a regular file, or leads to one."""
    return stat.S_ISREG(mode(path))


def is_directory(path: StrPath) -> bool:
    """Whether it is a directory, or leads to one."""
    return stat.S_ISDIR(mode(path))


def is_link(path: StrPath) -> bool:
    """Whether it is a symbolic link."""
    return stat.S_ISLNK(mode(path, follow=False))


def identity(path: StrPath) -> tuple[int, int]:
    """What two names of the same file have in common: device and inode."""
    found = look(path)
    return found.st_dev, found.st_ino


def read_up_to(descriptor: int, length: int, offset: int) -> bytes:
    """`length` bytes at `offset`; fewer only where the file ends."""
    pieces = []
    while length and (piece := read(descriptor, length, offset)):
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of it."""
    done = 0
    while done < len(data):
        done += write(descriptor, data[done:], offset + done)


def are_cached(path: StrPath, offsets: Iterable[int]) -> list[bool]:
    """For each offset, whether the page cache has the byte there."""
    descriptor, byte = open_file(path, os.O_RDONLY), memoryview(bytearray(1))
    found = []
    try:
        expect_no_order(descriptor)
        for offset in offsets:
            try:
                found.append(read_cached(descriptor, byte, offset) == 1)
            except BlockingIOError:
                found.append(False)
    finally:
        release(descriptor)
    return found


def open_direct(descriptor: int, flags: int) -> int | None:
    """Another descriptor of an open file, for what goes past the page cache; `None` where there is none to be had."""
    with suppress(OSError, AttributeError):
        return open_file(f"/proc/self/fd/{descriptor}", flags | os.O_DIRECT)
    return None


def read_pages(direct: int, target: memoryview, offset: int) -> int:
    """Read past the page cache; target and offset are aligned.

    Returns:
        How many bytes could be read so: fewer where the file ends, or the system refuses. Why, who reads the next one
        through the page cache is told.
    """
    done = 0
    with suppress(OSError):
        while done < len(target) and done % ALIGNMENT == 0:
            count = read_into(direct, target[done:], offset + done)
            if not count:
                break
            done += count
    return done


def write_pages(cached: int, direct: int, data: memoryview, offset: int) -> None:
    """Write all of it past the page cache, or through it what the system refuses; data and offset are aligned."""
    done = 0
    try:
        while done < len(data) and done % ALIGNMENT == 0:
            done += write(direct, data[done:], offset + done)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
    write_all(cached, data[done:], offset + done)


def read_file(path: StrPath, limit: int) -> bytes:
    """The content of a small file: its first `limit` bytes."""
    descriptor = open_file(path, os.O_RDONLY)
    try:
        return read_up_to(descriptor, limit, 0)
    finally:
        release(descriptor)


def write_synced(path: StrPath, data: bytes) -> None:
    """Write a small file whole, durable when this returns."""
    descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(descriptor, memoryview(data), 0)
        sync(descriptor)
    finally:
        release(descriptor)


def copy_synced(source: StrPath, target: StrPath) -> None:
    """Copy a file's content, durable when this returns."""
    read_from = open_file(source, os.O_RDONLY)
    try:
        descriptor = open_file(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            at = 0
            while data := read(read_from, _PIECE, at):
                write_all(descriptor, memoryview(data), at)
                at += len(data)
            sync(descriptor)
        finally:
            release(descriptor)
    finally:
        release(read_from)


def sync_directory(path: StrPath) -> None:
    """Make the names in a directory durable, where the file system offers that."""
    descriptor = open_file(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
    finally:
        release(descriptor)


def remove_tree(path: StrPath) -> None:
    """Remove a directory with all that is in it; links are removed, not followed."""
    for name in names(path):
        entry = Path(path, name)
        if stat.S_ISDIR(mode(entry, follow=False)):
            remove_tree(entry)
        else:
            remove(entry)
    remove_directory(path)
