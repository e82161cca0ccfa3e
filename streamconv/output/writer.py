"""Write boxes to their place in the output files, and headers around them; digest blocks on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import storage_error, storing
from ..formats.layout import FileLayout
from ..storage import disk
from ..storage.device import ResultFile, placement_to_write
from ..storage.regions import Placement
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
    """State of an interrupted run, and the listener for blocks finished by this one."""

    def blocks(self, file: str) -> Blocks:
        """Return the finished blocks of a file."""
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
        direct: write past the page cache what is long enough.
    """

    def __init__(self, path: Path, file: OutputFile, past: ResumeState, direct: bool = False) -> None:
        self.path = path
        self.file = file
        self.is_finishing = False
        self._lock = threading.Lock()
        self._open = ResultFile(path, direct)
        on_block = partial(past.note_block, file.name)
        self.digests = BlockDigests(file, past.blocks(file.name), self._open.read, self._open.write, on_block)
        try:
            self._open.set_size(file.size)
            self._take_over(past)
            for offset, data in file.literals_between_slots():
                self.write(offset, data)
            self.digests.finish_ready()
        except BaseException:
            self.close()
            raise

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
            self._open.write(place, part, cached=self.digests.digest(place, part))
            self.digests.wrote(place, len(part))

    def finish(self) -> list[str]:
        """Make the complete file durable, and return the digests of its blocks."""
        self._open.sync()
        self._open.try_drop_cache()
        return self.digests.hexdigests()

    def sync(self) -> None:
        """Make durable what was written so far, and drop finished blocks from the page cache: nobody reads them."""
        with self._lock:
            if self._open.is_open:
                finished = self.digests.take_finished()
                self._open.sync_data()
                for offset, length in finished:
                    self._open.try_drop_cache(offset, length)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._open.close()


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
        self._open: dict[str, FileWriter] = {}
        self._lock = threading.Lock()
        self._has_new_names = False
        self.digests: dict[str, list[str]] = {}
        self._layout, self._past, self._direct = layout, past, direct

    def placement(self, name: str, offset: int, count: int) -> Placement | None:
        """Return how bytes of a tensor should lie in memory, `None` where it does not matter.

        Args:
            name: the tensor.
            offset, count: which of its bytes.
        """
        if not self._direct:
            return None
        span = next(file_spans(self._by_tensor[name].extents[name], offset, count))
        return placement_to_write(span.offset, count)

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
        """Make the rest durable, files without tensor bytes too; return the digests of all blocks of all files.

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

    def _opened(self, file: OutputFile) -> FileWriter:
        with self._lock:
            if file.name not in self._open:
                self._open[file.name] = FileWriter(self._path(file), file, self._past, self._direct)
                self._has_new_names = True
            return self._open[file.name]

    def _finish(self, target: FileWriter) -> None:
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
