"""Writing: boxes to their place in the output files, headers around them, blocks digested on the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import storage_error, storing
from ..formats import ckpt
from ..formats.layout import FileLayout
from ..storage import access, disk
from ..storage.disk import ALIGNMENT
from ..storage.regions import phase
from ..tensors.refs import OutputFile, overlaps
from .blocks import BlockLedger, Blocks, OnBlock, ReadBack, SealedLedger


class Part(NamedTuple):
    """A part of a tensor that an earlier run wrote: bytes `begin` … `end` of it, in these runs (offset, length)."""

    begin: int
    end: int
    runs: Iterable[tuple[int, int]]


class Past(Protocol):
    """What earlier runs left, and who is to know of the blocks that this one finishes."""

    def blocks(self, file: str) -> Blocks:
        """The finished blocks of a file."""
        ...

    def parts(self, tensor: str) -> Iterator[Part]:
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

    def __init__(self, path: Path, file: OutputFile, past: Past, direct: bool = False) -> None:
        self.path = path
        self.file = file
        self.is_finishing = False
        self._lock = threading.Lock()
        body = file.size - (ckpt.CRC_TAIL_BYTES if file.crc_tail else 0)
        self._descriptor: int | None = disk.open_file(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        self._direct = disk.open_direct(self._descriptor, os.O_WRONLY) if direct else None
        on_block = partial(past.note_block, file.name)
        self.ledger = _ledger(body, file, past.blocks(file.name), self._read_back, on_block)
        try:
            if disk.fstat(self._open).st_size != file.size:
                disk.truncate(self._open, file.size)
            self._take_over(past)
            for offset, data in file.literals:
                self.write(offset, memoryview(data))
        except BaseException:
            self.close()
            raise

    def _take_over(self, past: Past) -> None:
        """Count what an earlier run wrote into blocks that it did not finish."""
        for name, extents in self.file.extents.items():
            for part in past.parts(name):
                spread = pieces(extents, part.begin, part.end - part.begin)
                if not all(self.ledger.has(at, high - low) for at, low, high in spread):
                    for offset, length in part.runs:
                        for at, low, high in pieces(extents, offset, length):
                            self.ledger.held(at, high - low)

    @property
    def _open(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        return self._descriptor

    def write(self, offset: int, data: memoryview) -> None:
        """Put bytes in their place, but for those in blocks that an earlier run finished."""
        for low, high in self.ledger.wanted(offset, len(data)):
            part, place = data[low:high], offset + low
            if self._direct is not None and self._goes_direct(place, part):
                behind = self.ledger.digest(place, part)
                self._write(place, part[:behind])
                self._write_pages(self._direct, place + behind, part[behind:])
            else:
                self._write(place, part)
                self.ledger.digest(place, part)
            self.ledger.wrote(place, len(part))

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
        """Add the CRCs that are wanted, make the file durable, and give the digests of its blocks."""
        if isinstance(self.ledger, SealedLedger):
            digests = self.ledger.seal(self._write)
        else:
            if self.file.crc_tail:
                tail = ckpt.crc_tail(self.ledger.total_crc())
                self._write(self.ledger.size, memoryview(tail))
                self.ledger.extend(len(tail))
            digests = self.ledger.ordered()
        disk.sync(self._open)
        disk.try_drop_cache(self._open)
        return digests

    def sync(self) -> None:
        """Make durable what was written so far, and drop from the page cache what nobody comes back to."""
        with self._lock:
            if self._descriptor is not None:
                finished = self.ledger.fresh()
                disk.sync_data(self._descriptor)
                for offset, length in finished:
                    disk.try_drop_cache(self._descriptor, offset, length)

    def close(self) -> None:
        """Let go of it."""
        with self._lock:
            descriptors = self._descriptor, self._direct
            self._descriptor = self._direct = None
        for descriptor in descriptors:
            if descriptor is not None:
                disk.close_quietly(descriptor)


def _ledger(
    size: int, file: OutputFile, blocks: Blocks, read_back: ReadBack, on_block: OnBlock
) -> BlockLedger | SealedLedger:
    if file.seals:
        return SealedLedger(size, file.seals, read_back)
    return BlockLedger(size, blocks, read_back, file.crc_tail, on_block)


class FileSink:
    """Writes tensors into the files of a layout. Used by several threads at once.

    Args:
        layout: where every byte goes.
        place: the directory to write in, or the file itself where the layout has just one and `single` is set.
        single: `place` is the file.
        past: what earlier runs left there.
        direct: write past the page cache what is long enough, and lies in memory as in the file.
    """

    def __init__(self, layout: FileLayout, place: Path, single: bool, past: Past, direct: bool = False) -> None:
        self._place, self._single = place, single
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
        return pieces(self._by_tensor[name].extents[name], offset, count)[0][0] % ALIGNMENT

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
            for place, low, high in pieces(file.extents[name], offset, len(data)):
                target.write(place, data[low:high])
            if target.ledger.complete:
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
            with storing(self._place):
                disk.sync_directory(self._place.parent if self._single else self._place)
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
        """Let go of all files."""
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
        return self._place if self._single else self._place / file.name


def pieces(extents: tuple[tuple[int, int], ...], offset: int, count: int) -> list[tuple[int, int, int]]:
    """Where `count` bytes from `offset` of a tensor go: (place in the file, low, high), low … high of those bytes."""
    found = overlaps((length for _, length in extents), offset, count)
    return [(extents[number][0] + inside, low, high) for number, inside, low, high in found]
