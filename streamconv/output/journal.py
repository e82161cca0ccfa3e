"""The journal: a file next to the result being built that says what of it is durable, so that a run can be resumed.

A line a record, each with its own checksum, appended only after the data that it describes is durable:

    {"journal": 2, "bytes_version": …, "plan": …, …}  which conversion it is; the first line
    ["held", process, host, since]                   who writes it
    ["block", file, block, digest, crc]              a 16 MiB block is complete
    ["box", tensor, [[start, stop], …], overflowed]  a part of a tensor is written
    ["outputs", first, stop]                         all tensors from the one to before the other are written
    ["lost", file]                                   a file is gone: what is on record of it so far no longer holds
    ["parts"]                                        parts of the result are written by others, who have journals
    ["shared", arguments]                            by processes that share the journal; what `plan` was called with
    ["aside", yes]                                   the old destination is moved to `DEST.partial.old`, or is not
    ["sealed", digest, device, inode]                all is done, under this manifest, and will get its final name

A line whose checksum does not match is ignored, and the data it described is written again. Files and tensors are
numbers in the layout's and the plan's order, which the first line determines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import xxhash
from msgspec import Struct, field

from ..errors import storing
from ..planning.outputs import Output
from ..storage import disk
from ..tensors.grids import Box, box_shape, flat_index, joined, runs, whole, without
from ..tensors.refs import OutputFile, total_bytes
from ..units import CHUNK
from .blocks import Blocks
from .file_writer import WrittenPart

VERSION = 2

_LONGEST = 64 << 20


class Owner(NamedTuple):
    """The process that writes: its number, its host, and when it began (seconds since 1970)."""

    process: int
    host: str
    since: float


class Sealed(NamedTuple):
    """What was about to get its final name: the manifest's digest, and the device and inode that go by that name."""

    digest: str
    device: int
    inode: int


class Journal:
    """The file itself: lines with checksums, appended and synced.

    Args:
        path: where it lies.
        descriptor: of it, open for reading and writing.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._end = disk.fstat(descriptor).st_size

    @property
    def end(self) -> int:
        """The bytes that it had when it was opened, and those that were appended."""
        return self._end

    def records(self, stop: int | None = None) -> Iterator[object]:
        """Yield all records whose checksums match, in order; with `stop` only those before that byte."""
        for text in self.texts(stop):
            try:
                yield json.loads(text)
            except (ValueError, RecursionError):
                continue

    def texts(self, stop: int | None = None) -> Iterator[bytes]:
        """Yield the same records as they are written, for `copy`."""
        for text in self._lines(stop):
            check, _, payload = text.partition(b" ")
            if check == _check(payload):
                yield payload

    def _lines(self, stop: int | None) -> Iterator[bytes]:
        rest, at = b"", 0
        while data := disk.read(self._descriptor, CHUNK if stop is None else min(CHUNK, stop - at), at):
            at += len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from lines
            if len(rest) > _LONGEST:
                rest = b""
        yield rest

    def append(self, records: Iterable[object]) -> None:
        """Append records, durable when this returns. If it fails, the next ones overwrite these.

        Raises:
            StorageError: the file system refuses.
        """
        self.copy(map(_text, records))

    def copy(self, texts: Iterable[bytes]) -> None:
        """Append records as another journal's `texts` has them.

        Raises:
            StorageError: the file system refuses.
        """
        # A line that was cut off by a crash must not take the next one with it.
        data = b"\n" * (self._end > 0) + b"".join(map(_line, texts))
        with storing(self._path):
            disk.write_all(self._descriptor, memoryview(data), self._end)
            disk.sync_data(self._descriptor)
        self._end += len(data)

    def clear(self) -> None:
        """Remove all records."""
        if self._end:
            disk.truncate(self._descriptor, 0)
            self._end = 0


def _text(record: object) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def _line(payload: bytes) -> bytes:
    return b"%s %s\n" % (_check(payload), payload)


def _check(payload: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(payload).encode()


class Heading(Struct):
    """What a journal says of the run as a whole.

    Attributes:
        conversion: what is converted to what, empty where that line is missing or damaged.
        owner: the last process that wrote it.
        sealed: what was about to get its final name, if it came to that.
        is_aside: the old destination may be at `DEST.partial.old`.
        has_records: something was on record as durable.
        arguments: what was asked of `streamconv.plan`, where processes share the work that know nothing of each other.
    """

    conversion: Mapping[str, object] = field(default_factory=dict)
    owner: Owner | None = None
    sealed: Sealed | None = None
    is_aside: bool = False
    has_records: bool = False
    arguments: Mapping[str, object] | None = None


def heading(records: Iterable[object]) -> Heading:
    """Return what a journal's records say of the run as a whole."""
    found = Heading()
    for record in records:
        match record:
            case dict() if not found.conversion:
                found.conversion = record
            case ["held", int(process), str(host), int() | float() as since]:
                found.owner = Owner(process, host, since)
            case ["shared", dict() as arguments]:
                found.owner, found.arguments = None, arguments
            case ["sealed", str(digest), int(device), int(inode)]:
                found.sealed = Sealed(digest, device, inode)
            case ["aside", *more]:
                # Earlier versions wrote no more.
                found.is_aside = more != [False]
            case ["block" | "box" | "outputs" | "parts", *_]:
                found.has_records = True
    return found


