"""The safetensors format: eight bytes of header length, a JSON header, the tensors' bytes.

    u64 little-endian N | N bytes of UTF-8 JSON {name: {dtype, shape, data_offsets: [begin, end]}} | data

Offsets count from the end of the header; the tensors tile the data without hole or overlap; `__metadata__`
maps strings to strings. MindSpore 2.10 reads such files with a parser of its own, which decides how files are laid out
here (measured): the header's keys must be in the order of the offsets; a tensor named like a metadata key raises a
KeyError; a tensor at an offset that is not a multiple of its item size is copied instead of mapped. So keys follow the
offsets, items go from wide to narrow, and the header is padded with spaces to a multiple of 8, as the library does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise, repeat
from operator import attrgetter, sub
from pathlib import Path
from typing import cast

import msgspec
import xxhash
from safetensors import SafetensorError, safe_open

from ..errors import SourceError, UnsupportedError
from ..storage import disk
from ..tensors.extents import Extent, SourceFile
from ..tensors.refs import OutputFile, TensorRef, TensorSpec, bytes_of
from ..text import quote, setting
from .header_room import MAX_HEADER, HeaderRoom
from .headers import (
    DOWNLOAD_AGAIN,
    opened,
    parse_json_object,
    read_head,
    read_json,
)
from .safetensors_entries import Entry, checked_entries
from .specs import checked, place

METADATA = "__metadata__"

_log = logging.getLogger("streamconv")

#: Unknown to older versions of the library that we allow: checked by this module alone.
NEW_IN_LIBRARY = {"F8_E8M0", "C64"}


# The ranks of a pipeline stage, whose headers say the same, come one after the other; all headers would be much memory.
_MOST_KNOWN = 8


class Known:
    """What files hold whose headers were read before. Several threads may use it."""

    def __init__(self) -> None:
        self._held: dict[tuple[bytes, int], dict[str, TensorRef]] = {}
        self._one_at_a_time = threading.Lock()

    def tensors(self, text: bytes, size: int, find: Callable[[], dict[str, TensorRef]]) -> dict[str, TensorRef]:
        """Return what `find` found before for this header of a file of this size, or what it finds now."""
        key = xxhash.xxh3_128_digest(text), size
        with self._one_at_a_time:
            if key not in self._held:
                self._held[key] = find()
                if len(self._held) > _MOST_KNOWN:
                    del self._held[next(iter(self._held))]
            return self._held[key]


def read(path: Path, header_room: HeaderRoom, known: Known | None = None) -> tuple[SourceFile, dict[str, TensorRef]]:
    """Return the tensors of a safetensors file by name, in the order of their bytes. Only the header is read.

    Args:
        path: the file.
        header_room: bytes that the header may have; a longer one is refused unread.
        known: files whose headers say the same, as those of ranks do, are checked once; filled here. The tensors of the
            later ones are then those of the first, and only their offsets hold for both.

    Raises:
        SourceError: unreadable, truncated, damaged or empty.
        BudgetError: the header is longer than `header_room` allows.
        UnsupportedError: a dtype that streamconv does not know.
    """
    file, text = _read_text(path, header_room)
    return file, known.tensors(text, file.size, lambda: _tensors(file, text)) if known is not None else _tensors(
        file, text
    )


def _tensors(file: SourceFile, text: bytes) -> dict[str, TensorRef]:
    start = 8 + len(text)
    names, dtypes, shapes, begins, ends = zip(*_entries(file, text), strict=True)
    offsets, lengths = [start + begin for begin in begins], map(sub, ends, begins)
    extents = zip(map(Extent, repeat(file), offsets, lengths))
    return dict(zip(names, map(TensorRef, names, dtypes, shapes, extents), strict=True))


def _entries(file: SourceFile, text: bytes) -> Sequence[Entry]:
    """Return what a header says of the tensors, checked."""
    header = _parsed(file, text)
    header.pop(METADATA, None)
    entries = checked_entries(header, file, 8 + len(text))
    _ask_library(entries, file, text)
    return entries


def read_metadata(path: Path, header_room: HeaderRoom) -> Mapping[str, str]:
    """Return the texts that a safetensors file holds next to its tensors (`__metadata__`).

    Raises:
        SourceError: unreadable, truncated or damaged.
        BudgetError: the header is longer than `header_room` allows.
    """
    header = _parsed(*_read_text(path, header_room))
    return cast("Mapping[str, str]", header.get(METADATA) or {})


def _read_text(path: Path, header_room: HeaderRoom) -> tuple[SourceFile, bytes]:
    """Return the file, and its header as it stands there."""
    with opened(path) as (descriptor, file):
        length = _header_length(descriptor, file)
        return file, read_json(descriptor, file, 8, length, _header_of(path), header_room)


def _parsed(file: SourceFile, text: bytes) -> dict[str, object]:
    """Return the header, its metadata checked."""
    header = parse_json_object(text, _header_of(file.path))
    _check_metadata(header.get(METADATA), file)
    return header


def _header_of(path: Path) -> str:
    return f"the header of {quote(path.name)}"


def _header_length(descriptor: int, file: SourceFile) -> int:
    name = quote(file.path.name)
    if file.size < 8:
        raise SourceError(f"{name} has {file.size} bytes, too few for a safetensors file", DOWNLOAD_AGAIN)
    length = int.from_bytes(read_head(descriptor, file, 64)[:8], "little")
    if length < 2:
        raise SourceError(
            f"{name} states a header length of {length} at byte 0; the shortest header, {{}}, has 2 bytes"
        )
    if length > MAX_HEADER:
        raise SourceError(
            f"{name} states at byte 0 a header of {length} bytes, and safetensors allows {MAX_HEADER}: "
            "it is damaged, or not a safetensors file",
            DOWNLOAD_AGAIN,
        )
    if 8 + length > file.size:
        raise SourceError(
            f"{name} is truncated: its header of {length} bytes ends at byte {8 + length}, the file at {file.size}",
            DOWNLOAD_AGAIN,
        )
    return length


def _check_metadata(metadata: object, file: SourceFile) -> None:
    # The library, too, takes null in place of the whole object for no metadata.
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SourceError(
            f"the header of {quote(file.path.name)} has a {METADATA} that does not map strings to strings",
            DOWNLOAD_AGAIN,
        )


def _ask_library(entries: Sequence[Entry], file: SourceFile, text: bytes) -> None:
    """Refuse what the reference implementation refuses; it judges the header and the size, no tensor.

    Where it cannot map a file, there is no second judge: a limit on address space may be smaller than the file.
    """
    if any(entry.dtype.name in NEW_IN_LIBRARY for entry in entries):
        return
    try:
        with _image(file, text) as image, safe_open(image, framework="np"):
            pass
    except (OSError, MemoryError) as error:
        _log.debug("%s is not checked by the safetensors library: %s", file.path, error)
    except (SafetensorError, ValueError) as error:
        raise SourceError(
            f"{quote(file.path.name)} passes streamconv's checks, "
            f"but the safetensors library refuses it: {quote(error)}",
            DOWNLOAD_AGAIN,
        ) from error


@contextmanager
def _image(file: SourceFile, text: bytes) -> Iterator[str]:
    """Give the path of a file in memory, with this header and of the file's size, but holes for the tensors' bytes.

    The library maps what it judges: of a file that lies elsewhere this takes several requests, while no other thread
    runs, and if the network is lost, a mapping ends the process.

    Raises:
        OSError: the system has no such files.
    """
    descriptor = disk.memory_file()
    try:
        disk.truncate(descriptor, file.size)
        disk.write_all(descriptor, memoryview(len(text).to_bytes(8, "little") + text), 0)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        disk.close_quietly(descriptor)


def lay_out(name: str, tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> OutputFile:
    """Return the safetensors file `name` with these tensors, widest items first and otherwise in the given order.

    Args:
        name: the file's name.
        tensors: its tensors.
        metadata: the key-value pairs of the header, such as `format`.

    Raises:
        UnsupportedError: no tensors, a dtype or name that the format or MindSpore refuses, or too long a header.
        InternalError: two tensors of the same name.
    """
    _check_specs(name, tensors, metadata)
    ordered = sorted(tensors, key=attrgetter("dtype.itemsize"), reverse=True)
    sizes = bytes_of(ordered)
    bounds = [*accumulate(sizes, initial=0)]
    head = _header(name, ordered, bounds, metadata)
    names, offsets = [spec.name for spec in ordered], [len(head) + begin for begin in bounds[:-1]]
    extents = dict(zip(names, zip(zip(offsets, sizes, strict=True)), strict=True))
    return OutputFile(name, len(head) + bounds[-1], ((0, head),), extents)


def _check_specs(name: str, tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> None:
    for spec in checked(name, tensors):
        if not spec.dtype.safetensors:
            raise UnsupportedError(
                f"{place(name, spec)} has type {spec.dtype}, which safetensors cannot hold", "write a .ckpt"
            )
        if spec.name == METADATA or spec.name in metadata:
            raise UnsupportedError(
                f"{place(name, spec)} is named like a metadata key, and MindSpore refuses the file for it"
            )


class _Described(msgspec.Struct, gc=False):
    """A tensor as the header describes it: its keys, in their order."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _header(name: str, ordered: Sequence[TensorSpec], bounds: Sequence[int], metadata: Mapping[str, str]) -> bytes:
    """Return length and JSON as they stand at the beginning of the file."""
    entries: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    for spec, offsets in zip(ordered, pairwise(bounds), strict=True):
        entries[spec.name] = _Described(spec.dtype.name, spec.shape, offsets)
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise UnsupportedError(
            f"{quote(name)} would have a header of {len(text)} bytes, and readers take {MAX_HEADER}",
            f"use smaller shards with {setting('max_shard_size')}",
        )
    return len(text).to_bytes(8, "little") + text
