"""The limits of this process (`ulimit`), where it has any."""

from __future__ import annotations

import sys
from contextlib import suppress

from . import disk, memory

try:
    import resource
except ImportError:  # a build of Python without it
    resource = None  # type: ignore[assignment]

# An open file has two descriptors: one goes through the page cache, one past it.
_OF_FILE = 2
# Besides files of tensors: the journal, a folder that is synced, what the system says of memory.
_BESIDES = 3
_STANDARD = 3
#: The most source files that a reader keeps open, and of the files that the process may have open, which share.
_SOURCES, _SHARE_OF_READER = 8, 16
#: The same of the files of a result, which all workers share, and the least.
_RESULTS, _SHARE_OF_RESULTS, _LEAST_RESULTS = 128, 8, 2


def address_space_left() -> int | None:
    """Return the bytes of memory that the process may still ask for (`ulimit -v`, `-d`); `None` without a limit."""
    used = memory.usage()
    space, data = (used.space, used.data) if used else (memory.roughly_resident_bytes(),) * 2
    limits = ((_limit("RLIMIT_AS"), space), (_limit("RLIMIT_DATA"), data))
    rooms = [max(0, most - now) for most, now in limits if most is not None]
    return min(rooms, default=None)


def open_files() -> int | None:
    """Return how many files the process may have open (`ulimit -n`); `None` without a limit."""
    return _limit("RLIMIT_NOFILE")


def source_files() -> int:
    """Return how many source files a reader keeps open."""
    limit = open_files()
    return _SOURCES if limit is None else min(_SOURCES, max(1, limit // _SHARE_OF_READER))


def result_files() -> int:
    """Return how many files of a result stay open that no worker writes to at the moment."""
    limit = open_files()
    return _RESULTS if limit is None else min(_RESULTS, max(_LEAST_RESULTS, limit // _SHARE_OF_RESULTS))


def most_workers() -> int:
    """Return how many workers can have the files open that they need, at least one."""
    limit = open_files()
    if limit is None:
        return sys.maxsize
    left = limit - _files_open() - _BESIDES - _OF_FILE * result_files()
    # Each has those that it reads, and one that it writes to.
    return max(1, left // (_OF_FILE * (source_files() + 1)))


def _files_open() -> int:
    with suppress(OSError):
        return len(disk.listdir("/proc/self/fd"))
    return _STANDARD


def _limit(name: str) -> int | None:
    with suppress(AttributeError, NotImplementedError, OSError):
        soft, _ = resource.getrlimit(getattr(resource, name))
        return None if soft == resource.RLIM_INFINITY else soft
    return None
