"""Tensors that a download or a copy seems to have left out: they read as zeros, and nothing in the format says so.

A downloader that sets a file's size first leaves holes where nothing was written yet, or zeros, from some point to the
end. Neither is proof: padded rows at the end of an embedding are zeros in real models, so are biases and the correction
biases of routers, and a copy that saves space (`cp --sparse`, ZFS) turns any of them into holes. So only matrices
count, of which at least half is zeros, and what is found is a warning. It costs one question to the file system and one
read of 64 KiB for each file; only a file that ends in zeros is looked at further, and then in a few places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from operator import add, attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..storage import disk, whole_files
from ..tensors.extents import SourceFile, bytes_before
from ..tensors.refs import TensorRef
from ..text import counted, quote
from .headers import opened, read_at
from .shards import listing

#: Bytes that holes in matrices have to have together: less may be anything.
LEAST_HOLES = 64 << 10

#: Bytes of zeros, in matrices at the end of a file, that are worth a warning.
LEAST_ZEROS = 1 << 20

_TAIL = 64 << 10
_PROBE = 4 << 10
# Bounds on a file that is mostly holes or zeros: what is beyond them is not counted.
_MOST_HOLES = 256
_MOST_PROBED = 64
_HOLES = "has holes, which were never written and read as zeros, in place"
_ZEROS = "ends in zeros in place"
_ADVICE = "compare the file's checksum with the publisher's, or download it again, unless zeros are what it should hold"


class _Spans(NamedTuple):
    """Where tensors begin and end in a file, in its order, and which they are."""

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    refs: Sequence[TensorRef]


class _Range(NamedTuple):
    begin: int
    end: int


def warning(file: SourceFile, refs: Collection[TensorRef]) -> str | None:
    """Return a warning if tensors of a file seem to be missing from it.

    Args:
        file: the file.
        refs: its tensors.

    Raises:
        SourceError: it cannot be read.
    """
    data = _data(refs)
    if data is None:
        return None
    with opened(file.path) as (descriptor, now):
        holes = list(islice(_holes(descriptor, data), _MOST_HOLES))
        if holes:
            return _said(file, _HOLES, _missing(holes, _spans(refs), LEAST_HOLES))
        if _is_zero(descriptor, now, max(data.begin, data.end - _TAIL), data.end):
            spans = _spans(refs)
            return _said(file, _ZEROS, _missing([_zeros(descriptor, now, spans)], spans, LEAST_ZEROS))
    return None


def _data(refs: Iterable[TensorRef]) -> _Range | None:
    """Return where the bytes of tensors begin and end; `None` where they have none."""
    extents = [extent for ref in refs for extent in ref.extents if extent.length]
    begins = [*map(attrgetter("offset"), extents)]
    ends = map(add, begins, map(attrgetter("length"), extents))
    return _Range(min(begins), max(ends)) if begins else None


def _holes(descriptor: int, data: _Range) -> Iterator[_Range]:
    at = data.begin
    while found := whole_files.next_hole(descriptor, at, data.end):
        yield _Range(*found)
        at = found[1]


def _spans(refs: Iterable[TensorRef]) -> _Spans:
    every = [(ref, extent) for ref in refs for extent in ref.extents if extent.length]
    begins = np.array([extent.offset for _, extent in every], np.int64)
    ends = begins + np.array([extent.length for _, extent in every], np.int64)
    order = np.lexsort((ends, begins))
    return _Spans(begins[order], ends[order], [every[number][0] for number in order.tolist()])


def _zeros(descriptor: int, file: SourceFile, spans: _Spans) -> _Range:
    """Return where the zeros at the end of the data seem to begin, judged by a few bytes of each tensor."""
    last = int(spans.ends.max())
    at, from_the_end = last, slice(None, -_MOST_PROBED - 1, -1)
    for first, end in zip(spans.begins[from_the_end].tolist(), spans.ends[from_the_end].tolist(), strict=True):
        middle = (first + end) // 2
        if not all(_is_zero(descriptor, file, one, min(one + _PROBE, end)) for one in (middle, (middle + end) // 2)):
            break
        at = middle
        if not _is_zero(descriptor, file, first, min(first + _PROBE, end)):
            break
        at = first
    return _Range(at, last)


def _is_zero(descriptor: int, file: SourceFile, begin: int, end: int) -> bool:
    data = read_at(descriptor, begin, end - begin, file)
    disk.try_drop_cache(descriptor, begin, end - begin)
    return data.count(0) == len(data)


def _missing(ranges: Sequence[_Range], spans: _Spans, least: int) -> list[str]:
    """Return the matrices of which at least half is in these ranges, if together they lack at least so many bytes."""
    begins, ends = np.array(ranges, np.int64).T
    covered = bytes_before(spans.ends, begins, ends) - bytes_before(spans.begins, begins, ends)
    mostly = np.flatnonzero(2 * covered >= spans.ends - spans.begins).tolist()
    found = [number for number in mostly if _is_matrix(spans.refs[number])]
    return [spans.refs[number].name for number in found] if covered[found].sum() >= least else []


def _is_matrix(ref: TensorRef) -> bool:
    # A long flat tensor holds matrices, as PyTorch's FSDP stores them.
    return len(ref.shape) > 1 or ref.nbytes >= LEAST_ZEROS


def _said(file: SourceFile, what: str, names: Sequence[str]) -> str | None:
    if not names:
        return None
    return f"{quote(file.path.name)} {what} of {counted(len(names), 'tensor')}: {listing(names)}; {_ADVICE}"
