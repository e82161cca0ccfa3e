"""What the nodes did and do: a record of each for the report, and the progress of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct, field

from ..engine.progress import OnProgress, Progress
from ..text import format_size
from .members import Member

_TICK = 0.2


class _Record(Struct):
    """What a node did.

    Attributes:
        tasks, nbytes: what its workers finished.
        began, ended: when it got its first task, and when it finished its last.
        peaks: worker → the most that was ever resident of it.
    """

    tasks: int = 0
    nbytes: int = 0
    began: float = math.inf
    ended: float = 0.0
    peaks: dict[str, int] = field(default_factory=dict)


class Meter:
    """Counts what the nodes finish, over all jobs of a run."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def begin(self, member: Member) -> None:
        """Note that a worker gets a task."""
        record = self._records.setdefault(member.node.name, _Record())
        record.began = min(record.began, time.monotonic())

    def add(self, member: Member, nbytes: int) -> None:
        """Note that a worker has finished a task."""
        record = self._records[member.node.name]
        record.tasks += 1
        record.nbytes += nbytes
        record.ended = time.monotonic()
        record.peaks[member.key] = member.status["peak"]

    def knows(self, name: str) -> bool:
        """Return whether a node ever had a task."""
        return name in self._records

    def rate(self, name: str, doing: int) -> float:
        """Return the bytes that a node does in a second, with those of the tasks that it is at."""
        record = self._records[name]
        return (record.nbytes + doing) / max(1e-3, time.monotonic() - record.began)

    def records(self) -> list[dict[str, Any]]:
        """Return for each node that did something what it did: host, workers, tasks, bytes, seconds, peak_bytes."""
        return [
            {
                "host": name,
                "workers": len(record.peaks),
                "tasks": record.tasks,
                "bytes": record.nbytes,
                "seconds": round(record.ended - record.began, 3),
                "peak_bytes": sum(record.peaks.values()),
            }
            for name, record in sorted(self._records.items())
            if record.tasks
        ]


class Reporter:
    """Calls a function with the progress of a job, some 5 times a second and when all is done.

    Args:
        on_progress: the function; nothing is reported without one.
        meter: what the nodes did.
        total: bytes of the whole job.
        resumed: bytes that earlier runs did.
        limit: bytes of memory allowed on each node; 0 where there is no limit.
    """

    def __init__(self, on_progress: OnProgress | None, meter: Meter, total: int, resumed: int, limit: int) -> None:
        self._on_progress, self._meter = on_progress, meter
        self._total, self._resumed, self._limit = total, resumed, limit
        self._started, self._reported, self._most = time.monotonic(), -math.inf, resumed
        self._file = ""

    def report(self, done: int, members: Iterable[Member]) -> None:
        """Report that `done` bytes of this run's tasks are done, besides what the workers are at."""
        now = time.monotonic()
        is_last = self._resumed + done >= self._total
        if self._on_progress is None or (now - self._reported < _TICK and not is_last):
            return
        self._reported = now
        there = list(members)
        working = [member for member in there if member.task is not None]
        doing = _doing(working)
        # What a worker was at when it died is done again, but no bar runs backwards.
        self._most = min(self._total, max(self._most, self._resumed + done + doing))
        self._file = next((member.status["file"] for member in working if member.status["file"]), self._file)
        by_node = _by_node(there)
        resident = max((sum(m.status["resident"] for m in of_node) for of_node in by_node.values()), default=0)
        self._on_progress(
            Progress(
                done=self._most,
                total=self._total,
                seconds=now - self._started,
                resident=resident,
                limit=self._limit,
                file=self._file,
                resumed=self._resumed,
                nodes=len(by_node),
                slowest=self._slowest(by_node),
            )
        )

    def _slowest(self, by_node: Mapping[str, list[Member]]) -> str:
        """The node with the lowest rate and that rate, where there are several."""
        rates = {name: self._meter.rate(name, _doing(of)) for name, of in by_node.items() if self._meter.knows(name)}
        if len(rates) < 2:
            return ""
        name = min(rates, key=rates.__getitem__)
        return f"{name} {format_size(rates[name])}/s"


def _doing(members: Iterable[Member]) -> int:
    """The bytes that are done of tasks that are not."""
    return sum(member.status["done"] for member in members if member.task is not None)


def _by_node(members: Iterable[Member]) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for member in members:
        found.setdefault(member.node.name, []).append(member)
    return found
