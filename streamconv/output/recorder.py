"""The recorder: a thread that makes durable what the workers wrote, records it, and slows the workers down.

Where the system refuses the thread, the workers do it.

At no time are more bytes than `most_unrecorded` written and not recorded: that is what a kill or a power cut can cost.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from ..errors import StreamconvError
from ..planning.outputs import Finished
from ..tensors.grids import Box
from ..units import BLOCK
from .blocks import Blocks
from .file_writer import WrittenPart
from .journal import DoneBoxes, Journal

#: Bytes written and not recorded, at most: so many, and for each worker so many more.
MAX_UNRECORDED = 64 << 20
MAX_UNRECORDED_OF_WORKER = 2 * BLOCK

#: Bytes, and seconds, after which what was written is recorded.
BATCH = 32 << 20
PAUSE = 0.5


def most_unrecorded(workers: int) -> int:
    """Return how many bytes may be written and not recorded.

    Each worker has a block that it writes, and one that waits to be recorded: with less, all wait for each sync.
    """
    return MAX_UNRECORDED + workers * MAX_UNRECORDED_OF_WORKER


class Scope(Protocol):
    """The part of a result that a run writes, where it does not write all of it."""

    @property
    def outputs(self) -> Iterable[int]:
        """The numbers of the outputs that it has something of, ascending."""
        ...

    def blocks(self, file: str) -> range:
        """Return which blocks of a file it has."""
        ...

    def clip(self, number: int, box: Box) -> Iterable[Box]:
        """Yield what it has of a box of an output."""
        ...

    def is_shared(self, number: int, box: Box) -> bool:
        """Return whether the box is an element that lies in another part too, so that neither writes all of it."""
        ...


class Recorder:
    """Keeps the journal of a run.

    Args:
        journal: the journal.
        done: what it says that earlier runs left.
        numbers: the files' numbers in the layout.
        scope: what is written, where that is not the whole result.
    """

    def __init__(self, journal: Journal, done: DoneBoxes, numbers: dict[str, int], scope: Scope | None = None) -> None:
        self.durable_bytes = done.nbytes
        self.overflowed = done.overflowed
        self._journal, self._done, self._numbers, self._scope = journal, done, numbers, scope
        self._sync: Callable[[], None] = lambda: None
        self._most = MAX_UNRECORDED
        self._batch: list[object] = []
        self._batch_bytes = 0
        self._unsafe = 0
        self._waiting = 0
        self._flushed = time.monotonic()
        self._has_thread = True
        self._error: BaseException | None = None
        self._is_stopped = False
        self._changed = threading.Condition()
        self._flushing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="streamconv-recorder", daemon=True)

    @contextmanager
    def recording(self, sync: Callable[[], None], workers: int = 1) -> Iterator[None]:
        """Record what is written in the block, all of it by its end.

        Args:
            sync: makes durable all that was written so far.
            workers: how many threads write.

        Raises:
            StorageError: something could not be made durable, or not be recorded.
        """
        self._sync, self._most = sync, most_unrecorded(workers)
        try:
            self._thread.start()
        except RuntimeError:
            self._has_thread = False
        try:
            yield
        except BaseException:
            with suppress(StreamconvError):
                self._stop()
            raise
        self._stop()

    def _stop(self) -> None:
        """Record the rest and end."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if self._has_thread:
            self._thread.join()
        self._flush()
        self._raise()

    # -- called by the workers -----------------------------------------------------------------------------------------

    def outputs(self, count: int) -> Iterable[int]:
        """Return the numbers, below `count`, of the outputs that are written."""
        return self._done.unfinished() if self._scope is None else self._scope.outputs

    @property
    def is_empty(self) -> bool:
        """Whether all outputs are written by this run alone, and none was before."""
        return self._scope is None and self._done.is_empty

    def left(self, number: int, box: Box) -> Iterable[Box]:
        """Return what no earlier run wrote of a box of an output."""
        mine = [box] if self._scope is None else self._scope.clip(number, box)
        return [left for part in mine for left in self._done.left(number, part)]

    def is_shared(self, number: int, box: Box) -> bool:
        """Return whether a box is an element that lies in another part too, so that neither records it."""
        return self._scope is not None and self._scope.is_shared(number, box)

    @contextmanager
    def writing(self, finished: Sequence[Finished], count: int) -> Iterator[None]:
        """Surround the writing of `count` bytes; wait first while too much is not recorded.

        Args:
            finished: what is finished when they are written.
            count: how many they are.

        Raises:
            StorageError: something could not be made durable.
        """
        self._admit(count)
        try:
            yield
        except BaseException:
            with self._changed:
                self._unsafe -= count
            raise
        with self._changed:
            if self._are_shared(finished):
                self._unsafe -= count
                return
            self._batch += map(_record, finished)
            self._batch_bytes += count
            self._notify()
        self._flush_here()

    def _are_shared(self, finished: Sequence[Finished]) -> bool:
        """Return whether this is an element that lies in another part too: such a one is written by itself."""
        first, *others = finished
        return not others and first.box is not None and self.is_shared(first.first, first.box)

    def _admit(self, count: int) -> None:
        if not self._has_room(count):
            self._flush_here()
        with self._changed:
            if not self._has_room(count):
                self._waiting += 1
                self._notify()
                self._changed.wait_for(lambda: self._has_room(count))
                self._waiting -= 1
            self._raise()
            self._unsafe += count

    def _flush_here(self) -> None:
        """Do the work of the thread, where there is none."""
        if not self._has_thread and (self._is_due() or time.monotonic() - self._flushed >= PAUSE):
            self._flush()

    def _has_room(self, count: int) -> bool:
        return self._error is not None or not self._unsafe or self._unsafe + count <= self._most

    def blocks(self, file: str) -> Blocks:
        """Return the finished blocks of a file."""
        return self._done.blocks(file)

    def mine(self, file: str) -> range | None:
        """Return the blocks of a file that are written, `None` for all."""
        return None if self._scope is None else self._scope.blocks(file)

    def parts(self, tensor: str) -> Iterator[WrittenPart]:
        """Yield what earlier runs wrote of a tensor."""
        return self._done.parts(tensor)

    def note_block(self, file: str, number: int, digest: bytes, crc: int) -> None:
        """Note that a block is finished."""
        with self._changed:
            self._batch.append(["block", self._numbers[file], number, digest.hex(), crc])

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_stopped and self._error is None:
            with self._changed:
                self._changed.wait_for(self._is_due, PAUSE)
            self._flush()

    def _is_due(self) -> bool:
        full = self._batch_bytes >= BATCH or (self._waiting and self._batch_bytes)
        return bool(self._is_stopped or full)

    def _notify(self) -> None:
        if self._is_due():
            self._changed.notify_all()

    def _flush(self) -> None:
        """Make the data durable, then append the records that describe it."""
        with self._flushing:
            with self._changed:
                batch, count = self._batch, self._batch_bytes
                self._batch, self._batch_bytes, self._flushed = [], 0, time.monotonic()
            if not batch:
                return
            try:
                self._sync()
                with _uninterrupted():
                    self._journal.append(batch)
                    self._note_durable(count)
            except BaseException as error:
                with self._changed:
                    self._error = self._error or error
                    self._changed.notify_all()

    def _note_durable(self, count: int) -> None:
        with self._changed:
            self._unsafe -= count
            self.durable_bytes += count
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _record(finished: Finished) -> object:
    if finished.box is None:
        return ["outputs", finished.first, finished.stop]
    return ["box", finished.first, finished.box, finished.overflowed]


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back what stops a run: in the main thread it would stop what is on record from being counted."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
