"""The engine: the only stage that touches tensor data. Boxes are read, moved, cast and written by a few threads.

    cells of all outputs, in the order of the source  →  boxes that fit a worker's region
    →  window of the source  →  box of the output  →  positioned write  →  block ledger

What a model is, nothing here knows.
"""

from __future__ import annotations

import errno
import math
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np

from ..errors import SourceChangedError, StorageError, quote
from ..planning.outputs import Output, SameBytes
from ..planning.plan import Plan
from ..storage.access import Access
from ..storage.regions import Bits, Region, phase
from ..tensors.grids import Box, box_shape, runs, slabs
from ..tensors.views import View, leaf
from .boxes import Cells, boxes, cells, position
from .budget import Budget, resident_bytes
from .reader import Reader, bits

_TICK = 0.1
_STEP = 1 << 18

#: Bytes that are written, and put on record, as one.
_SLAB = 8 << 20


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

#: Whether a box is worked on, from its number in the order of work, its output's name, and itself.
Chosen = Callable[[int, str, Box], bool]


class Sink(Protocol):
    """Where boxes go: to files, or to a comparison with files. Called from several threads."""

    def phase(self, name: str, offset: int, count: int) -> int | None:
        """How `count` bytes from `offset` of tensor `name` are to lie in memory (`regions.phase`); `None`: anyhow."""
        ...

    def put(self, name: str, offset: int, data: memoryview) -> str:
        """Take bytes `offset` … of tensor `name`; says which file they belong to."""
        ...


class Record(Protocol):
    """What of the outputs earlier runs wrote, and who learns of what this one writes. Called from several threads."""

    def left(self, number: int, box: Box) -> Iterable[Box]:
        """What of a box of output `number` is still to be written."""
        ...

    def writing(self, number: int, box: Box, count: int, overflowed: int) -> AbstractContextManager[None]:
        """Entered before a box of `count` bytes is written, left when it is."""
        ...


class Unrecorded:
    """Nothing was written before, and nobody wants to know."""

    def left(self, number: int, box: Box) -> Iterable[Box]:
        return (box,)

    def writing(self, number: int, box: Box, count: int, overflowed: int) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
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


def run(
    plan: Plan,
    sink: Sink,
    budget: Budget,
    access: Access,
    on_progress: OnProgress | None = None,
    chosen: Chosen | None = None,
    record: Record | None = None,
    tally: Tally | None = None,
) -> Tally:
    """Give every box of every output, or those that are `chosen`, to `sink`, with `budget.workers` threads.

    Args:
        plan: what is to be done.
        sink: where boxes go.
        budget: how memory is divided.
        access: how windows come from the source.
        on_progress: called now and then.
        chosen: which boxes, by number, tensor and place; all where absent.
        record: what is done already; nothing where absent.
        tally: what was counted already; nothing where absent.

    Raises:
        StreamconvError: whatever the first worker to fail met; the others are stopped first.
    """
    record = record or Unrecorded()
    tally = tally or Tally(_total(plan, budget.region, chosen))
    work = _Shared(_tasks(plan, budget.region, record, chosen))
    workers = [_Worker(work, sink, record, tally, budget, access) for _ in range(budget.workers)]
    started = time.monotonic()
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(_TICK)
                _report(tally, started, budget, on_progress)
    finally:
        work.stop()
        for worker in workers:
            if worker.ident is not None:
                worker.join()
            tally.read += worker.reader.bytes_read
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    _report(tally, started, budget, on_progress)
    return tally


def check_same_bytes(check: SameBytes, budget: Budget, access: Access) -> None:
    """Compare two tensors that have to hold the same bytes, or one with zeros.

    Raises:
        StreamconvError: the check's own: they differ.
    """
    other = leaf(check.other)
    if check.kept is None:
        _check_zeros(check, other, budget, access)
        return
    kept = leaf(check.kept)
    same = (kept.shape, kept.dtype) == (other.shape, other.dtype)
    # One worker's window and box make room for two of each, because what is not contiguous has to be moved.
    half = budget.region // 2
    one, two = Region(half), Region(half)
    with closing(Reader(half, access)) as first, closing(Reader(half, access)) as second:
        for cell in cells(kept) if same else ():
            for box in boxes(kept, cell, kept.dtype.itemsize, half):
                same = same and equal_bytes(read_box(first, kept, box, one), read_box(second, other, box, two))
    if not same:
        raise check.error


def _check_zeros(check: SameBytes, view: View, budget: Budget, access: Access) -> None:
    spare = Region(budget.region)
    with closing(Reader(budget.region, access)) as reader:
        for cell in cells(view):
            for box in boxes(view, cell, view.dtype.itemsize, budget.region):
                if read_box(reader, view, box, spare).any():
                    raise check.error


def read_box(reader: Reader, view: View, box: Box, spare: Region) -> Bits:
    """A box of a view in row-major order, moved into `spare` where it does not lie so on disk."""
    data = reader.contiguous(view, box, view.dtype)
    if data is None:
        data = spare.array(math.prod(box_shape(box)), bits(view.dtype))
        reader.place(view, box, data, view.dtype)
    return data


def equal_bytes(one: Bits, other: Bits) -> bool:
    """Whether two arrays hold the same bits, compared in steps that stay in the cache."""
    return all(np.array_equal(one[i : i + _STEP], other[i : i + _STEP]) for i in range(0, len(one), _STEP))


def _report(tally: Tally, started: float, budget: Budget, on_progress: OnProgress | None) -> None:
    if on_progress is not None:
        seconds = time.monotonic() - started
        found = resident_bytes()
        on_progress(Progress(tally.done, tally.total, seconds, found, budget.limit, tally.file, tally.resumed))


