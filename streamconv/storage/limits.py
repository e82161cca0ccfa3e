"""The limits of this process (`ulimit`), where it has any."""

from __future__ import annotations

from contextlib import suppress

import psutil

from . import memory

try:
    import resource
except ImportError:  # a build of Python without it
    resource = None  # type: ignore[assignment]


def address_space_left() -> int | None:
    """Return the bytes of memory that the process may still ask for (`ulimit -v`, `-d`); `None` without a limit."""
    try:
        used = psutil.Process().memory_info()
        space, data = used.vms, used.data
    except memory.UNKNOWN:
        space = data = memory.roughly_resident_bytes()
    limits = ((_limit("RLIMIT_AS"), space), (_limit("RLIMIT_DATA"), data))
    rooms = [max(0, most - now) for most, now in limits if most is not None]
    return min(rooms, default=None)


def open_files() -> int | None:
    """Return how many files the process may have open (`ulimit -n`); `None` without a limit."""
    return _limit("RLIMIT_NOFILE")


def _limit(name: str) -> int | None:
    with suppress(AttributeError, NotImplementedError, OSError):
        soft, _ = resource.getrlimit(getattr(resource, name))
        return None if soft == resource.RLIM_INFINITY else soft
    return None
