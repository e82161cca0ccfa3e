"""What memory a whole checkpoint will need, judged by its headers without parsing one.

Whoever is refused because of one header learns a limit that suffices for all of them, and for planning what they list:
without this he would be refused again because of the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import BudgetError, StreamconvError
from ..storage import disk, whole_files
from ..units import CHUNK
from .header_room import HeaderRoom, limit_hint
from .headers import json_cost, opened, read_head
from .shards import HF_INDEX, MS_MAP

_ENDING = ".safetensors"

# What stays in memory of an index, and of headers, in bytes for each byte of header: measured with 100 shards of 1,000
# tensors. Of the largest header more stays, since the allocator keeps what parsing took.
_KEPT_OF_INDEX = 4
_KEPT = 6


class _Need(NamedTuple):
    """Bytes of header, counted as the header room counts them, and how many tensors they list."""

    cost: int
    tensors: int


def for_all_headers(error: BudgetError, path: Path, room: HeaderRoom) -> BudgetError:
    """Return the error with a limit that all headers of the checkpoint fit into, and its plan.

    Args:
        error: what refused one of them.
        path: the checkpoint's file or directory.
        room: what there was before the first was read.
    """
    with suppress(StreamconvError, OSError, ValueError):
        least = max(error.least, _least(path, room))
        message, _ = error.marked
        return BudgetError(message, limit_hint(least), least)
    return error


def _least(path: Path, room: HeaderRoom) -> int:
    names = disk.listdir(path) if disk.is_directory(path) else None
    files = [path] if names is None else [path / name for name in names if name.endswith(_ENDING)]
    headers = [_of_safetensors(file) for file in files if file.suffix == _ENDING]
    index = sum(_of_json(path / name).cost for name in (HF_INDEX, MS_MAP) if name in (names or ()))
    return _least_for(index, headers, room) if headers else 0


def _least_for(index: int, headers: Sequence[_Need], room: HeaderRoom) -> int:
    largest = max(need.cost for need in headers)
    rest = sum(need.cost for need in headers) - largest
    kept = room.resident + index * _KEPT_OF_INDEX + rest * _KEPT
    return max(
        room.resident + index * room.cost,
        room.least(largest, kept, sum(need.tensors for need in headers)),
    )


def _of_safetensors(path: Path) -> _Need:
    with opened(path) as (descriptor, file):
        length = min(int.from_bytes(read_head(descriptor, file, 8), "little"), file.size)
        return _counted(descriptor, 8, length)


def _of_json(path: Path) -> _Need:
    with opened(path) as (descriptor, file):
        return _counted(descriptor, 0, file.size)


def _counted(descriptor: int, offset: int, length: int) -> _Need:
    commas = tensors = 0
    for at in range(0, length, CHUNK):
        chunk = whole_files.read_up_to(descriptor, min(CHUNK, length - at), offset + at)
        commas += chunk.count(b",")
        tensors += chunk.count(b'"dtype"')
    return _Need(json_cost(length, commas), tensors)
