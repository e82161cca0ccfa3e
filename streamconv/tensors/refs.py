"""Tensor references and catalogs: what lies where, without a byte of tensor data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .dtypes import DType


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as it was when its header was read; both are checked again before every read.

    Attributes:
        path: where it lies.
        size: in bytes.
        modified: when it was written last, in nanoseconds since 1970; `None` where nobody knows.
    """

    path: Path
    size: int
    modified: int | None = None


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes at `offset` of `file`."""

    file: SourceFile
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Cutout:
    """How a tensor lies in a row-major array, with gaps or its axes in another order. Axes of size one are left out.

    Attributes:
        shape: the array's shape. Its last elements need not be there: the tensor's last one is.
        steps: per axis of the array, every how many of its elements belongs to the tensor, from 0.
        order: the tensor's axis i is the array's axis `order[i]`.
    """

    shape: tuple[int, ...]
    steps: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor on disk: its extents, one after the other, hold its elements in row-major order, little-endian.

    With a `cutout`, which only torch files have, they hold the array that the tensor is cut out of.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]
    cutout: Cutout | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, from its shape and dtype."""
        return math.prod(self.shape) * self.dtype.itemsize


class Span(NamedTuple):
    """Bytes `low` … `high` of a range lie in extent `number`, from its byte `inside` on."""

    number: int
    inside: int
    low: int
    high: int


def overlaps(lengths: Iterable[int], offset: int, count: int) -> Iterator[Span]:
    """Yield where `count` bytes from `offset` lie in consecutive extents of these lengths."""
    begin = 0
    for number, length in enumerate(lengths):
        low, high = max(offset, begin), min(offset + count, begin + length)
        if low < high:
            yield Span(number, low - begin, low - offset, high - offset)
        begin += length


@dataclass(frozen=True)
class Catalog(Mapping[str, TensorRef]):
    """All tensors of a source by name, the files they lie in, and what was seen and left alone.

    Attributes:
        path: the file or directory that was opened.
        format: one of `safetensors`, `ckpt`, `torch`.
        tensors: name → reference, in file order.
        files: the files read, in reading order.
        ignored: other files beside them, and what torch files hold beside a model (`FILE: KEY`), by reason.
        twice: tensors that are in two files, as the one in `tensors` and the other: they have to hold the same bytes.
    """

    path: Path
    format: str
    tensors: Mapping[str, TensorRef]
    files: tuple[SourceFile, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    twice: tuple[tuple[TensorRef, TensorRef], ...] = ()

    def __getitem__(self, name: str) -> TensorRef:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def directory(self) -> Path:
        """Where `config.json` and the tokenizer would lie."""
        return self.path.parent if [file.path for file in self.files] == [self.path] else self.path

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(ref.nbytes for ref in self.tensors.values())


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written: everything about it but its bytes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, from its shape and dtype."""
        return math.prod(self.shape) * self.dtype.itemsize


class Seal(NamedTuple):
    """The CRC-32 of bytes `begin` … `end` of a file belongs, as four bytes little-endian, at `near` and at `far`.

    Those lie behind the bytes, and so do all `far` ones behind all `near` ones.
    """

    begin: int
    end: int
    near: int
    far: int


@dataclass(frozen=True)
class OutputFile:
    """One file to be written, known to the byte before anything is.

    Attributes:
        name: its name in the destination directory.
        size: its size in bytes, tail included.
        literals: (offset, bytes) of everything that is not tensor data: headers, record heads.
        extents: tensor name → (offset, length) pairs in this file that hold its bytes, in order.
        crc_tail: whether the last 17 bytes are a MindSpore CRC over all the bytes before them.
        seals: CRCs of parts of the file, in its order; the literals have zeros where they belong.
    """

    name: str
    size: int
    literals: tuple[tuple[int, bytes], ...]
    extents: Mapping[str, tuple[tuple[int, int], ...]]
    crc_tail: bool = False
    seals: tuple[Seal, ...] = ()
