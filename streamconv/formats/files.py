"""One file of a checkpoint: read as what its name says, or as what it is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import BudgetError, SourceError, UnsupportedError
from ..storage import mounts
from ..storage.in_order import AHEAD, in_order
from ..tensors.extents import SourceFile
from ..tensors.refs import TensorRef
from . import ckpt, contents, gaps, safetensors, torch_reader
from .header_room import HeaderRoom
from .safetensors import Known

# Files that are read at once where each request takes long.
_AT_ONCE = 8
# Each of them has a share of the header room, and so has what was read ahead of one that takes longer.
_SHARES = AHEAD * _AT_ONCE


class File(NamedTuple):
    """One file, its tensors, and why other things in it are ignored."""

    file: SourceFile
    tensors: Mapping[str, TensorRef]
    ignored: Mapping[str, str]


class Shard(NamedTuple):
    """One file of a checkpoint.

    Attributes:
        format: what it is in, whatever its name says.
        file: the file.
        tensors: its tensors.
        ignored: why other things in it are not read.
        warnings: what speaks against its content.
    """

    format: str
    file: SourceFile
    tensors: Mapping[str, TensorRef]
    ignored: Mapping[str, str]
    warnings: tuple[str, ...]


def _read_safetensors(path: Path, header_room: HeaderRoom, known: Known | None) -> File:
    return File(*safetensors.read(path, header_room, known), {})


def _read_ckpt(path: Path, header_room: HeaderRoom, known: Known | None) -> File:
    """Read a `.ckpt`. An unchecked CRC is listed as ignored, because nothing else would tell of a damaged tensor."""
    file, tensors = ckpt.read(path, header_room)
    crc = ckpt.read_crc_tail(path, file.size)
    unread = {} if crc is None else {f"{path.name}: crc_num": "a CRC of the whole file; not checked"}
    return File(file, tensors, unread)


def _read_torch(path: Path, header_room: HeaderRoom, known: Known | None) -> File:
    return File(*torch_reader.read(path, header_room))


_READERS = {"safetensors": _read_safetensors, "ckpt": _read_ckpt, "torch": _read_torch}


def read(path: Path, named: str, header_room: HeaderRoom, known: Known | None = None) -> Shard:
    """Return what a file holds.

    Args:
        path: the file.
        named: the format that its name stands for.
        header_room: bytes that its header may have.
        known: what the headers of other safetensors files say that were read before; filled here.

    Raises:
        SourceError: it is broken, or holds something else.
        BudgetError: the header is longer than `header_room` allows.
        UnsupportedError: a format, a dtype or a kind of file that streamconv does not know.
    """
    format_, found = _read(path, named, header_room, known)
    warning = gaps.warning(found.file, found.tensors.values())
    return Shard(format_, *found, (warning,) if warning else ())


def read_all(
    files: Sequence[tuple[Path, str]], header_room: Callable[[], HeaderRoom], known: Known | None = None
) -> Generator[Shard, None, None]:
    """Yield what files hold, in their order; several are read at once where each request takes long.

    Close it (`contextlib.closing`) where not all are taken.

    Args:
        files: each with the format that its name stands for.
        header_room: gives the room for the next header.
        known: as for `read`.

    Raises:
        StreamconvError: as `read`.
    """
    done = 0
    # A header that takes more than its share of the room is read alone, and so are those after it.
    with suppress(BudgetError):
        for shard in _read_far(files, header_room, known):
            yield shard
            done += 1
    for path, named in files[done:]:
        yield read(path, named, header_room(), known)


def _read_far(
    files: Sequence[tuple[Path, str]], header_room: Callable[[], HeaderRoom], known: Known | None
) -> Generator[Shard, None, None]:
    def read_one(file: tuple[Path, str]) -> Shard:
        return read(*file, header_room().share(_SHARES), known)

    if len(files) > 1 and mounts.lies_far(files[0][0]):
        with closing(in_order(files, [read_one] * _AT_ONCE)) as shards:
            yield from shards


def _read(path: Path, named: str, header_room: HeaderRoom, known: Known | None) -> tuple[str, File]:
    try:
        return named, _READERS[named](path, header_room, known)
    except (SourceError, UnsupportedError):
        other = contents.format_of(path) or named
        if other == named:
            raise
    return other, _READERS[other](path, header_room, known)
