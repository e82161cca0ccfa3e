"""Several requests at once, for storage where each takes milliseconds: or the network is idle while one is answered."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import lru_cache
from threading import Barrier, BrokenBarrierError
from typing import Generic, TypeVar

from msgspec import Struct

from ..paths import PathLike
from . import mounts

#: Bytes of a piece: what most network file systems, and those in user space, move in one request at most.
PIECE = 1 << 20

#: Pieces on their way at once, those of all workers together: 3 GB/s where a request takes 5 ms.
AT_ONCE = 16

_T = TypeVar("_T")


def at_once(path: PathLike) -> int:
    """Return how many questions to ask at a time of the file system that a path lies on: one where it is near."""
    return AT_ONCE if mounts.lies_far(path) else 1


def read_pieces(read: Callable[[int, memoryview], int], offset: int, target: memoryview) -> int:
    """Read into a buffer, several pieces at once.

    Args:
        read: reads at an offset into a buffer; returns how many bytes, 0 at the end of the file.
        offset: where the first byte lies.
        target: the buffer.

    Returns:
        How many bytes were read up to the first piece that is not whole.

    Raises:
        OSError: of the first piece, where that one was refused.
    """
    done = 0
    for piece in _pieces(read, offset, target):
        if piece.error is not None and not done:
            raise piece.error
        done += piece.result or 0
        if piece.result != piece.length:
            break
    return done


def write_pieces(write: Callable[[int, memoryview], None], offset: int, data: memoryview) -> None:
    """Write a buffer, several pieces at once.

    Args:
        write: writes all of a buffer at an offset.
        offset: where the first byte belongs.
        data: the buffer.

    Raises:
        OSError: of the first piece that was refused. What became of those behind it is not known.
    """
    for piece in _pieces(write, offset, data):
        if piece.error is not None:
            raise piece.error


class _Done(Struct, Generic[_T], frozen=True):
    """What came of a piece of so many bytes: a result, or an error."""

    length: int
    result: _T | None
    error: BaseException | None


def _pieces(do: Callable[[int, memoryview], _T], offset: int, data: memoryview) -> list[_Done[_T]]:
    """Do something for each piece; return what came of it when all have ended."""
    parts = [data[begin : begin + PIECE] for begin in range(0, len(data), PIECE)]
    threads = _threads() if len(parts) > 1 else None
    if threads is None:
        return [_Done(len(data), do(offset, data), None)]
    futures = [threads.submit(do, offset + number * PIECE, part) for number, part in enumerate(parts)]
    wait(futures)  # the buffer must not be used for anything else before
    errors = [future.exception() for future in futures]
    return [
        _Done(len(part), None if error else future.result(), error)
        for part, future, error in zip(parts, futures, errors, strict=True)
    ]


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor | None:
    """Start all threads, so that none is refused later; return `None` where the system refuses one."""
    threads, all_there = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="streamconv-io"), Barrier(AT_ONCE)

    def arrive() -> None:
        with suppress(BrokenBarrierError):
            all_there.wait()

    try:
        for _ in range(AT_ONCE):
            threads.submit(arrive)
    except RuntimeError:
        all_there.abort()
        threads.shutdown(wait=False)
        return None
    return threads
