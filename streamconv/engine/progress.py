"""How far a run is, and what its workers count."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done, total: bytes of output.
        seconds: since it began.
        resident, limit: bytes of memory in use, and allowed.
        file: the file being written.
        resumed: bytes of output that earlier runs wrote.
    """

    done: int
    total: int
    seconds: float
    resident: int
    limit: int
    file: str
    resumed: int = 0


OnProgress = Callable[[Progress], None]


@dataclass(kw_only=True)
class Tally:
    """What the workers count: bytes in and out, and per tensor the values that became infinite.

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

    def add(self, name: str, count: int, overflowed: int, file: str) -> None:
        """Note a box."""
        with self.lock:
            self.done += count
            self.file = file
            if overflowed:
                self.overflowed[name] = self.overflowed.get(name, 0) + overflowed
