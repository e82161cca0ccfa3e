"""Writing: boxes to their place in the output files, headers around them, blocks digested on the way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from .blocks import BlockLedger, ReadBack, SealedLedger
from .errors import storage_error
from .formats import ckpt
from .layout import Layout
from .tensors import OutputFile, overlaps


class OpenFile:
    """One output file being written."""

    def __init__(self, path: Path, file: OutputFile) -> None:
        self.path = path
        self.file = file
        body = file.size - (ckpt.CRC_TAIL_BYTES if file.crc_tail else 0)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.ledger = _ledger(body, file, self._read_back)
        try:
            os.ftruncate(self._descriptor, file.size)
            for offset, data in file.literals:
                self.write(offset, memoryview(data))
        except OSError:
            self.close()
            raise

    def write(self, offset: int, data: memoryview) -> None:
        """Put bytes in their place."""
        self._write(offset, data)
        self.ledger.wrote(offset, data)

    def _write(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], offset + done)

    def _read_back(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def finish(self) -> list[str]:
        """Add the CRCs that are wanted, make the file durable, and give the digests of its blocks."""
        if isinstance(self.ledger, SealedLedger):
            digests = self.ledger.seal(self._write)
        else:
            if self.file.crc_tail:
                tail = ckpt.crc_tail(self.ledger.total_crc())
                self._write(self.ledger.size, memoryview(tail))
                self.ledger.extend(len(tail))
            digests = self.ledger.ordered()
        os.fsync(self._descriptor)
        return digests

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


def _ledger(size: int, file: OutputFile, read_back: ReadBack) -> BlockLedger | SealedLedger:
    return SealedLedger(size, file.seals, read_back) if file.seals else BlockLedger(size, read_back, file.crc_tail)


class FileSink:
    """Writes tensors into the files of a layout. Used by several threads at once.

    Args:
        layout: where every byte goes.
        place: the directory to write in, or the file itself where the layout has just one and `single` is set.
        single: `place` is the file.
    """

    def __init__(self, layout: Layout, place: Path, single: bool) -> None:
        self._place, self._single = place, single
        self._by_tensor = {name: file for file in layout.files for name in file.extents}
        self._open: dict[str, OpenFile] = {}
        self._lock = threading.Lock()
        self.digests: dict[str, list[str]] = {}
        self._layout = layout

    def put(self, name: str, offset: int, data: memoryview) -> str:
        """Write bytes `offset` … of tensor `name`.

        Raises:
            StorageError: the file system refuses them.
        """
        file = self._by_tensor[name]
        try:
            target = self._opened(file)
            for place, low, high in pieces(file.extents[name], offset, len(data)):
                target.write(place, data[low:high])
            if target.ledger.complete:
                self._finish(target)
        except OSError as error:
            raise storage_error(error, "cannot write", self._path(file)) from error
        return file.name

    def finish(self) -> dict[str, list[str]]:
        """Make the rest durable (files without tensor bytes too), and give the digests of all blocks of all files.

        Raises:
            StorageError: the file system refuses.
        """
        for file in self._layout.files:
            if file.name not in self.digests:
                try:
                    self._finish(self._opened(file))
                except OSError as error:
                    raise storage_error(error, "cannot write", self._path(file)) from error
        return {file.name: self.digests[file.name] for file in self._layout.files}

    def close(self) -> None:
        """Let go of all files."""
        for target in self._open.values():
            target.close()
        self._open.clear()

    def _opened(self, file: OutputFile) -> OpenFile:
        with self._lock:
            if file.name not in self._open:
                self._open[file.name] = OpenFile(self._path(file), file)
            return self._open[file.name]

    def _finish(self, target: OpenFile) -> None:
        with self._lock:
            if self._open.pop(target.file.name, None) is None:
                return
        try:
            self.digests[target.file.name] = target.finish()
        finally:
            target.close()

    def _path(self, file: OutputFile) -> Path:
        return self._place if self._single else self._place / file.name


def pieces(extents: tuple[tuple[int, int], ...], offset: int, count: int) -> list[tuple[int, int, int]]:
    """Where `count` bytes from `offset` of a tensor go: (place in the file, low, high), low … high of those bytes."""
    found = overlaps((length for _, length in extents), offset, count)
    return [(extents[number][0] + inside, low, high) for number, inside, low, high in found]
