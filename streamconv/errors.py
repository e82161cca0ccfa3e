"""One hierarchy of errors; every class carries the exit code that the command line ends with.

A message says what is wrong, where (file, tensor, byte), why, and what to do next. Text that comes out of a file
(names, paths) is passed through `quote`, so that no control character of a hostile file reaches a terminal.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

_SHOWN = 160


class StreamconvError(Exception):
    """Base of all errors that streamconv raises on purpose. `exit_code` is what the process ends with."""

    exit_code = 1

    def add(self, text: str) -> None:
        """Say something more, in a line of its own."""
        if text:
            self.args = (f"{self}\n{text}",)


class InternalError(StreamconvError):
    """A fault of streamconv itself: please report it."""

    exit_code = 1


class UsageError(StreamconvError):
    """The call is wrong: an unknown word, a missing option, a value that does not parse."""

    exit_code = 2


class SourceError(StreamconvError):
    """The source is broken, changed, incomplete or unreadable."""

    exit_code = 3


class SourceChangedError(SourceError):
    """The source was written to during the run: what was made of it so far is of no use."""


class UnsupportedError(StreamconvError):
    """The model, an option or a tensor is not supported, or the target cannot hold it."""

    exit_code = 4


class StorageError(StreamconvError):
    """The destination's storage is full, read-only or failing."""

    exit_code = 5


class BudgetError(StreamconvError):
    """The memory budget is too small; the message names the number that would do."""

    exit_code = 6


class VerificationError(StreamconvError):
    """The bytes on disk differ from what they have to be."""

    exit_code = 7


class DestinationError(StreamconvError):
    """The destination exists, is in use, or holds files that are not ours."""

    exit_code = 8


class InterruptedRunError(StreamconvError):
    """The run was stopped by a signal; the exit code is 128 + its number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


#: What each exit code means, in the order of the table in docs/cli.md.
EXIT_CODES = {
    0: "done",
    1: "a fault of streamconv",
    2: "wrong usage",
    3: "source broken, changed or unreadable",
    4: "model, option or tensor not supported",
    5: "storage full, read-only or failing",
    6: "memory budget too small",
    7: "verification found a difference",
    8: "destination in use or not ours",
    130: "interrupted (SIGINT)",
    143: "terminated (SIGTERM)",
}

_NEXT_STEP = {
    errno.ENOSPC: "make room and run again",
    errno.EDQUOT: "free some of the quota and run again",
    errno.EFBIG: "a limit on the size of files is in force (ulimit -f): raise it, or write smaller shards",
    errno.EROFS: "choose a destination on a writable file system",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EIO: "the device reports an error: check it before anything else",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def quote(text: object) -> str:
    """Text from outside, made safe for a terminal: unprintable characters escaped, long text cut in the middle."""
    shown = str(text)
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN // 2]}…{shown[-_SHOWN // 2 :]}"


def storage_error(error: OSError, doing: str, path: str | os.PathLike[str]) -> StorageError:
    """The `StorageError` for an operating-system error met while writing `path`."""
    hint = _NEXT_STEP.get(error.errno or 0, "check the destination and run again")
    return StorageError(f"{doing} {quote(path)}: {error.strerror or error}; {hint}")


def source_error(error: OSError, doing: str, path: str | os.PathLike[str]) -> SourceError:
    """The `SourceError` for an operating-system error met while reading `path`."""
    hint = _NEXT_STEP.get(error.errno or 0, "check the path and run again")
    return SourceError(f"{doing} {quote(path)}: {error.strerror or error}; {hint}")


@contextmanager
def reading(path: str | os.PathLike[str], doing: str = "cannot read") -> Iterator[None]:
    """Say of an operating-system error in the block that it was met while reading `path`."""
    try:
        yield
    except OSError as error:
        raise source_error(error, doing, path) from error


@contextmanager
def storing(path: str | os.PathLike[str], doing: str = "cannot write") -> Iterator[None]:
    """Say of an operating-system error in the block that it was met while writing `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, doing, path) from error
