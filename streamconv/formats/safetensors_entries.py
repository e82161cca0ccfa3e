"""What the header of a safetensors file says of its tensors, checked: dtypes, shapes, and bytes that tile the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter, itemgetter, ne, sub
from typing import NamedTuple, cast

from ..errors import SourceError, UnsupportedError
from ..tensors import dtypes
from ..tensors.extents import SourceFile
from ..text import quote
from .headers import DOWNLOAD_AGAIN, is_unicode, shape_nbytes


class Entry(NamedTuple):
    """A tensor as a header describes it: bytes `begin` up to, not including, `end` of the data."""

    name: str
    dtype: dtypes.DType
    shape: tuple[int, ...]
    begin: int
    end: int


class _Kind(NamedTuple):
    dtype: dtypes.DType
    shape: tuple[int, ...]
    nbytes: int


_FIELDS = itemgetter("dtype", "shape", "data_offsets")
_Lists = tuple[list[int], ...]


def checked_entries(header: Mapping[str, object], file: SourceFile, data_start: int) -> list[Entry]:
    """Return the tensors of a header in the order of their bytes.

    Args:
        header: the parsed header, without its metadata.
        file: the file.
        data_start: where in the file the data begins, in bytes.

    Raises:
        SourceError: an entry is damaged, there is none, or they do not tile the data.
        UnsupportedError: a dtype that streamconv does not know.
    """
    entries = _sound(header) or [_entry(file, *item) for item in header.items()]
    entries.sort(key=attrgetter("begin", "end"))
    _check_tiling(entries, file, data_start)
    return entries


def _sound(header: Mapping[str, object]) -> list[Entry]:
    """Return the entries of a header, checked column by column; none if there may be anything wrong with any of them.

    Headers have hundreds of thousands of entries: to look at one after the other takes four times as long.
    """
    try:
        rows = [*map(_FIELDS, cast("Iterable[Mapping[str, object]]", header.values()))]
        dtype_names, shapes, offsets = cast("tuple[tuple[str], _Lists, _Lists]", tuple(zip(*rows, strict=True)))
        begins, ends = zip(*offsets, strict=True)
    except (KeyError, TypeError, ValueError):
        return []
    # `type` and not `isinstance`, as in `_counts`.
    if {*map(type, dtype_names)} != {str} or {*map(type, chain(shapes, offsets))} != {list}:
        return []
    if {*map(type, chain(begins, ends, *shapes))} != {int} or min(begins) < 0 or not is_unicode("".join(header)):
        return []
    kinds = [*zip(dtype_names, map(tuple, shapes), strict=True)]
    try:
        known = {kind: _kind(*kind) for kind in set(kinds)}
    except (SourceError, UnsupportedError):
        return []
    found = [*map(known.__getitem__, kinds)]
    if any(map(ne, map(sub, ends, begins), [kind.nbytes for kind in found])):
        return []
    columns = [kind.dtype for kind in found], [kind.shape for kind in found]
    # `Entry(…)` is a function in Python.
    return [*map(partial(tuple.__new__, Entry), zip(header, *columns, begins, ends, strict=True))]


def _kind(dtype: str, shape: tuple[int, ...]) -> _Kind:
    known = dtypes.from_safetensors(dtype, "")
    return _Kind(known, shape, shape_nbytes(shape, known, ""))


def _entry(file: SourceFile, name: str, value: object) -> Entry:
    where = f"{quote(file.path.name)}: tensor {quote(name)}"
    if not isinstance(value, dict):
        raise SourceError(f"{where} is not described by an object with dtype, shape and data_offsets", DOWNLOAD_AGAIN)
    if not is_unicode(name):
        raise SourceError(f"{where} has a name that is not Unicode text (a lone surrogate)", DOWNLOAD_AGAIN)
    dtype = value.get("dtype")
    if not isinstance(dtype, str):
        raise SourceError(f"{where} has no dtype", DOWNLOAD_AGAIN)
    known = dtypes.from_safetensors(dtype, where)
    shape = _counts(value.get("shape"), "shape", where)
    offsets = _counts(value.get("data_offsets"), "data_offsets", where)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise SourceError(f"{where} has data_offsets {quote(list(offsets))} that are not [begin, end]", DOWNLOAD_AGAIN)
    nbytes = shape_nbytes(shape, known, where)
    if offsets[1] - offsets[0] != nbytes:
        raise SourceError(
            f"{where} has {offsets[1] - offsets[0]} bytes (data_offsets {quote(list(offsets))}), "
            f"but shape {quote(list(shape))} of {known} needs {nbytes}",
            DOWNLOAD_AGAIN,
        )
    return Entry(name, known, shape, offsets[0], offsets[1])


def _counts(value: object, what: str, where: str) -> tuple[int, ...]:
    # `type is int` because `True` is an `int` in Python, and 2.0 is not a size.
    if not isinstance(value, list) or not all(type(number) is int and number >= 0 for number in value):
        raise SourceError(f"{where} has a {what} that is not a list of whole numbers from 0 up", DOWNLOAD_AGAIN)
    return tuple(value)


def _check_tiling(entries: Sequence[Entry], file: SourceFile, data_start: int) -> None:
    name = quote(file.path.name)
    if not entries:
        raise SourceError(f"{name} holds no tensors")
    filled = 0
    for entry in entries:
        if entry.begin != filled:
            what = "overlaps the tensor before it" if entry.begin < filled else "follows a hole"
            raise SourceError(
                f"{name}: tensor {quote(entry.name)} {what}: it begins at byte {data_start + entry.begin} "
                f"of the file, and the bytes before it end at {data_start + filled}: the header is damaged",
                DOWNLOAD_AGAIN,
            )
        filled = entry.end
    missing = data_start + filled - file.size
    if missing > 0:
        raise SourceError(
            f"{name} is truncated: tensor {quote(entries[-1].name)} ends at byte {data_start + filled}, "
            f"the file at {file.size}",
            DOWNLOAD_AGAIN,
        )
    if missing:
        raise SourceError(f"{name} has {-missing} trailing bytes after its last tensor", DOWNLOAD_AGAIN)
