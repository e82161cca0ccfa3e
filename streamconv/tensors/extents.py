"""Extents: which bytes of which files a tensor lies in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as it was when its header was read; size, time and inode are checked again before every read.

    Attributes:
        path: where it lies.
        size: in bytes.
        modified: when it was written last, in nanoseconds since 1970; `None` where nobody knows.
        inode: its number in the file system; `None` where nobody knows.
        changed: when it was written, replaced, renamed, or given other links or permissions last; nobody can set that.
    """

    path: Path
    size: int
    modified: int | None = None
    inode: int | None = None
    changed: int | None = field(default=None, compare=False)


class Extent(Struct, frozen=True, gc=False):
    """`length` bytes at `offset` of `file`."""

    file: SourceFile
    offset: int
    length: int


class Span(NamedTuple):
    """Bytes `low` … `high` of a range lie in extent `number`, from its byte `inside` on."""

    number: int
    inside: int
    low: int
    high: int


def bytes_before(places: NDArray[np.int64], begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each place how many bytes of ranges lie before it; the ranges are in order and do not overlap."""
    if not len(begins):
        return np.zeros_like(places)
    until = np.concatenate([[0], np.cumsum(ends - begins)])
    number = np.searchsorted(begins, places, "right")
    inside = np.maximum(0, ends[number - 1] - places) * (number > 0)
    before: NDArray[np.int64] = until[number] - inside
    return before


def overlaps(lengths: Iterable[int], offset: int, count: int) -> Iterator[Span]:
    """Yield where `count` bytes from `offset` lie in consecutive extents of these lengths."""
    begin = 0
    for number, length in enumerate(lengths):
        low, high = max(offset, begin), min(offset + count, begin + length)
        if low < high:
            yield Span(number, low - begin, low - offset, high - offset)
        begin += length
