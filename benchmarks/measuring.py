"""Measure whole commands: with a cold cache, until synced, in interleaved rounds, peak memory polled from outside."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import psutil

_POLL = 0.02
_LAST_WORDS = 2000
# Of what Linux counts as read, whatever the device's own blocks are.
_BLOCK = 512


class BenchmarkError(Exception):
    """A benchmark that cannot be run here; the message says why."""


@dataclass(frozen=True)
class Run:
    """What a command took.

    Attributes:
        seconds: from its start until all that was written is on the disk.
        peak: most bytes resident: `VmHWM`, summed over its processes.
        memory: (seconds, resident bytes of all its processes), every 20 ms by default.
        cpu: processor seconds, in the program and in the kernel on its behalf.
        read: bytes that it had the disk read; none on tmpfs, and none that were in the page cache.
        said: what it printed.
        busy: the share of its time for which the device had requests, where `watched` says so.
    """

    seconds: float
    peak: int
    memory: list[tuple[float, int]] = field(default_factory=list)
    cpu: float = 0.0
    read: int = 0
    said: str = ""
    busy: float = 0.0


def measure(
    command: Sequence[str | os.PathLike[str]],
    cold: Iterable[Path] = (),
    *,
    env: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
    synced: bool = True,
    poll: float = _POLL,
    watched: Callable[[], float | None] = lambda: None,
) -> Run:
    """Run a command to its end.

    Args:
        command: the program and its arguments.
        cold: files and directories whose pages are dropped from the cache first.
        env: its environment; by default this process's.
        prepare: called in the child before the command is executed.
        synced: measure until everything written is on disk. Not for a command that writes nothing: it would wait for
            what others write.
        poll: seconds between two looks at its memory. A look at many processes takes milliseconds.
        watched: returns the seconds for which a device was busy so far.

    Raises:
        BenchmarkError: the command failed; the message has the end of its output.
    """
    for path in cold:
        drop(path)
    os.sync()
    with TemporaryFile() as said:
        busy = watched()
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=env, preexec_fn=prepare)  # noqa: PLW1509
        watch = _Watch(process.pid, started, poll)
        code = process.wait()
        if synced:
            os.sync()
        seconds = time.monotonic() - started
        busy = (watched() or 0.0) - (busy or 0.0)
        watch.stop()
        said.seek(0)
        words = said.read().decode(errors="replace")
    if code:
        raise BenchmarkError(f"exit code {code} of {' '.join(map(str, command))}\n{words[-_LAST_WORDS:]}")
    # Those of all children that have ended, and of theirs.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    read = (after.ru_inblock - before.ru_inblock) * _BLOCK
    return Run(seconds, sum(watch.peaks.values()), watch.memory, cpu, read, words, busy / seconds)


def interleaved(contestants: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Run every contestant once per round, in random order, so that other load on the machine affects all of them."""
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name in random.sample(list(contestants), len(contestants)):
            runs[name].append(contestants[name]())
    return runs


@dataclass(frozen=True)
class Spread:
    """Least, median and most of some figures."""

    least: float
    median: float
    most: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.least:{spec}}-{self.most:{spec}})"


def spread(values: Iterable[float]) -> Spread:
    """Return the least, the median and the most of some values."""
    found = sorted(values)
    return Spread(found[0], statistics.median(found), found[-1])


def ratio(ones: Sequence[float], others: Sequence[float]) -> Spread:
    """Return one over the other, round by round."""
    return spread(one / other for one, other in zip(ones, others, strict=True))


def ratios(ours: Sequence[Run], theirs: Sequence[Run]) -> Spread:
    """Return our time over theirs, round by round."""
    return ratio([run.seconds for run in ours], [run.seconds for run in theirs])


def drop(path: Path) -> None:
    """Drop a file, or all files in a directory, from the page cache; a no-op on tmpfs, which is nothing but cache."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


class _Watch(threading.Thread):
    """A thread that polls the memory of a process and its descendants until it ends."""

    def __init__(self, pid: int, started: float, poll: float) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[int, int] = {}
        self.memory: list[tuple[float, int]] = []
        self._pid, self._since, self._poll = pid, started, poll
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(self._poll):
            self._look()

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _look(self) -> None:
        resident = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._pid)
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(OSError):
                    figures = _status(one.pid)
                    self.peaks[one.pid] = max(self.peaks.get(one.pid, 0), figures.get("VmHWM", 0))
                    resident += figures.get("VmRSS", 0)
        if resident:
            self.memory.append((time.monotonic() - self._since, resident))


def _status(pid: int) -> dict[str, int]:
    """Return the memory figures of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines if line.startswith(("VmHWM:", "VmRSS:")))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}
