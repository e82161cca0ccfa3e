"""Compare a checkpoint with what its source gives, byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
from isal import isal_zlib

from ..engine.tasks import BoxFilter
from ..errors import SourceError, VerificationError, reading
from ..formats.layout import FileLayout
from ..output.blocks import BLOCK
from ..output.paths import ResultPaths
from ..storage.regions import Placement
from ..tensors.grids import Box
from ..tensors.refs import FileSpan, OutputFile, file_spans, files_by_tensor
from ..text import quote
from ..units import CHUNK
from .open_results import OpenResults, are_same_file
from .sample import Sample

_CONVERT_AGAIN = "convert again"


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
        mine: the blocks of a file, by its name, that are compared, where others compare the rest of it and all that is
            compared in full.
    """

    def __init__(self, layout: FileLayout, paths: ResultPaths, mine: Callable[[str], range] | None = None) -> None:
        self._paths, self._mine = paths, mine
        self._open = OpenResults()
        self._files = [one for file in layout.files for one in (file, *_apart(file, paths))]
        self._by_tensor = files_by_tensor(self._files)
        texts = (OutputFile(name, len(text), ((0, text),), {}) for name, text in layout.texts.items())
        try:
            for file in () if mine else (*self._files, *texts):
                self._check_frame(file)
        except BaseException:
            self.close()
            raise

    def placement(self, name: str, offset: int, count: int) -> Placement | None:
        """Return `None`: bytes that are compared may lie anywhere in memory."""
        return None

    def put(self, name: str, offset: int, data: memoryview) -> str:
        """Compare bytes `offset` … of tensor `name`."""
        files = self._by_tensor[name]
        for file in files:
            for span in self._compared(file, file_spans(file.extents[name], offset, len(data))):
                for begin in range(span.low, span.high, CHUNK):
                    part, place = data[begin : min(span.high, begin + CHUNK)], span.offset + begin - span.low
                    self._compare(file, place, part, f"tensor {quote(name)}", offset + begin)
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
        crc = 0
        for at in range(begin, end, CHUNK):
            crc = isal_zlib.crc32(self._read(file, at, min(CHUNK, end - at)), crc)
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

    def _compare(
        self, file: OutputFile, offset: int, expected: memoryview, what: str, offset_in_tensor: int | None = None
    ) -> None:
        # As arrays: Python compares bytes with a memoryview one by one, 20 times slower.
        found = np.frombuffer(self._read(file, offset, len(expected)), np.uint8)
        wanted = np.frombuffer(expected, np.uint8)
        if np.array_equal(found, wanted):
            return
        least = min(len(found), len(wanted))
        unequal = found[:least] != wanted[:least]
        first = int(unequal.argmax()) if unequal.any() else least
        path = quote(self._paths.file(file.name))
        place = f"in {what}" if offset_in_tensor is None else f"byte {offset_in_tensor + first} of {what}"
        raise VerificationError(
            f"{path} differs from the source's conversion at byte {offset + first} of the file ({place})",
            _CONVERT_AGAIN,
        )

    def _read(self, file: OutputFile, offset: int, length: int) -> bytes:
        place = self._paths.file(file.name)
        with reading(place):
            return self._open.read(place, offset, length)


def _apart(file: OutputFile, paths: ResultPaths) -> Iterator[OutputFile]:
    """Yield those of a file's links that are files of their own by now: copies."""
    for name in file.links:
        if not are_same_file(paths.file(file.name), paths.file(name)):
            yield replace(file, name=name, links=())
