"""Tensor references and catalogs: what lies where, without a byte of tensor data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import Struct

from ..errors import InternalError
from .dtypes import DType
from .extents import Extent, SourceFile, overlaps
from .slices import Slices


class Cutout(Struct, frozen=True, gc=False):
    """How a tensor lies in a row-major array, with gaps or its axes in another order. Axes of size one are left out.

    Attributes:
        shape: the array's shape. Its last elements need not be there: the tensor's last one is.
        steps: per axis of the array, every how many of its elements belongs to the tensor, from 0.
        order: the tensor's axis i is the array's axis `order[i]`.
    """

    shape: tuple[int, ...]
    steps: tuple[int, ...]
    order: tuple[int, ...]


_KIND = attrgetter("dtype", "shape")


class TensorRef(Struct, frozen=True, gc=False):
    """A tensor on disk: its extents, one after the other, hold its elements in row-major order, little-endian.

    With a `cutout`, as tensors of torch files and parts of fused ones may have, they hold the array that the tensor is
    cut out of. A tensor in `slices` has no extents of its own.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]
    cutout: Cutout | None = None
    slices: Slices | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor, from its shape and dtype."""
        return math.prod(self.shape) * self.dtype.itemsize

    def slice(self, number: int) -> TensorRef:
        """Return a slice of a tensor in slices: the copy that is read."""
        if self.slices is None:
            raise InternalError(f"{self.name} is not in slices")
        return TensorRef(self.name, self.dtype, self.slices.shape, self.slices.extents(number))

    def places(self) -> Iterator[Extent]:
        """Yield all extents that are read for it, slice by slice."""
        if self.slices is None:
            yield from self.extents
        else:
            yield from (extent for number in range(len(self.slices)) for extent in self.slices.extents(number))

    def spans(self, offset: int, count: int) -> Iterator[PlacedSpan]:
        """Yield where `count` bytes from `offset` of the tensor lie, in row-major order."""
        if self.slices is None:
            yield from _placed(self.extents, offset, count, 0)
            return
        for run in self.slices.runs(self.dtype.itemsize, offset, count):
            yield from _placed(self.slices.extents(run.number), run.inside, run.high - run.low, run.low)


class PlacedSpan(NamedTuple):
    """Bytes `low` … `high` of a range of a tensor lie in a file from `offset` on."""

    file: SourceFile
    offset: int
    low: int
    high: int


def _placed(extents: Sequence[Extent], offset: int, count: int, before: int) -> Iterator[PlacedSpan]:
    for number, inside, low, high in overlaps((extent.length for extent in extents), offset, count):
        extent = extents[number]
        yield PlacedSpan(extent.file, extent.offset + inside, before + low, before + high)


class FileSpan(NamedTuple):
    """Bytes `low` … `high` of a range of a tensor belong in its file from `offset` on."""

    offset: int
    low: int
    high: int


def file_spans(extents: Sequence[tuple[int, int]], offset: int, count: int) -> Iterator[FileSpan]:
    """Yield where `count` bytes from `offset` of a tensor belong in its file."""
    for number, inside, low, high in overlaps((length for _, length in extents), offset, count):
        yield FileSpan(extents[number][0] + inside, low, high)


@dataclass(frozen=True)
class Catalog(Mapping[str, TensorRef]):
    """All tensors of a source by name, the files that hold them, and what was ignored.

    Attributes:
        path: the file or directory that was opened.
        format: one of `safetensors`, `ckpt`, `torch`.
        tensors: name → reference, in file order.
        files: the files read, in reading order.
        ignored: why other files next to them, and what else torch files hold (`FILE: KEY`), are not read.
        twice: tensors stored in two files, the one in `tensors` first; both must hold the same bytes.
        warnings: what may be wrong with the source although it can be read; plan and report show it.
        slice_of: for a file that is named like that of one rank of a distributed run, what it is then.
        notes: what is good to know of how it was read: of many ranks, which, and what is not read.
        lost: tensors whose slices are missing, each with where they should be; such a catalog is only for looking at.
        of_ranks: whether it is what the ranks of a training left; its directory is no repository then.
        strategies: the files, or their directories, that were read to know how the ranks' tensors are cut.
    """

    path: Path
    format: str
    tensors: Mapping[str, TensorRef]
    files: tuple[SourceFile, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    twice: tuple[tuple[TensorRef, TensorRef], ...] = ()
    warnings: tuple[str, ...] = ()
    slice_of: str = ""
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    of_ranks: bool = False
    strategies: tuple[Path, ...] = ()

    def __getitem__(self, name: str) -> TensorRef:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    # Those of `Mapping` ask for one after the other.
    def values(self) -> ValuesView[TensorRef]:
        return self.tensors.values()

    def items(self) -> ItemsView[str, TensorRef]:
        return self.tensors.items()

    @property
    def directory(self) -> Path:
        """The directory where `config.json` and the tokenizer are looked for."""
        return self.path.parent if [file.path for file in self.files] == [self.path] else self.path

    def name_of(self, file: SourceFile) -> str:
        """Return the name of one of its files, from the directory that was opened."""
        return file.path.relative_to(self.directory).as_posix()

    @cached_property
    def has_copies(self) -> bool:
        """Whether several ranks hold the same slice."""
        return any(ref.slices.most_copies() > 1 for ref in self.values() if ref.slices)

    @property
    def is_repository(self) -> bool:
        """Whether its directory holds this checkpoint and what belongs to it, not a file among others."""
        return self.directory == self.path and not self.of_ranks

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return total_bytes(self.tensors.values())


def total_bytes(tensors: Iterable[TensorRef | TensorSpec]) -> int:
    """Return the bytes of tensors, of which a model has many and few kinds."""
    kinds = Counter(map(_KIND, tensors))
    return sum(count * math.prod(shape) * dtype.itemsize for (dtype, shape), count in kinds.items())


def bytes_of(tensors: Sequence[TensorRef | TensorSpec]) -> list[int]:
    """Return the bytes of each."""
    known = {(dtype, shape): math.prod(shape) * dtype.itemsize for dtype, shape in {*map(_KIND, tensors)}}
    return [*map(known.__getitem__, map(_KIND, tensors))]


class TensorSpec(Struct, frozen=True, gc=False):
    """A tensor to be written: everything about it but its bytes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor, from its shape and dtype."""
        return math.prod(self.shape) * self.dtype.itemsize


class ChecksumSlot(NamedTuple):
    """Where a file holds the CRC-32 of a range of its bytes; the value is known once the range is written.

    Attributes:
        begin, end: the range, in bytes of the file.
        at: offsets of the copies of the CRC, ascending, all behind the range.
        length: bytes of each copy.
        order: its byte order.
    """

    begin: int
    end: int
    at: tuple[int, ...]
    length: int
    order: Literal["little", "big"]

    def encode(self, crc: int) -> bytes:
        """Return the CRC as it stands in the file."""
        return crc.to_bytes(self.length, self.order)


class OutputFile(Struct, frozen=True):
    """One file to be written, known to the byte before anything is.

    Attributes:
        name: its name in the destination directory, or its place there: `rank_0/checkpoint_0.ckpt`.
        size: its size in bytes, tail included.
        literals: (offset, bytes) of everything that is not tensor data: headers, record heads, ascending.
        extents: tensor name → (offset, length) pairs in this file that hold its bytes, in order.
        slots: checksums of ranges that do not overlap, ascending; the literals have zeros in their place. All have as
            many copies, and the first copies of all stand before the second ones.
        names: what tensors are called in the file, where that is not their name in `extents`: slices.
        links: names of further files with the same content.
    """

    name: str
    size: int
    literals: tuple[tuple[int, bytes], ...]
    extents: Mapping[str, tuple[tuple[int, int], ...]]
    slots: tuple[ChecksumSlot, ...] = ()
    names: Mapping[str, str] = {}
    links: tuple[str, ...] = ()

    def slot_offsets(self) -> Iterator[tuple[int, ChecksumSlot]]:
        """Yield the offset of every copy of every checksum, ascending, with its slot."""
        for copy in range(len(self.slots[0].at) if self.slots else 0):
            yield from ((slot.at[copy], slot) for slot in self.slots)

    def literals_between_slots(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the literals with their offsets, without the bytes that belong to checksum slots."""
        slots = ((at, slot.length) for at, slot in self.slot_offsets())
        behind = self.size, 0
        at, length = next(slots, behind)
        for offset, data in self.literals:
            begin, view = offset, memoryview(data)
            while at < offset + len(data):
                yield begin, view[begin - offset : at - offset]
                begin = at + length
                at, length = next(slots, behind)
            yield begin, view[begin - offset :]


class Home(Struct, frozen=True, gc=False):
    """Where a tensor lies in the result: all of it, from byte `offset` of a file on, and nowhere else."""

    file: OutputFile
    offset: int


def home_of(name: str, files: Sequence[OutputFile]) -> Home | None:
    """Return where a tensor lies in the files that hold it; `None` where these are several, or it lies in pieces."""
    if len(files) != 1 or len(files[0].extents[name]) != 1:
        return None
    return Home(files[0], files[0].extents[name][0][0])


def files_by_tensor(files: Iterable[OutputFile]) -> Mapping[str, tuple[OutputFile, ...]]:
    """Return for each tensor the files that hold it: most tensors are in one."""
    found: dict[str, tuple[OutputFile, ...]] = {}
    for file in files:
        alone = (file,)
        for name in file.extents:
            found[name] = (*found[name], file) if name in found else alone
    return found
