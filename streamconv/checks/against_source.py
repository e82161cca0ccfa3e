"""Compare a checkpoint with what its source gives, byte by byte."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

import numpy as np
from isal import isal_zlib
from msgspec import Struct
from msgspec.structs import replace

from ..engine.budget import MIB, WORKER_OVERHEAD, Budget
from ..engine.tasks import BoxFilter
from ..errors import SourceError, VerificationError, allocating, reading
from ..formats.layout import FileLayout
from ..output.paths import ResultPaths
from ..storage import limits
from ..storage.access import Access
from ..storage.in_order import in_order
from ..storage.regions import Placement, Region
from ..tensors.grids import Box
from ..tensors.refs import FileSpan, Home, OutputFile, file_spans, files_by_tensor, home_of
from ..text import quote
from ..units import BLOCK, CHUNK
from .open_results import OpenResults, access_to, are_same_file
from .sample import Sample

_CONVERT_AGAIN = "convert again"
# Of a worker's region, the share that what it reads back has, and the most of that.
_SHARE, _MOST_READ_BACK = 16, 8 * MIB
# Workers of a comparison where nothing else was asked, and the least region that each must have then.
_WORKERS, _LEAST_REGION = 4, 32 * MIB
# Threads that read for a checksum.
_THREADS = 3
_STEP = 1 << 18


class ReadingBack(Struct, frozen=True):
    """How a comparison reads the result.

    Attributes:
        io: a word that `access.check_io` accepts.
        nbytes: bytes that each worker reads at a time, and has memory for.
    """

    io: str = "auto"
    nbytes: int = CHUNK


_IN_CHUNKS = ReadingBack()


def with_more_workers(budget: Budget) -> Budget:
    """Return a budget of the same memory with as many workers as keep a disk busy, where it has large regions for them.

    A worker that compares waits for the disk most of its time, of which there may be more than cores.
    """
    workers = max(budget.workers, min(_WORKERS, limits.most_workers()))
    room = (budget.memory_limit - budget.base) // workers
    region_bytes = min(budget.region_bytes, (room - WORKER_OVERHEAD) // 2 // MIB * MIB)
    enough = region_bytes >= _LEAST_REGION
    return replace(budget, workers=workers, region_bytes=region_bytes) if enough else budget


def sharing_memory(budget: Budget, io: str) -> tuple[Budget, ReadingBack]:
    """Return a budget whose workers have room for what they read back, and how much that is.

    A chunk has its place in what a worker has besides its regions; more is taken from those.

    Args:
        budget: how memory is divided.
        io: a word that `access.check_io` accepts.
    """
    nbytes = min(_MOST_READ_BACK, budget.region_bytes // _SHARE) // MIB * MIB
    if nbytes <= CHUNK:
        return budget, ReadingBack(io)
    return replace(budget, region_bytes=budget.region_bytes - nbytes // 2), ReadingBack(io, nbytes)


def chosen_boxes(layout: FileLayout, sample: Sample) -> BoxFilter:
    """Return which boxes are compared: the sample's, and the first one of a tensor of each file."""
    firsts = set()
    for file in layout.files:
        names = [name for name, extents in file.extents.items() if any(length for _, length in extents)]
        if names:
            firsts.add(names[sample.one_of(len(names), file.name)])

    def chosen(number: int, name: str, box: Box) -> bool:
        return sample.takes(number) or (name in firsts and not any(low for low, _ in box))

    return chosen


