"""The workers: a few threads that read boxes, transform and cast them, and write them.

    cells of all outputs, in the order of the source  →  boxes that fit a worker's region
    →  window of the source  →  box of the output  →  positioned write

Nothing here knows what a model is.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Protocol

import numpy as np

from ..errors import allocating
from ..planning.mapping import TensorMapping
from ..planning.outputs import Finished, Output
from ..storage.access import Access
from ..storage.regions import Placement, Region
from ..tensors.arrays import Bits, Bytes
from ..tensors.grids import Box, box_parts, box_shape, runs
from ..tensors.refs import Home, OutputFile
from .budget import Budget
from .progress import OnProgress, ProgressReporter, Tally
from .reader import Reader
from .sharing import Task
from .stretches import Stretch
from .tasks import BoxFilter, Record, Unrecorded, Work, tasks, total_bytes

_TICK = 0.1

#: Bytes that are written and recorded as one.
WRITE_BYTES = 8 << 20

_log = logging.getLogger("streamconv")
_REFUSED = (
    "the system refuses threads (ulimit -u or -v, or the container's pids limit): running %d instead of %d workers"
)


class Sink(Protocol):
    """Where boxes go: to files, or to a comparison with files. Called from several threads."""

    def placement(self, name: str, offset: int, count: int) -> Placement | None:
        """Return how these bytes of tensor `name` should lie in memory, `None` where it does not matter."""
        ...

    def put(self, name: str, offset: int, data: memoryview) -> str:
        """Take bytes `offset` … of tensor `name`; return the name of the file that they belong to."""
        ...

    def home(self, name: str) -> Home | None:
        """Return where a tensor lies; `None` where that is in several files, or in pieces."""
        ...

    def placement_in_file(self, offset: int, count: int) -> Placement | None:
        """Return how bytes that belong at `offset` of a file should lie in memory, `None` where it does not matter."""
        ...

    def write(self, file: OutputFile, offset: int, data: memoryview) -> None:
        """Take bytes `offset` … of a file, of whichever tensors they are."""
        ...


def run(
    mapping: TensorMapping,
    sink: Sink,
    budget: Budget,
    access: Access,
    on_progress: OnProgress | None = None,
    chosen: BoxFilter | None = None,
    record: Record | None = None,
    tally: Tally | None = None,
) -> Tally:
    """Give every box of every output, or those that are `chosen`, to `sink`, with `budget.workers` threads.

    Where the system refuses threads, fewer do it; where it refuses all of them, this one.

    Args:
        mapping: what is to be done.
        sink: where boxes go.
        budget: how memory is divided.
        access: how windows come from the source.
        on_progress: called now and then.
        chosen: which boxes, by number, tensor and place; all where absent.
        record: what is done already; nothing where absent.
        tally: what was counted already; nothing where absent.

    Raises:
        StreamconvError: whatever the first worker to fail met; the others are stopped first.
        BudgetError: the system refuses memory that the budget allows.
    """
    record = record or Unrecorded()
    tally = tally or Tally(total=total_bytes(mapping, budget.region_bytes, chosen))
    work = _Shared(tasks(mapping, budget.region_bytes, record, sink.home, chosen))
    reporter = ProgressReporter(on_progress, tally.total, budget.memory_limit)

    def report() -> None:
        reporter.report(tally.done, tally.file, tally.resumed)

    with allocating():
        workers = [_Worker(work, sink, record, tally, budget, access) for _ in range(budget.workers)]
        _work(workers, work, tally, report)
    report()
    return tally


def _work(workers: Sequence[_Worker], work: _Shared, tally: Tally, report: Callable[[], None]) -> None:
    """Have the workers work until nothing is left to do, or until one fails; raise its error."""
    try:
        for worker in _started(workers, report):
            while not worker.has_ended.wait(_TICK):
                report()
    finally:
        work.stop()
        for worker in workers:
            if worker.ident is not None:
                worker.has_ended.wait()
            tally.read += worker.reader.bytes_read
    for worker in workers:
        if worker.error is not None:
            raise worker.error


def _started(workers: Sequence[_Worker], report: Callable[[], None]) -> Sequence[_Worker]:
    """Start as many as the system allows; where that is none, do all the work here. Return those started."""
    for number, worker in enumerate(workers):
        try:
            worker.start()
        except RuntimeError:
            if len(workers) > 1:
                _log.warning(_REFUSED, max(number, 1), len(workers))
            if not number:
                worker.on_part = report
                worker.run()
            return workers[:number]
    return workers


class _Shared:
    """Hands out work to the workers until it is stopped."""

    def __init__(self, work: Iterator[Work]) -> None:
        self._every = work
        self._lock = threading.Lock()
        self._stopped = False

    def __iter__(self) -> Iterator[Work]:
        while True:
            with self._lock:
                work = None if self._stopped else next(self._every, None)
            if work is None:
                return
            yield work

    @property
    def is_stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        self._stopped = True


class _Worker(threading.Thread):
    """Converts boxes until none are left, with the memory of one window and one box."""

    def __init__(self, work: _Shared, sink: Sink, record: Record, tally: Tally, budget: Budget, access: Access) -> None:
        super().__init__(name="streamconv", daemon=True)
        self.error: BaseException | None = None
        self.reader = Reader(budget.region_bytes, access, drops=True)
        # `Thread.join` will not do: if a signal's handler raises in it, Python may take the thread for ended.
        self.has_ended = threading.Event()
        self.on_part: Callable[[], None] = lambda: None
        self._work, self._sink, self._record, self._tally = work, sink, record, tally
        self._region = Region(budget.region_bytes)

    def run(self) -> None:
        try:
            for work in self._work:
                if isinstance(work, Stretch):
                    self._convert_stretch(work)
                    continue
                if len(work) > 1:
                    self.reader.share([(task.output.view, task.box) for task in work])
                for task in work:
                    self._convert(task)
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error
            self._work.stop()
        finally:
            self.reader.close()
            self.has_ended.set()

    def _convert_stretch(self, stretch: Stretch) -> None:
        placement = self._sink.placement_in_file(stretch.begin, stretch.nbytes)
        data, overflowed = self.reader.stretch(stretch, self._region, placement, lambda: self._work.is_stopped)
        finished = list(self._counted(stretch, data) if overflowed else stretch.finished())
        if self._work.is_stopped:
            return
        with self._record.writing(finished, data.nbytes):
            self._sink.write(stretch.file, stretch.begin, data.data)
        for one in finished if overflowed else ():
            self._tally.add_overflow(stretch.table.outputs[one.first].name, one.overflowed)
        self._tally.add(stretch.bytes_of_tensors, stretch.file.name)
        self.on_part()

    def _counted(self, stretch: Stretch, data: Bytes) -> Iterator[Finished]:
        """Yield what is finished, box by box: each record counts its own values that overflowed, as any may be lost."""
        for one, begin, end in takewhile(lambda _: not self._work.is_stopped, stretch.boxes()):
            made, output = data[begin - stretch.begin : end - stretch.begin], stretch.table.outputs[one.first]
            yield one._replace(overflowed=self.reader.recount(output, one.box or (), made))

    def _convert(self, task: Task) -> None:
        output, box = task.output, task.box
        data, overflowed = self.reader.read(output.view, box, output.dtype, self._region, self._placement(output, box))
        # Values that overflow are counted by the box, so such a box is on record whole or not at all.
        most = data.size if overflowed else WRITE_BYTES // output.dtype.itemsize
        begin = 0
        for part in box_parts(box, most):
            count = math.prod(box_shape(part))
            if self._work.is_stopped:
                return
            self._write(task, part, data[begin : begin + count], overflowed)
            begin += count

    def _placement(self, output: Output, box: Box) -> Placement | None:
        """Return how the sink wants the first run of a box to lie in memory."""
        run, starts = runs(box, output.view.shape)
        itemsize = output.dtype.itemsize
        return self._sink.placement(output.name, next(starts) * itemsize, run * itemsize)

    def _write(self, task: Task, part: Box, data: Bits, overflowed: int) -> None:
        finished = Finished(task.number, task.number + 1, part, overflowed)
        with self._record.writing((finished,), data.nbytes):
            file = _put(self._sink, task.output, part, data)
        self._tally.add_overflow(task.output.name, overflowed)
        self._tally.add(data.nbytes, file)
        self.on_part()


def _put(sink: Sink, output: Output, box: Box, data: Bits) -> str:
    """Give a box to the sink, contiguous run by contiguous run."""
    run, starts = runs(box, output.view.shape)
    itemsize = output.dtype.itemsize
    view, size, file = data.view(np.uint8).data, run * itemsize, ""
    for number, first in enumerate(starts):
        file = sink.put(output.name, first * itemsize, view[number * size : (number + 1) * size])
    return file
