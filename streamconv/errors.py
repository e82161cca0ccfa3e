"""One hierarchy of errors; every class carries the exit code that the command line ends with.

A message says what is wrong, where (file, tensor, byte) and why; its hint says what to do next (STYLE.md). Text that
comes out of a file (names, paths) is passed through `text.quote`, so that no control character of a hostile file
reaches a terminal.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from .paths import PathLike
from .text import in_python, quote, setting


class StreamconvError(Exception):
    """Base of all errors that streamconv raises on purpose.

    `str` gives the message, notes in lines of their own, and last a line `hint: …`. Settings are spelled as Python has
    them; the command line spells them as flags.

    Attributes:
        exit_code: what the command line ends with.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(in_python(message))
        self._message = message
        self._hint = hint

    @property
    def message(self) -> str:
        """What is wrong, where (file, tensor, byte) and why."""
        return in_python(self._message)

    @property
    def hint(self) -> str:
        """What to do next; may be empty."""
        return in_python(self._hint)

    @property
    def marked(self) -> tuple[str, str]:
        """Message and hint with settings marked, for `text.in_shell`, or for another error of the same cause."""
        return self._message, self._hint

    def __str__(self) -> str:
        return "\n".join([self.message, *([f"hint: {self.hint}"] if self._hint else [])])

    def add(self, note: str, hint: str = "") -> None:
        """Append a line to the message, and set the hint where there is none."""
        if note:
            self._message = f"{self._message}\n{note}"
        self._hint = self._hint or hint


class InternalError(StreamconvError):
    """A bug in streamconv itself; the message says so."""

    def __init__(self, message: str) -> None:
        super().__init__(f"internal error: {message}", "report this bug in streamconv")


class UsageError(StreamconvError, ValueError):
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


class BudgetError(StreamconvError, MemoryError):
    """The memory limit is too low; the hint names the smallest that works.

    Attributes:
        least: that limit in bytes, 0 where nobody knows.
    """

    exit_code = 6

    def __init__(self, message: str, hint: str = "", least: int = 0) -> None:
        super().__init__(message, hint)
        self.least = least


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
        self.args = (message, signal_number)  # what it is pickled by
        self.exit_code = 128 + signal_number


#: What each exit code means, in the order of the table in docs/cli.md.
EXIT_CODES = {
    0: "success",
    1: "internal error: a bug in streamconv",
    2: "wrong usage",
    3: "source damaged, changed or unreadable",
    4: "model, option or tensor not supported",
    5: "storage full, read-only or failing",
    6: "memory limit too low",
    7: "verification or diff found a difference",
    8: "destination exists, is in use, or holds other files",
    129: "hung up (SIGHUP)",
    130: "interrupted (SIGINT)",
    143: "terminated (SIGTERM)",
}

_NEXT_STEP = {
    errno.ENOSPC: "free some space and run the same conversion again",
    errno.EDQUOT: "free some of the quota and run the same conversion again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or write smaller shards",
    errno.EROFS: "choose a destination on a writable file system",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EIO: "the device reports an I/O error; check it first",
    # Of a rename beside itself: what an overlay's lower layer holds.
    errno.EXDEV: "move the old destination away, then run the same conversion again: it resumes and finishes",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, or raise the system's limit on open files (fs.file-max)",
    errno.ENOMEM: "free some memory, or raise the limit on memory (ulimit -v)",
}


def storage_error(error: OSError, doing: str, path: PathLike) -> StorageError:
    """Return the `StorageError` for an operating-system error met while writing `path`."""
    return StorageError(f"{doing} {quote(path)}: {error.strerror or error}", _next_step(error, "the destination"))


def source_error(error: OSError, doing: str, path: PathLike) -> SourceError:
    """Return the `SourceError` for an operating-system error met while reading `path`."""
    return SourceError(f"{doing} {quote(path)}: {error.strerror or error}", _next_step(error, "the path"))


def memory_refused() -> BudgetError:
    """Return the error for memory that the budget allows, and the system does not give."""
    return BudgetError(
        "the system refused memory that the memory limit allows",
        f"give a smaller {setting('max_mem')}, or raise the limit on the process's memory (ulimit -v)",
    )


def _next_step(error: OSError, what: str) -> str:
    return _NEXT_STEP.get(error.errno or 0, f"check {what} and run again")


@contextmanager
def reading(path: PathLike, doing: str = "cannot read") -> Iterator[None]:
    """Turn an operating-system error in the block into a `SourceError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise source_error(error, doing, path) from error


@contextmanager
def storing(path: PathLike, doing: str = "cannot write") -> Iterator[None]:
    """Turn an operating-system error in the block into a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, doing, path) from error


@contextmanager
def allocating() -> Iterator[None]:
    """Turn memory that the system refuses in the block into a `BudgetError`."""
    try:
        yield
    except StreamconvError:
        raise
    except MemoryError as error:
        raise memory_refused() from error
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise memory_refused() from error