class CompareSink:
    """Compares the boxes of a conversion with files that exist already.

    Sizes, headers and indices are compared when it is made, in full. It and `put` raise `VerificationError` where a
    byte differs; the message names file, tensor and byte.

    Args:
        layout: what the files have to be.
        paths: where they lie.
        way: how they are read.
        mine: the blocks of a file, by its name, that are compared, where others compare the rest of it and all that is
            compared in full.
    """

    def __init__(
        self,
        layout: FileLayout,
        paths: ResultPaths,
        way: ReadingBack = _IN_CHUNKS,
        mine: Callable[[str], range] | None = None,
    ) -> None:
        self._paths, self._mine, self._nbytes = paths, mine, way.nbytes
        # Small requests past the page cache are slower than through it, which reads ahead.
        is_large = way.nbytes > CHUNK
        self._open = OpenResults(access_to(way.io, map(paths.file, layout.names)) if is_large else Access.READ)
        self._regions = threading.local()
        self._files = [one for file in layout.files for one in (file, *_apart(file, paths))]
        self._by_tensor = files_by_tensor(self._files)
        texts = (OutputFile(name, len(text), ((0, text),), {}) for name, text in layout.texts.items())
        try:
            for file in () if mine else (*self._files, *texts):
                self._check_frame(file)
        except BaseException:
            self.close()
            raise
        # The workers' own are in the budget; this thread's is needed no longer.
        self._regions = threading.local()

    def placement(self, name: str, offset: int, count: int) -> Placement | None:
        """Return `None`: bytes that are compared may lie anywhere in memory."""
        return None

    def placement_in_file(self, offset: int, count: int) -> Placement | None:
        """Return `None`: bytes that are compared may lie anywhere in memory."""
        return None

    def home(self, name: str) -> Home | None:
        """Return where a tensor lies; `None` where that is in several files, or in pieces."""
        return home_of(name, self._by_tensor[name])

    def write(self, file: OutputFile, offset: int, data: memoryview) -> None:
        """Compare bytes at `offset` of a file, of whichever tensors they are."""
        for span in self._compared(file, [FileSpan(offset, 0, len(data))]):
            self._compare(file, span.offset, data[span.low : span.high])

    def put(self, name: str, offset: int, data: memoryview) -> str:
        """Compare bytes `offset` … of tensor `name`."""
        files = self._by_tensor[name]
        for file in files:
            for span in self._compared(file, file_spans(file.extents[name], offset, len(data))):
                self._compare(file, span.offset, data[span.low : span.high])
        return files[0].name

    def _compared(self, file: OutputFile, spans: Iterable[FileSpan]) -> Iterator[FileSpan]:
        """Yield what is compared of these bytes of a file."""
        if self._mine is None:
            yield from spans
            return
        blocks = self._mine(file.name)
        for span in spans:
            low = max(span.offset, blocks.start * BLOCK)
            high = min(span.offset + span.high - span.low, blocks.stop * BLOCK)
            if low < high:
                yield FileSpan(low, span.low + low - span.offset, span.low + high - span.offset)

    def finish(self) -> None:
        """Compare the checksums, of bytes that are verified by now. Not for samples: their bytes are not all verified.

        Raises:
            VerificationError: one differs.
        """
        for file in self._files:
            for slot in file.slots:
                expected = memoryview(slot.encode(self._crc(file, slot.begin, slot.end)))
                for at in slot.at:
                    self._compare(file, at, expected, f"the CRC of bytes {slot.begin} to {slot.end}")

    def _crc(self, file: OutputFile, begin: int, end: int) -> int:
        def crc_of(at: int) -> tuple[int, int]:
            found = self._read(file, at, min(self._nbytes, end - at))
            return isal_zlib.crc32(found), len(found)

        crc = 0
        with allocating(), closing(in_order(range(begin, end, self._nbytes), [crc_of] * _THREADS)) as found:
            for one, length in found:
                crc = isal_zlib.crc32_combine(crc, one, length)
        return crc

    def close(self) -> None:
        """Close the files, and drop them from the page cache."""
        self._open.close()

    def _check_frame(self, file: OutputFile) -> None:
        place = self._paths.file(file.name)
        try:
            with reading(place):
                size = self._open.size(place)
        except SourceError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise VerificationError(f"{quote(place)} is missing", _CONVERT_AGAIN) from error
            raise
        if size != file.size:
            raise VerificationError(f"{quote(place)} has {size} bytes, but should have {file.size}", _CONVERT_AGAIN)
        for offset, data in file.literals_between_slots():
            self._compare(file, offset, data, "a header" if file.extents else "the index")

    def _compare(self, file: OutputFile, offset: int, expected: memoryview, what: str = "") -> None:
        """Compare bytes of a file; `what` they are, where not tensors'."""
        for low in range(0, len(expected), self._nbytes):
            wanted = expected[low : low + self._nbytes]
            first = _first_difference(self._read(file, offset + low, len(wanted)), wanted)
            if first is not None:
                path, at = quote(self._paths.file(file.name)), offset + low + first
                place = f"in {what}" if what else _in_tensor(file, at)
                raise VerificationError(
                    f"{path} differs from the source's conversion at byte {at} of the file ({place})",
                    _CONVERT_AGAIN,
                )

    def _read(self, file: OutputFile, offset: int, length: int) -> memoryview:
        """Read into this thread's region; the bytes are valid until it reads again."""
        if not hasattr(self._regions, "own"):
            self._regions.own = Region(self._nbytes)
        place = self._paths.file(file.name)
        with reading(place):
            return self._open.read(place, offset, length, self._regions.own)


def _first_difference(found: memoryview, wanted: memoryview) -> int | None:
    """Return where two stretches of bytes differ first, or the one found ends too early; `None` where they do not."""
    # As arrays: Python compares bytes with a memoryview one by one, 20 times slower. In steps that stay in the cache.
    for begin in range(0, len(wanted), _STEP):
        one, other = (np.frombuffer(side[begin : begin + _STEP], np.uint8) for side in (found, wanted))
        if not np.array_equal(one, other):
            least = min(len(one), len(other))
            unequal = one[:least] != other[:least]
            return begin + (int(unequal.argmax()) if unequal.any() else least)
    return None


def _in_tensor(file: OutputFile, at: int) -> str:
    """Say which byte of which tensor lies at byte `at` of a file."""
    for name, extents in file.extents.items():
        before = 0
        for offset, length in extents:
            if offset <= at < offset + length:
                return f"byte {before + at - offset} of tensor {quote(name)}"
            before += length
    return "in no tensor"


def _apart(file: OutputFile, paths: ResultPaths) -> Iterator[OutputFile]:
    """Yield those of a file's links that are files of their own by now: copies."""
    for name in file.links:
        if not are_same_file(paths.file(file.name), paths.file(name)):
            yield replace(file, name=name, links=())
