"""Progress for people."""

from __future__ import annotations

import contextlib
import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from ..engine.progress import Progress
from ..text import counted, format_size, quote

if TYPE_CHECKING:
    from tqdm import tqdm

_EVERY = 10.0
# Without a delay tqdm draws inside its constructor, and a signal at that moment leaves a bar that nobody can close.
_NOT_YET = 1e-9
_BAR = "{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} {rate_fmt} left {remaining}{postfix}"


class ProgressBar:
    """A progress bar on a terminal, a line now and then elsewhere. Use it as a context manager."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        # Now, so that a plan that is made next knows what it takes of the memory; it is not needed elsewhere.
        self._kind = _tqdm() if self._terminal else None
        self._bar: tqdm[Any] | None = None
        self._said = time.monotonic()
        self._has_begun = False

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()

    def __call__(self, progress: Progress) -> None:
        """Show an event; if the stream is closed, the work continues without it."""
        with contextlib.suppress(OSError):
            self._show(progress)

    def _show(self, progress: Progress) -> None:
        if not self._has_begun and progress.resumed:
            done, total = format_size(progress.resumed), format_size(progress.total)
            self._stream.write(f"resuming: {done} of {total} already written\n")
        self._has_begun = True
        if self._kind is not None:
            self._draw(self._kind, progress)
        elif time.monotonic() - self._said >= _EVERY:
            self._said = time.monotonic()
            self._stream.write(line(progress) + "\n")
            self._stream.flush()

    def _draw(self, kind: type[tqdm[Any]], progress: Progress) -> None:
        bar = self._bar
        if bar is None:
            bar = self._bar = kind(
                total=progress.total,
                initial=progress.resumed,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                file=self._stream,
                bar_format=_BAR,
                delay=_NOT_YET,
                **_shape(self._stream),
            )
        nodes = f"{_nodes(progress)}, " if progress.nodes else ""
        bar.set_postfix_str(f"{nodes}mem {_memory(progress)} {quote(progress.file)}", refresh=False)
        bar.update(progress.done - bar.n)


def _tqdm() -> type[tqdm[Any]]:
    from tqdm import tqdm

    # Events come several times a second: no thread has to see to bars that stand still.
    tqdm.monitor_interval = 0
    return tqdm


def _shape(stream: TextIO) -> dict[str, Any]:
    """Return how tqdm learns the terminal's size: by itself, except where it is 0 columns, as in some containers."""
    with contextlib.suppress(OSError, ValueError):
        if os.get_terminal_size(stream.fileno()).columns == 0:
            return {"ncols": 120, "nrows": 24}
    return {"dynamic_ncols": True}


def line(progress: Progress) -> str:
    """Return bytes, rate, time left, nodes, memory and file in one line."""
    share = progress.done / progress.total if progress.total else 1
    rate = (progress.done - progress.resumed) / progress.seconds if progress.seconds else 0
    left = f"{(progress.total - progress.done) / rate:.0f} s left" if rate else "time left unknown"
    nodes = f"{_nodes(progress)}, " if progress.nodes else ""
    return (
        f"{share:4.0%} {format_size(progress.done)} of {format_size(progress.total)}, {format_size(rate)}/s, {left}, "
        f"{nodes}memory {_memory(progress)}, {quote(progress.file)}"
    )


def _nodes(progress: Progress) -> str:
    slowest = f", slowest {quote(progress.slowest)}" if progress.slowest else ""
    return counted(progress.nodes, "node") + slowest


def _memory(progress: Progress) -> str:
    return format_size(progress.resident) + (f"/{format_size(progress.limit)}" if progress.limit else "")
