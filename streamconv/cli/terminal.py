"""Standard output and standard error: either may be gone, and no work stops for it.

Importing click takes most of a start; what is needed before signals are handled does without.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TextIO

_LINES = 1000


def open_missing() -> None:
    """Open /dev/null for each standard stream that the process was started without (`>&-`).

    Else the first file that is opened has its number, and what is meant for the stream goes there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, _nowhere(mode))


def _nowhere(mode: str) -> Any:
    # The kernel gives the lowest number that is free: the stream's own, for those before it are open.
    try:
        return os.fdopen(os.open(os.devnull, os.O_RDWR), mode, closefd=False)
    except OSError:
        # A chroot without devices. The root directory takes the number, and nothing can be written to it.
        os.open(os.sep, os.O_RDONLY)
        return _Nowhere()


class _Nowhere(io.TextIOBase):
    """A stream whose text is dropped."""

    def write(self, text: str) -> int:
        """Drop text."""
        return len(text)


def say(text: str) -> None:
    """Write a line to standard error; a closed pipe there stops no work."""
    import click

    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def print_lines(lines: Iterable[str]) -> None:
    """Write lines to standard output, many at a time: there may be a hundred thousand."""
    import click

    iterator = iter(lines)
    while some := list(islice(iterator, _LINES)):
        click.echo("\n".join(some))


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Any]:
    """Provide a progress bar on standard error, or `None` if `quiet`."""
    if quiet:
        yield None
        return
    from .progress_bar import ProgressBar

    with ProgressBar(sys.stderr) as bar:
        yield bar


def flush_quietly(stream: TextIO) -> None:
    """Flush, ignoring errors: they were reported, and the interpreter's own flush must not change the exit code."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
