"""Threads against processes: how much faster two of each run the engine's loops over elements than one does.

    worker  →  its own source and target in memory  →  one kernel  →  done

A thread takes the interpreter lock to begin each call, and gives it up during the call: between calls, threads wait for
each other, processes do not. Workers are started, and have run everything once, before the clock runs.

How many workers one lock suffices for follows from what is measured of one: the calls that give the lock up, and the
time between two of them. That is what a call on few elements takes, with what is done once for a box: the most that it
can be, so the lock suffices for at least so many. A hand-over is what each call takes longer with a second thread.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from streamconv.engine import kernels
from streamconv.engine.dequantise import Window, dequantise
from streamconv.engine.scales import Part
from streamconv.tensors.dtypes import BF16, F8_E4M3, F16, F32, DType
from streamconv.tensors.grids import whole
from streamconv.tensors.quantised import Blocks, Code, Codes, Quantised
from streamconv.tensors.refs import TensorRef

from . import plots
from .measuring import Spread, ratio, spread
from .results import Data, Say, Setting, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIB = 1 << 20

#: Workers of a kind that run at the same time, and for how many more the lock's share is worked out.
WORKERS, MORE = 2, (8, 16, 32, 64)

#: Rows and columns of a matrix, and where only the time between calls is wanted.
_SHAPE, _QUICK, _FEW = (2048, 7168), (256, 384), (1, 16)
_BLOCK = 128
_RUNS = 3  # of a kernel in one measurement
_LITTLE_RUNS = 1000
# Functions that give the lock up for most of their time. Of `copyto`, a profiler sees only what is in Python.
_GIVE_UP = {("c_call", "astype"), ("c_call", "reduce"), ("call", "copyto")}
_CASTS = ((BF16, F32), (BF16, F16), (F32, BF16), (F32, F16), (F16, BF16))
_WORDS = {BF16: "bf16", F16: "fp16", F32: "fp32"}

#: A kernel and its arrays, ready to run.
Work = Callable[[], object]


def measure(setting: Setting, say: Say) -> list[Data]:
    """Measure every kernel: seconds of one worker, of two threads and of two processes, in interleaved rounds."""
    shape = _QUICK if setting.quick else _SHAPE
    say(f"{WORKERS} threads and {WORKERS} processes: {', '.join(_kernels(_FEW))}")
    with ExitStack() as workers:
        threads = workers.enter_context(ThreadPoolExecutor(WORKERS))
        processes = [workers.enter_context(closing(_Process(shape))) for _ in range(WORKERS)]
        return [_of(name, shape, threads, processes, setting.rounds) for name in _kernels(shape)]


def tables(found: Sequence[Data]) -> list[Table]:
    """Return the speed-ups, and how busy the interpreter lock is with more threads."""
    return [_speed_ups(found), _shares(found)]


def figure(found: Sequence[Data]) -> Figure:
    """Plot the speed-up of threads over that of processes."""
    every = {one["kernel"]: ratio(one["processes"], one["threads"]) for one in found}
    return plots.ratios("Threads and processes", "speed of threads over that of processes", {"2 workers": every})


def _speed_ups(found: Sequence[Data]) -> Table:
    heads = ("kernel", f"speed-up with {WORKERS} threads", f"with {WORKERS} processes", "threads / processes")
    rows = [
        (
            one["kernel"],
            f"{_speed_up(one, 'threads'):.2f}",
            f"{_speed_up(one, 'processes'):.2f}",
            f"{ratio(one['processes'], one['threads']):.2f}",
        )
        for one in found
    ]
    return Table(heads, rows)


def _speed_up(one: Data, kind: str) -> Spread:
    return ratio([WORKERS * seconds for seconds in one["one"]], one[kind])


def _shares(found: Sequence[Data]) -> Table:
    heads = ["kernel", "processor µs per MiB", "calls per MiB", "µs between calls, at most", "µs of a hand-over"]
    heads += [f"lock busy with {count}, at most %" for count in MORE]
    return Table((*heads, "the lock suffices for"), [_share(one) for one in found])


def _share(one: Data) -> Sequence[str]:
    """Return a row: what one lock allows if each worker needs it between its calls, and waits for nothing else."""
    alone = one["processor"]
    between = one["between"] * one["calls"]
    late = spread(a - b for a, b in zip(one["threads"], one["processes"], strict=True)).median
    busy = (min(1.0, count * between / alone) for count in MORE)
    return (
        one["kernel"],
        f"{alone / one['mib'] * 1e6:.0f}",
        f"{one['calls'] / one['mib']:.1f}",
        f"{one['between'] * 1e6:.1f}",
        f"{late / one['calls'] * 1e6:.0f}",
        *(f"{100 * share:.0f}" for share in busy),
        f"{alone / between:.0f}",
    )


# -- kernels -----------------------------------------------------------------------------------------------------------


def _kernels(shape: tuple[int, int]) -> Mapping[str, Callable[[], tuple[Work, int]]]:
    """Return what makes each kernel ready to run on matrices of this shape, and says how many bytes go in and out."""
    casts = {f"{_WORDS[one]} -> {_WORDS[other]}": partial(_cast, shape, one, other) for one, other in _CASTS}
    return {
        "copy": partial(_cast, shape, BF16, BF16),
        **casts,
        "transpose, 2 bytes": partial(_cast, shape, BF16, BF16, transposed=True),
        "transpose, 4 bytes": partial(_cast, shape, F32, F32, transposed=True),
        "FP8 blocks -> bf16": partial(_dequantise, shape),
        "FP8 blocks -> bf16, transposed": partial(_dequantise, shape, transposed=True),
    }


def _cast(shape: tuple[int, int], source: DType, target: DType, *, transposed: bool = False) -> tuple[Work, int]:
    values = _values(shape)
    bits = np.zeros(shape, f"u{source.itemsize}")
    kernels.cast(values.view(np.uint32), bits, F32, source)
    out = _room(shape, target, transposed)
    return partial(kernels.cast, bits, out, source, target), bits.nbytes + out.nbytes


def _values(shape: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return numbers as a model's weights are: few are zero, none is large."""
    return np.resize(np.random.default_rng(0).normal(0, 0.02, shape[1]).astype(np.float32), shape)