@dataclass(frozen=True, slots=True)
class _Task:
    number: int
    output: Output
    box: Box


def _total(plan: Plan, region: int, chosen: Chosen | None) -> int:
    """Bytes of output to be made."""
    if chosen is None:
        return plan.nbytes
    tasks = _tasks(plan, region, Unrecorded(), chosen)
    return sum(math.prod(box_shape(task.box)) * task.output.dtype.itemsize for task in tasks)


def _tasks(plan: Plan, region: int, record: Record, chosen: Chosen | None) -> Iterator[_Task]:
    """The boxes to be worked on."""
    every = _work(plan, region, record)
    return every if chosen is None else (t for n, t in enumerate(every) if chosen(n, t.output.name, t.box))


def _work(plan: Plan, region: int, record: Record) -> Iterator[_Task]:
    """All boxes that are left to do, in the order in which their sources lie on disk."""
    outputs = plan.outputs
    # Neighbours on disk belong to few outputs by turns: gate, up and down of one expert after the other.
    cells_of = lru_cache(maxsize=64)(lambda number: Cells(outputs[number].view))
    widest = lru_cache(maxsize=64)(lambda number: outputs[number].widest)
    for number, cell in _in_source_order(plan):
        output = outputs[number]
        for part in record.left(number, cells_of(number).box(cell)):
            for box in boxes(output.view, part, widest(number), region):
                yield _Task(number, output, box)


def _in_source_order(plan: Plan) -> Iterator[tuple[int, int]]:
    """Every cell, as number of its output and number in that. As arrays: there may be a hundred thousand."""
    files: dict[str, int] = {}
    table = array("q")
    for number, output in enumerate(plan.outputs):
        found = Cells(output.view)
        for cell in range(len(found)):
            path, offset = position(output.view, found.box(cell))
            table.extend((files.setdefault(path, len(files)), offset, number, cell))
    file, offset, number, cell = np.frombuffer(table, np.int64).reshape(-1, 4).T
    rank = np.argsort(np.argsort(list(files)))
    for index in np.lexsort((cell, number, offset, rank[file])):
        yield int(number[index]), int(cell[index])


class _Shared:
    """Hands out tasks, to one worker at a time, until told to stop."""

    def __init__(self, tasks: Iterator[_Task]) -> None:
        self._tasks = tasks
        self._lock = threading.Lock()
        self._stopped = False

    def __iter__(self) -> Iterator[_Task]:
        while True:
            with self._lock:
                task = None if self._stopped else next(self._tasks, None)
            if task is None:
                return
            yield task

    @property
    def is_stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        self._stopped = True


class _Worker(threading.Thread):
    """Converts boxes until there are none: one window, one box of memory."""

    def __init__(self, work: _Shared, sink: Sink, record: Record, tally: Tally, budget: Budget, access: Access) -> None:
        super().__init__(name="streamconv", daemon=True)
        self.error: BaseException | None = None
        self.reader = Reader(budget.region, access, drops=True)
        self._work, self._sink, self._record, self._tally = work, sink, record, tally
        self._region = Region(budget.region)

    def run(self) -> None:
        try:
            for task in self._work:
                self._convert(task)
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error
            self._work.stop()
        finally:
            self.reader.close()

    def _convert(self, task: _Task) -> None:
        output, box = task.output, task.box
        data, overflowed = self._made(output, box)
        # What became infinite is counted by the box, so such a box is on record whole or not at all.
        most = data.size if overflowed else _SLAB // output.dtype.itemsize
        begin = 0
        for slab in slabs(box, most):
            count = math.prod(box_shape(slab))
            if self._work.is_stopped:
                return
            self._write(task, slab, data[begin : begin + count], overflowed)
            begin += count

    def _made(self, output: Output, box: Box) -> tuple[Bits, int]:
        """The box's elements, and how many values became infinite; where they lie in memory, the sink wants them."""
        wanted = self._wanted_phase(output, box)
        found = self.reader.contiguous(output.view, box, output.dtype)
        if found is not None and wanted in (None, phase(found)):
            return found, 0
        data = self._region.array(math.prod(box_shape(box)), bits(output.dtype), wanted or 0)
        if found is None:
            return data, self.reader.place(output.view, box, data, output.dtype)
        np.copyto(data, found)
        return data, 0

    def _wanted_phase(self, output: Output, box: Box) -> int | None:
        run, starts = runs(box, output.view.shape)
        itemsize = output.dtype.itemsize
        return self._sink.phase(output.name, next(starts) * itemsize, run * itemsize)

    def _write(self, task: _Task, slab: Box, data: Bits, overflowed: int) -> None:
        with self._record.writing(task.number, slab, data.nbytes, overflowed), _of_source(task.output):
            file = _put(self._sink, task.output, slab, data)
        self._tally.add(task.output.name, data.nbytes, overflowed, file)


@contextmanager
def _of_source(output: Output) -> Iterator[None]:
    """What a write says of bytes that are mapped and there no more is the source's fault, not the destination's."""
    try:
        yield
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EFAULT:
            raise SourceChangedError(
                f"the source became shorter during the run, while {quote(output.name)} was written: "
                "run again when it is at rest"
            ) from error
        raise


def _put(sink: Sink, output: Output, box: Box, data: Bits) -> str:
    """Give a box to the sink, contiguous run by contiguous run."""
    run, starts = runs(box, output.view.shape)
    itemsize = output.dtype.itemsize
    view, size, file = data.view(np.uint8).data, run * itemsize, ""
    for number, first in enumerate(starts):
        file = sink.put(output.name, first * itemsize, view[number * size : (number + 1) * size])
    return file
