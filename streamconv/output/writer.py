"""Write boxes to their place in the output files."""

from __future__ import annotations

import threading
from pathlib import Path

from ..errors import storing
from ..formats.layout import FileLayout
from ..storage import disk
from ..storage.access import Access
from ..storage.device import placement_to_write
from ..storage.regions import Placement
from ..tensors.refs import Home, OutputFile, file_spans, files_by_tensor, home_of
from .file_writer import FileWriter, ResumeState
from .open_writers import OpenWriters
from .paths import ResultPaths


class FileSink:
    """Writes tensors into the files of a layout. Used by several threads at once.

    Args:
        layout: where every byte goes; a tensor may go into several files.
        paths: where the files lie while they are built.
        past: what earlier runs left there.
        access: how they are written.
    """

    def __init__(self, layout: FileLayout, paths: ResultPaths, past: ResumeState, access: Access = Access.READ) -> None:
        self._paths = paths
        self._by_tensor = files_by_tensor(layout.files)
        self._open = OpenWriters(lambda file: FileWriter(self._path(file), file, past, access))
        self._lock = threading.Lock()
        self.digests: dict[str, list[str]] = {}
        self._layout, self._access = layout, access

    def placement(self, name: str, offset: int, count: int) -> Placement | None:
        """Return how bytes of a tensor should lie in memory, `None` where it does not matter.

        Args:
            name: the tensor.
            offset, count: which of its bytes.
        """
        span = next(file_spans(self._by_tensor[name][0].extents[name], offset, count))
        return self.placement_in_file(span.offset, count)

    def placement_in_file(self, offset: int, count: int) -> Placement | None:
        """Return how bytes that belong at `offset` of a file should lie in memory, `None` where it does not matter."""
        return placement_to_write(offset, count) if self._access.is_direct else None

    def home(self, name: str) -> Home | None:
        """Return where a tensor lies; `None` where that is in several files, or in pieces."""
        return home_of(name, self._by_tensor[name])

    def write(self, file: OutputFile, offset: int, data: memoryview) -> None:
        """Write bytes at `offset` of a file, of whichever tensors they are.

        Raises:
            StorageError: the file system refuses them.
        """
        # Where it is complete, an earlier run wrote these bytes too, and was stopped before it noted that.
        if file.name not in self.digests:
            with storing(self._path(file)), self._open.using(file) as target:
                target.write(offset, data)
                if target.digests.complete:
                    self._finish(target)

    def put(self, name: str, offset: int, data: memoryview) -> str:
        """Write bytes `offset` … of tensor `name` into every file that holds it.

        Returns:
            The name of the first of them.

        Raises:
            StorageError: the file system refuses them.
        """
        files = self._by_tensor[name]
        for file in files:
            for span in file_spans(file.extents[name], offset, len(data)):
                self.write(file, span.offset, data[span.low : span.high])
        return files[0].name

    def sync(self) -> None:
        """Make durable all that was put so far.

        Raises:
            StorageError: the file system refuses.
        """
        targets, folders = self._open.begun()
        for folder in folders:
            with storing(folder):
                disk.sync_directory(folder)
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
                with storing(self._path(file)), self._open.using(file) as target:
                    self._finish(target)
        self.sync()
        return {file.name: self.digests[file.name] for file in self._layout.files}

    def close(self) -> None:
        """Close all files."""
        self._open.close()

    def _finish(self, target: FileWriter) -> None:
        with self._lock:
            if target.is_finishing:
                return
            target.is_finishing = True
        self.digests[target.file.name] = target.finish()
        # Not before: whoever syncs all open files counts on this one among them.
        self._open.drop(target)

    def _path(self, file: OutputFile) -> Path:
        return self._paths.file(file.name)