class DoneBoxes:
    """What is durable of the tensors and files of a plan, as far as a journal says so.

    Args:
        outputs: the plan's tensors.
        files: the layout's files that hold tensors.
    """

    def __init__(self, outputs: Sequence[Output], files: Sequence[OutputFile]) -> None:
        self._outputs, self._files = outputs, files
        self._blocks = {file.name: Blocks(file.size) for file in files}
        self._whole = bytearray(len(outputs))
        self._parts: dict[int, list[Box]] = {}
        self._has_parts = False
        self.overflowed: dict[str, int] = {}

    def load(self, records: Iterable[object], is_there: Callable[[OutputFile], bool]) -> list[int]:
        """Take over the records, except those of files that are missing or have another size.

        Returns:
            The numbers of these files, as far as there were records of them. That they were lost has to be on record
            before they are made again: what is on record of them is of files that are gone.
        """
        for record in records:
            match record:
                case ["block", int(file), int(number), str(digest), int(crc)]:
                    self._load_block(file, number, bytes.fromhex(digest), crc)
                case ["box", int(number), list(box), int(overflowed)]:
                    self._load_box(number, tuple((low, high) for low, high in box), overflowed)
                case ["outputs", int(first), int(stop)]:
                    self._load_outputs(first, stop)
                case ["lost", int(file)]:
                    self._forget(file)
        self._has_parts = any(self._whole) or bool(self._parts)
        if not (self._has_parts or any(self._blocks.values())):
            return []
        return [number for number, file in enumerate(self._files) if not is_there(file) and self._forget(number)]

    def _forget(self, number: int) -> bool:
        """Forget a file and the tensors in it, also where other files hold them too; return whether any was known."""
        file = self._files[number]
        tensors = [self._numbers[name] for name in file.extents]
        is_known = bool(self._blocks[file.name]) or any(self._whole[n] or n in self._parts for n in tensors)
        self._blocks[file.name] = Blocks(file.size)
        for tensor in tensors:
            self._whole[tensor] = 0
            self._parts.pop(tensor, None)
            self.overflowed.pop(self._outputs[tensor].name, None)
        return is_known

    def _load_block(self, file: int, number: int, digest: bytes, crc: int) -> None:
        self._blocks[self._files[file].name].put(number, digest, crc)

    def _load_box(self, number: int, box: Box, overflowed: int) -> None:
        # Journals of parts are copied into that of the run: a crash in the middle of that leaves a record twice.
        if self._whole[number] or (number in self._parts and not self.left(number, box)):
            return
        output = self._outputs[number]
        if overflowed:
            self.overflowed[output.name] = self.overflowed.get(output.name, 0) + overflowed
        parts = self._parts.setdefault(number, [])
        while pair := next(((part, both) for part in parts if (both := joined(part, box))), None):
            parts.remove(pair[0])
            box = pair[1]
        parts.append(box)
        if box == whole(output.view.shape):
            self._whole[number] = 1
            del self._parts[number]

    def _load_outputs(self, first: int, stop: int) -> None:
        self._whole[first:stop] = b"\1" * len(self._whole[first:stop])
        for number in self._parts.keys() & range(first, stop):
            del self._parts[number]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Tensor -> its number; not made where nothing is on record."""
        return {output.name: number for number, output in enumerate(self._outputs)}

    @property
    def nbytes(self) -> int:
        """The bytes of tensors that are durable."""
        return total_bytes(output.spec for output in compress(self._outputs, self._whole)) + sum(
            math.prod(box_shape(box)) * self._outputs[number].dtype.itemsize
            for number, boxes in self._parts.items()
            for box in boxes
        )

    def blocks(self, file: str) -> Blocks:
        """Return the finished blocks of a file."""
        return self._blocks[file]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on record as written."""
        return not (any(self._whole) or self._parts)

    def unfinished(self) -> list[int]:
        """Return the numbers of the outputs that are not on record as whole."""
        return [number for number, is_whole in enumerate(self._whole) if not is_whole]

    def left(self, number: int, box: Box) -> list[Box]:
        """Return what is not written of a box of an output, as boxes."""
        if self._whole[number]:
            return []
        rest = [box]
        for part in self._parts.get(number, ()):
            rest = [piece for one in rest for piece in without(one, part)]
        return rest

    def parts(self, tensor: str) -> Iterator[WrittenPart]:
        """Yield what is written of a tensor, in its bytes."""
        if not self._has_parts:
            return
        number = self._numbers[tensor]
        output = self._outputs[number]
        shape, itemsize = output.view.shape, output.dtype.itemsize
        boxes = [whole(shape)] if self._whole[number] else self._parts.get(number, ())
        for box in boxes:
            run, starts = runs(box, shape)
            first = flat_index((low for low, _ in box), shape)
            last = flat_index((high - 1 for _, high in box), shape)
            yield WrittenPart(first * itemsize, (last + 1) * itemsize, _in_bytes(run, starts, itemsize))


def _in_bytes(run: int, starts: Iterable[int], itemsize: int) -> Iterator[tuple[int, int]]:
    return ((start * itemsize, run * itemsize) for start in starts)
