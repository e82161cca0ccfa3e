"""Writing: boxes to their place in the output files, headers around them, blocks digested on the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import storage_error, storing
from ..formats.layout import FileLayout
from ..storage import access, disk
from ..storage.disk import ALIGNMENT
from ..storage.regions import phase
from ..tensors.refs import OutputFile, file_spans
from .blocks import Blocks
from .digests import BlockDigests
from .paths import ResultPaths


class WrittenPart(NamedTuple):
    """A part of a tensor that an earlier run wrote: bytes `begin` … `end` of it, in these runs (offset, length)."""

    begin: int
    end: int
    runs: Iterable[tuple[int, int]]


class ResumeState(Protocol):
    """What earlier runs left, and who is to know of the blocks that this one finishes."""

    def blocks(self, file: str) -> Blocks:
        """The finished blocks of a file."""
        ...

    def parts(self, tensor: str) -> Iterator[WrittenPart]:
        """What is written of a tensor."""
        ...

    def note_block(self, file: str, number: int, digest: bytes, crc: int) -> None:
        """Learn of a finished block."""
        ...


class OpenFile:
    """One output file being written, anew or on top of what an earlier run left of it.

    Args:
        path: where it lies.
        file: what it has to be.
        past: what an earlier run left.
        direct: write past the page cache what is long enough.
    """

    def __init__(self, path: Path, file: OutputFile, past: ResumeState, direct: bool = False) -> None:
        self.path = path
        self.file = file
        self.is_finishing = False
        self._lock = threading.Lock()
        self._descriptor: int | None = disk.open_file(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        self._direct = disk.open_direct(self._descriptor, os.O_WRONLY) if direct else None
        on_block = partial(past.note_block, file.name)
        self.digests = BlockDigests(file, past.blocks(file.name), self._read_back, self._write, on_block)
        try:
            if disk.fstat(self._open).st_size != file.size:
                disk.truncate(self._open, file.size)
            self._take_over(past)
            for offset, data in file.literals_between_slots():
                self.write(offset, data)
            self.digests.finish_ready()
        except BaseException:
            self.close()
            raise

    def _take_over(self, past: ResumeState) -> None:
        """Count what an earlier run wrote into blocks that it did not finish."""
        for name, extents in self.file.extents.items():
            for part in past.parts(name):
                whole = file_spans(extents, part.begin, part.end - part.begin)
                if not all(self.digests.finished_earlier(span.offset, span.high - span.low) for span in whole):
                    for offset, length in part.runs:
                        for span in file_spans(extents, offset, length):
                            self.digests.note_resumed(span.offset, span.high - span.low)

    @property
    def _open(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        return self._descriptor

    def write(self, offset: int, data: memoryview) -> None:
        """Put bytes in their place, but for those in blocks that an earlier run finished."""
        for low, high in self.digests.to_write(offset, len(data)):
            part, place = data[low:high], offset + low
            if self._direct is not None and self._goes_direct(place, part):
                behind = self.digests.digest(place, part)
                self._write(place, part[:behind])
                self._write_pages(self._direct, place + behind, part[behind:])
            else:
                self._write(place, part)
                self.digests.digest(place, part)
            self.digests.wrote(place, len(part))

    @staticmethod
    def _goes_direct(offset: int, data: memoryview) -> bool:
        """Whether the device can take it from where it lies in memory, and is worth a request."""
        return len(data) >= access.DIRECT_LEAST and phase(data) == offset % ALIGNMENT

    def _write_pages(self, direct: int, offset: int, data: memoryview) -> None:
        """Write whole pages past the page cache, and what is left of them at both ends through it."""
        low = min(-offset % ALIGNMENT, len(data))
        high = low + (len(data) - low) // ALIGNMENT * ALIGNMENT
        self._write(offset, data[:low])
        disk.write_pages(self._open, direct, data[low:high], offset + low)
        self._write(offset + high, data[high:])

    def _write(self, offset: int, data: memoryview) -> None:
        disk.write_all(self._open, data, offset)

    def _read_back(self, offset: int, length: int) -> bytes:
        return disk.read_up_to(self._open, length, offset)

    def finish(self) -> list[str]:
        """Make the complete file durable, and return the digests of its blocks."""
        disk.sync(self._open)
        disk.try_drop_cache(self._open)
        return self.digests.hexdigests()

    def sync(self) -> None:
        """Make durable what was written so far, and drop from the page cache what nobody comes back to."""
        with self._lock:
            if self._descriptor is not None:
                finished = self.digests.take_finished()
                disk.sync_data(self._descriptor)
                for offset, length in finished:
                    disk.try_drop_cache(self._descriptor, offset, length)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            descriptors = self._descriptor, self._direct
            self._descriptor = self._direct = None
        for descriptor in descriptors:
            if descriptor is not None:
                disk.close_quietly(descriptor)


class FileSink:
    """Writes tensors into the files of a layout. Used by several threads at once.

    Args:
        layout: where every byte goes.
        paths: where the files lie while they are built.
        past: what earlier runs left there.
        direct: write past the page cache what is long enough, and lies in memory as in the file.
    """

    def __init__(self, layout: FileLayout, paths: ResultPaths, past: ResumeState, direct: bool = False) -> None:
        self._paths = paths
        self._by_tensor = {name: file for file in layout.files for name in file.extents}
        self._open: dict[str, OpenFile] = {}
        self._lock = threading.Lock()
        self._has_new_names = False
        self.digests: dict[str, list[str]] = {}
        self._layout, self._past, self._direct = layout, past, direct

    def phase(self, name: str, offset: int, count: int) -> int | None:
        """How `count` bytes from `offset` of tensor `name` are to lie in memory, to be written past the page cache."""
        if not self._direct or count < access.DIRECT_LEAST:
            return None
        return next(file_spans(self._by_tensor[name].extents[name], offset, count)).offset % ALIGNMENT

    def put(self, name: str, offset: int, data: memoryview) -> str:
        """Write bytes `offset` … of tensor `name`.

        Raises:
            StorageError: the file system refuses them.
        """
        file = self._by_tensor[name]
        if file.name in self.digests:
            return file.name  # an earlier run wrote these bytes too, and was stopped before it noted that
        try:
            target = self._opened(file)
            for span in file_spans(file.extents[name], offset, len(data)):
                target.write(span.offset, data[span.low : span.high])
            if target.digests.complete:
                self._finish(target)
        except OSError as error:
            raise storage_error(error, "cannot write", self._path(file)) from error
        return file.name

    def sync(self) -> None:
        """Make durable all that was put so far.

        Raises:
            StorageError: the file system refuses.
        """
        with self._lock:
            targets, self._has_new_names, is_new = list(self._open.values()), False, self._has_new_names
        if is_new:
            with storing(self._paths.path):
                disk.sync_directory(self._paths.directory)
        for target in targets:
            with storing(target.path):
                target.sync()

    def finish(self) -> dict[str, list[str]]:
        """Make the rest durable (files without tensor bytes too), and give the digests of all blocks of all files.

        Raises:
            StorageError: the file system refuses.
        """
        for file in self._layout.files:
            if file.name not in self.digests:
                with storing(self._path(file)):
                    self._finish(self._opened(file))
        return {file.name: self.digests[file.name] for file in self._layout.files}

    def close(self) -> None:
        """Close all files."""
        for target in self._open.values():
            target.close()
        self._open.clear()

    def _opened(self, file: OutputFile) -> OpenFile:
        with self._lock:
            if file.name not in self._open:
                self._open[file.name] = OpenFile(self._path(file), file, self._past, self._direct)
                self._has_new_names = True
            return self._open[file.name]

    def _finish(self, target: OpenFile) -> None:
        with self._lock:
            if target.is_finishing:
                return
            target.is_finishing = True
        self.digests[target.file.name] = target.finish()
        # Not before: whoever syncs all open files counts on this one among them.
        with self._lock:
            del self._open[target.file.name]
        target.close()

    def _path(self, file: OutputFile) -> Path:
        return self._paths.file(file.name)
