"""One output file being written: its boxes, headers and digests, on top of what an earlier run left."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from ..storage.access import Access
from ..storage.device import ResultFile
from ..tensors.refs import OutputFile, file_spans
from .blocks import Blocks
from .digests import BlockDigests


class WrittenPart(NamedTuple):
    """A part of a tensor that an earlier run wrote: bytes `begin` … `end` of it, in these runs (offset, length)."""

    begin: int
    end: int
    runs: Iterable[tuple[int, int]]


class ResumeState(Protocol):
    """State of an interrupted run, and the listener for blocks finished by this one."""

    def blocks(self, file: str) -> Blocks:
        """Return the finished blocks of a file."""
        ...

    def mine(self, file: str) -> range | None:
        """Return the blocks of a file that this run writes, `None` for all: others may write the rest of it."""
        ...

    def parts(self, tensor: str) -> Iterator[WrittenPart]:
        """Yield what is written of a tensor."""
        ...

    def note_block(self, file: str, number: int, digest: bytes, crc: int) -> None:
        """Take note of a finished block."""
        ...


class FileWriter:
    """One output file being written, from the start or on top of what an earlier run left.

    Args:
        path: where it lies.
        file: what it has to be.
        past: what an earlier run left.
        access: how it is written.
    """

    def __init__(self, path: Path, file: OutputFile, past: ResumeState, access: Access = Access.READ) -> None:
        self.path = path
        self.file = file
        self.is_finishing = False
        self._is_dirty = self._is_lost = False
        self._users = 0
        # Who syncs holds the one, who enters or leaves the other: a sync takes long, and others write meanwhile.
        self._syncing, self._lock = threading.Lock(), threading.Lock()
        mine = past.mine(file.name)
        # What others write to as well was made before, and must not be made again where it is gone by now.
        self._open = ResultFile(path, access, create=mine is None)
        on_block = partial(past.note_block, file.name)
        self.digests = BlockDigests(file, past.blocks(file.name), self._open.read, self._write, on_block, mine)
        try:
            self._set_size(is_shared=mine is not None)
            for offset, data in self.digests.head():
                self.write(offset, data)
            self._take_over(past)
            self.digests.finish_ready()
        except BaseException:
            self.close()
            raise

    def _set_size(self, is_shared: bool) -> None:
        if not is_shared:
            self._open.set_size(self.file.size)
        elif self._open.size() != self.file.size:
            raise OSError(errno.EIO, "it no longer has the size that it was made with")

    def _take_over(self, past: ResumeState) -> None:
        """Note what an earlier run wrote into blocks that it did not finish."""
        for name, extents in self.file.extents.items():
            for part in past.parts(name):
                whole = file_spans(extents, part.begin, part.end - part.begin)
                if not all(self.digests.finished_earlier(span.offset, span.high - span.low) for span in whole):
                    for offset, length in part.runs:
                        for span in file_spans(extents, offset, length):
                            self.digests.note_resumed(span.offset, span.high - span.low)

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at `offset`, but for those in blocks that an earlier run finished."""
        for low, high in self.digests.to_write(offset, len(data)):
            part, place = data[low:high], offset + low
            self._write(place, part, self.digests.digest(place, part))
            self.digests.wrote(place, len(part))

    def _write(self, offset: int, data: memoryview, cached: int = 0) -> None:
        self._open.write(offset, data, cached)
        # Not before: whoever syncs in the meantime forgets it.
        self._is_dirty = True

    def finish(self) -> list[str]:
        """Make the complete file durable, and return the digests of its blocks."""
        self._open.sync()
        self._open.try_drop_cache()
        return self.digests.hexdigests()

    def sync(self) -> None:
        """Make durable what was written so far, and drop finished blocks from the page cache: nobody reads them."""
        with self._syncing:
            self._sync()

    def _sync(self) -> None:
        if self._is_lost:
            raise OSError(errno.EIO, "it was not kept")
        if self._is_dirty and self._open.is_open:
            finished = self.digests.take_finished()
            self._is_dirty, self._is_lost = False, True  # until it is known that nothing is: nobody asks twice
            self._open.sync_data()
            self._is_lost = False
            for offset, length in finished:
                self._open.try_drop_cache(offset, length)

    def enter(self) -> None:
        """Open the file, unless it is open, and keep it so until `leave`."""
        with self._lock:
            if not self._open.is_open and not self.is_finishing:
                self._open.reopen()
            self._users += 1

    def leave(self) -> None:
        """Let others close the file."""
        with self._lock:
            self._users -= 1

    def park(self) -> bool:
        """Make durable what was written, and close the file until it is entered again; return whether nobody is in."""
        with self._syncing, self._lock:
            if self._users:
                return False
            self._sync()
            self._open.close()
            return True

    def close(self) -> None:
        """Close the file."""
        with self._syncing, self._lock:
            self._open.close()