def _room(shape: tuple[int, int], dtype: DType, transposed: bool) -> np.ndarray[Any, np.dtype[Any]]:
    """Return touched memory."""
    room = np.ones(shape[::-1] if transposed else shape, f"u{dtype.itemsize}")
    return room.T if transposed else room


def _dequantise(shape: tuple[int, int], *, transposed: bool = False) -> tuple[Work, int]:
    codes = np.resize(np.random.default_rng(0).integers(0, 0x7F, shape[1], np.uint8), shape)
    scales = np.full([-(-size // _BLOCK) for size in shape], 2.0**-8, np.float32)
    weight, scale = TensorRef("w", F8_E4M3, shape, ()), TensorRef("s", F32, scales.shape, ())
    factor = Blocks(Codes(scale, scales.shape), (_BLOCK, _BLOCK))
    parts = Quantised("FP8", Codes(weight, shape, Code("e4m3", 8)), (factor,))
    window = Window(parts, whole(shape), Part(codes, 0, 0), (Part(scales, 0, 0),))
    out = _room(shape, BF16, transposed)
    return partial(dequantise, window, whole(shape), out, BF16), codes.nbytes + out.nbytes


# -- running them ------------------------------------------------------------------------------------------------------


class _Process:
    """A process that has every kernel ready."""

    def __init__(self, shape: tuple[int, int]) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, shape), daemon=True)
        self._process.start()

    def ask(self, name: str) -> None:
        """Have it run a kernel."""
        self._ours.send(name)

    def wait(self) -> None:
        """Wait until it has."""
        self._ours.recv()

    def close(self) -> None:
        """End it."""
        self._ours.send(None)
        self._process.join()


def _serve(asked: Connection, shape: tuple[int, int]) -> None:
    """Run what is asked for; the arrays of one kernel are there at a time."""
    name = ""
    work: Work = _nothing
    while (wanted := asked.recv()) is not None:
        if wanted != name:
            name, work = wanted, _ready(wanted, shape)
        _run(work)
        asked.send(None)


def _nothing() -> None:
    return


def _ready(name: str, shape: tuple[int, int]) -> Work:
    return _kernels(shape)[name]()[0]


def _run(work: Work) -> None:
    for _ in range(_RUNS):
        work()


def _repeat(work: Work) -> None:
    for _ in range(_LITTLE_RUNS):
        work()


def _of(
    name: str, shape: tuple[int, int], threads: ThreadPoolExecutor, processes: Sequence[_Process], rounds: int
) -> Data:
    """Measure one kernel."""
    works = [_ready(name, shape) for _ in range(WORKERS)]
    contestants: dict[str, Work] = {
        "one": partial(_run, works[0]),
        "threads": lambda: list(threads.map(_run, works)),
        "processes": lambda: _by_processes(processes, name),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in contestants}
    for number in range(rounds + 1):
        for kind in random.sample(list(contestants), len(contestants)):
            took = _seconds(contestants[kind])
            if number:  # the first round warms up
                seconds[kind].append(took)
    mib = _RUNS * _kernels(shape)[name]()[1] / MIB
    few = _ready(name, _FEW)
    between = _seconds(partial(_repeat, few), time.thread_time) / _LITTLE_RUNS / _calls(few)
    alone = _seconds(contestants["one"], time.thread_time)
    calls = _RUNS * _calls(works[0])
    return {"kernel": name, "mib": mib, "calls": calls, "between": between, "processor": alone, **seconds}


def _by_processes(processes: Sequence[_Process], name: str) -> None:
    for one in processes:
        one.ask(name)
    for one in processes:
        one.wait()


def _seconds(work: Work, clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    work()
    return clock() - started


def _calls(work: Work) -> int:
    """Return how many calls of a kernel give the interpreter lock up; more do, for a short time."""
    count = itertools.count()

    def watch(frame: FrameType, event: str, called: Any) -> None:
        if (event, getattr(called, "__name__", frame.f_code.co_name)) in _GIVE_UP:
            next(count)

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return max(1, next(count))
