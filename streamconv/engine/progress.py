"""How far a run is, and what its workers count."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from msgspec import Struct, field

from ..storage.memory import roughly_resident_bytes

_TICK = 0.1


class Progress(Struct, frozen=True):
    """How far a run is.

    Attributes:
        done, total: bytes of output.
        seconds: since it began.
        resident, limit: bytes of memory in use, and allowed.
        file: the file being written or read.
        resumed: bytes of output that earlier runs wrote.
        nodes: how many nodes of a cluster are at work; 0 without a cluster.
        slowest: of several nodes the one with the lowest rate, and that rate: `host-7 12 MiB/s`.
    """

    done: int
    total: int
    seconds: float
    resident: int
    limit: int
    file: str
    resumed: int = 0
    nodes: int = 0
    slowest: str = ""


OnProgress = Callable[[Progress], None]


class ProgressReporter:
    """Calls a function with the progress of a run, some ten times a second and when all is done.

    Args:
        on_progress: the function; nothing is reported without one.
        total: bytes of the whole run.
        memory_limit: bytes of memory allowed; 0 where there is no limit.
    """

    def __init__(self, on_progress: OnProgress | None, total: int, memory_limit: int = 0) -> None:
        self._on_progress, self._total, self._memory_limit = on_progress, total, memory_limit
        self._started, self._reported = time.monotonic(), -math.inf

    def report(self, done: int, file: str, resumed: int = 0) -> None:
        """Report that `done` bytes are done, `resumed` of them by earlier runs, `file` last."""
        now = time.monotonic()
        if self._on_progress is None or (now - self._reported < _TICK and done < self._total):
            return
        self._reported = now
        seconds, resident = now - self._started, roughly_resident_bytes()
        self._on_progress(Progress(done, self._total, seconds, resident, self._memory_limit, file, resumed))


class Tally(Struct, kw_only=True):
    """What the workers count: bytes read and written, and per tensor the values that overflowed.

    Attributes:
        total, done: bytes of output, and how many are done, by earlier runs too.
        resumed: bytes that earlier runs wrote.
        read: bytes of the source that this run read.
        file: the file written last.
        overflowed: tensor → finite values that became infinite.
    """

    total: int
    done: int = 0
    resumed: int = 0
    read: int = 0
    file: str = ""
    overflowed: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int, file: str) -> None:
        """Count bytes of output that were written to a file."""
        with self.lock:
            self.done += count
            self.file = file

    def add_overflow(self, name: str, overflowed: int) -> None:
        """Count values of a tensor that overflowed."""
        if overflowed:
            with self.lock:
                self.overflowed[name] = self.overflowed.get(name, 0) + overflowed
