"""Several files as one checkpoint: their names, their index, and how tensors are split among them.

Both worlds use the same JSON, `{"metadata": {"total_size": N}, "weight_map": {tensor: file}}`: HuggingFace as
`model.safetensors.index.json` (`pytorch_model.bin.index.json` for torch files), MindSpore 2.10 as
`param_name_map.json`, which may also be the bare map (measured). An index is text from outside: the files that it
names must lie in the same directory.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import cast

from ..errors import SourceError
from ..tensors.refs import TensorSpec, bytes_of
from ..text import first_few, quote
from .header_room import HeaderRoom
from .headers import DOWNLOAD_AGAIN, is_plain_name, opened, parse_json_object, read_json, refuse_pointer

HF_INDEX = "model.safetensors.index.json"
MS_MAP = "param_name_map.json"
#: What unified_safetensors of MindSpore writes next to its map, without naming it there: parameters of no strategy.
MS_REST = "hyper_param.safetensors"
TORCH_INDEX = "pytorch_model.bin.index.json"

_SHOWN = 3


def hf_shard_name(i: int, n: int) -> str:
    """Return the name that HuggingFace gives shard `i` (from 1) of `n`.

    >>> hf_shard_name(1, 1), hf_shard_name(1, 2)
    ('model.safetensors', 'model-00001-of-00002.safetensors')
    """
    return "model.safetensors" if n == 1 else f"model-{i:05}-of-{n:05}.safetensors"


def ms_shard_name(i: int, n: int) -> str:
    """Return the name that MindFormers gives shard `i` (from 1) of `n`.

    >>> ms_shard_name(1, 2)
    'ms-model-00001-of-00002.safetensors'
    """
    return f"ms-model-{i:05}-of-{n:05}.safetensors"


def index_bytes(total_size: int, weight_map: Mapping[str, str]) -> bytes:
    """Return the content of an index.

    Args:
        total_size: bytes of all tensors.
        weight_map: tensor name → file name, in the order of the index.
    """
    # ASCII only, because MindSpore opens the map in the encoding of the locale.
    files = {file: encode_basestring_ascii(file) for file in set(weight_map.values())}
    lines = ",\n".join(f"    {encode_basestring_ascii(name)}: {files[file]}" for name, file in weight_map.items())
    head = f'{{\n  "metadata": {{\n    "total_size": {total_size}\n  }},\n  "weight_map": {{\n'
    return f"{head}{lines}\n  }}\n}}\n".encode()


def split(tensors: Sequence[TensorSpec], max_shard_size: int) -> list[list[TensorSpec]]:
    """Return shards of at most `max_shard_size` bytes of data, filled in the given order, as huggingface_hub does.

    A tensor above the limit gets a shard of its own; the shard being filled stays open, and follows it.

    Args:
        tensors: what is split.
        max_shard_size: bytes.
    """
    shards: list[list[TensorSpec]] = []
    current: list[TensorSpec] = []
    filled = 0
    for spec, nbytes in zip(tensors, bytes_of(tensors), strict=True):
        if nbytes > max_shard_size:
            shards.append([spec])
            continue
        if filled + nbytes > max_shard_size:
            shards.append(current)
            current, filled = [], 0
        current.append(spec)
        filled += nbytes
    return [*shards, current] if current else shards


def read_index(path: Path, header_room: HeaderRoom) -> dict[str, str]:
    """Return tensor name → file name, as the index states; every file name is a plain one.

    Args:
        path: the index.
        header_room: bytes that it may have; a longer one is refused unread.

    Raises:
        SourceError: unreadable, not such an index, empty, or it names files outside its directory.
        BudgetError: longer than `header_room` allows.
    """
    name = quote(path.name)
    with opened(path) as (descriptor, file):
        text = read_json(descriptor, file, 0, file.size, name, header_room)
    refuse_pointer(text, name)
    index = parse_json_object(_utf_8(text, name), name)
    inner = index.get("weight_map")
    weight_map = inner if isinstance(inner, dict) else index
    if not weight_map or {*map(type, weight_map.values())} != {str}:
        raise SourceError(f"{name} has no weight_map of tensor names to file names", DOWNLOAD_AGAIN)
    found = cast("dict[str, str]", weight_map)
    outside = sorted(shard for shard in {*found.values()} if not is_plain_name(shard, portable=True))
    if outside:
        raise SourceError(
            f"{name} names files that are not plain names in its directory: {listing(outside)}", DOWNLOAD_AGAIN
        )
    return found


def _utf_8(text: bytes, name: str) -> bytes:
    """Return JSON without the byte order mark that editors on Windows write."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in text[:2]:
        raise SourceError(f"{name} is UTF-16", "save it as UTF-8")
    return text.removeprefix(codecs.BOM_UTF8)


def listing(items: Sequence[str], count: int | None = None) -> str:
    """Return the first few of these names from outside, and how many more there are.

    Args:
        items: the names, or the first of them.
        count: how many there are; without it, as many as `items`.
    """
    shown = first_few(items[:_SHOWN], _SHOWN, quote)
    more = (len(items) if count is None else count) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
