"""Calls that only the C library has a function for. `disk` alone makes them.

Each raises `OSError`, with ENOSYS where this host cannot make the call: the library is older, or Python was built
without `ctypes`.
"""

from __future__ import annotations

import errno
import mmap
import os

try:
    import ctypes
except ImportError:  # where libffi was missing when Python was built
    ctypes = None  # type: ignore[assignment]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def swap_names(one: bytes, other: bytes) -> None:
    """Swap two names in one step."""
    _call("renameat2", _AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)


def is_resident(page: mmap.mmap) -> bool:
    """Return whether memory holds the first page of a mapping that can be written to."""
    if ctypes is None:
        raise _not_offered("mincore")
    # The kernel writes a byte for each page.
    answer, start = ctypes.create_string_buffer(1), ctypes.c_char.from_buffer(page)
    _call("mincore", ctypes.byref(start), ctypes.c_size_t(1), answer)
    return bool(answer.raw[0] & 1)


def _call(name: str, *arguments: object) -> None:
    function = None if ctypes is None else getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise _not_offered(name)
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _not_offered(name: str) -> OSError:
    return OSError(errno.ENOSYS, f"{os.strerror(errno.ENOSYS)}: {name}")
