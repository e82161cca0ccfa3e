"""The output files that are being written: as many of them open as the process may have open."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from ..storage import limits
from ..tensors.refs import OutputFile
from .file_writer import FileWriter

_TOO_MANY = (errno.EMFILE, errno.ENFILE)


class OpenWriters:
    """Opens files when they are written to, and closes those that were not for the longest time. Used by threads.

    A file that is closed for another is durable first, so that nobody opens it again for that.

    Args:
        begin: opens a file for the first time.
    """

    def __init__(self, begin: Callable[[OutputFile], FileWriter]) -> None:
        self._begin = begin
        self._most = limits.result_files()
        self._lock = threading.Lock()
        self._begun: dict[str, FileWriter] = {}
        # Of these, what is open: first what was used longest ago.
        self._open: dict[str, FileWriter] = {}
        self._new_folders: set[Path] = set()

    @contextmanager
    def using(self, file: OutputFile) -> Iterator[FileWriter]:
        """Give the file, open until the block ends.

        Raises:
            OSError: it cannot be opened, or another one not be made durable.
        """
        target = self._entered(file)
        try:
            with self._lock:
                self._open.pop(file.name, None)
                self._open[file.name] = target
                is_full = len(self._open) > self._most
            if is_full:
                self._park_one()
            yield target
        finally:
            target.leave()

    def begun(self) -> tuple[list[FileWriter], Set[Path]]:
        """Return the files that are not complete, and the folders in which files are new since the last call."""
        with self._lock:
            folders, self._new_folders = self._new_folders, set()
            return list(self._begun.values()), folders

    def drop(self, target: FileWriter) -> None:
        """Close a file that is complete and durable."""
        with self._lock:
            del self._begun[target.file.name]
            self._open.pop(target.file.name, None)
        target.close()

    def close(self) -> None:
        """Close all files."""
        for target in self._begun.values():
            target.close()
        self._begun.clear()
        self._open.clear()

    def _entered(self, file: OutputFile) -> FileWriter:
        while True:
            try:
                target = self._of(file)
                target.enter()
            except OSError as error:
                if error.errno not in _TOO_MANY or not self._park_one():
                    raise
            else:
                return target

    def _of(self, file: OutputFile) -> FileWriter:
        with self._lock:
            if file.name not in self._begun:
                target = self._begun[file.name] = self._begin(file)
                self._new_folders.add(target.path.parent)
            return self._begun[file.name]

    def _park_one(self) -> bool:
        """Close the file that was not used for the longest time, if there is one that nobody uses."""
        for _ in range(len(self._open)):
            with self._lock:
                name = next(iter(self._open), None)
                target = self._open.pop(name) if name is not None else None
            if target is None:
                return False
            if target.park():
                return True
            with self._lock:
                self._open.setdefault(target.file.name, target)
        return False
