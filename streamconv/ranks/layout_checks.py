"""What a strategy states of one tensor, checked and made a layout: hostile numbers end here.

Source: MindSpore 2.10, `node_strategy.proto` and `mindspore.parallel._parallel_serialization`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from ..errors import SourceError, UnsupportedError
from ..formats.headers import DOWNLOAD_AGAIN, MAX_RANK
from ..text import quote
from .device_layouts import DeviceLayout

#: More ranks than any training has; a larger number is damage.
MAX_RANKS = 1 << 20
_NOT_CUT = -1
_TRAIN_AGAIN = "merge this checkpoint with MindSpore itself, mindspore.transform_checkpoints, and give the result"


class Stated(NamedTuple):
    """What a strategy states of one tensor, unchecked.

    Attributes:
        devices: the device matrix.
        maps: one map for all dimensions, or the device axes of each dimension, -1 for none.
        parts: `param_split_shape`: the sizes of uneven parts of an embedding.
        field: above 0 for an embedding that is cut by fields.
        step, shards: `opt_weight_shard_step` and `opt_weight_shard_size`.
        shape: the whole tensor's, in JSON.
        is_by_dimension: whether a single map is certainly that of one dimension.
    """

    devices: Sequence[int]
    maps: Sequence[Sequence[int]]
    parts: Sequence[int] = ()
    field: int = 0
    step: int = 0
    shards: int = 0
    shape: Sequence[int] | None = None
    is_by_dimension: bool = False


def layout_of(stated: Stated, where: str) -> DeviceLayout:
    """Return the layout that a strategy states.

    Args:
        stated: what it states.
        where: begins the error messages: the file and the parameter.

    Raises:
        SourceError: it contradicts itself, or has numbers that no training has.
        UnsupportedError: parts of different sizes, which MindSpore had for embeddings.
    """
    if stated.field > 0 or len(set(stated.parts)) > 1:
        raise UnsupportedError(f"{where} is cut into parts of different sizes, by field or by split", _TRAIN_AGAIN)
    if problem := _of_devices(stated.devices) or _of_maps(stated):
        raise SourceError(f"{where} {problem}", DOWNLOAD_AGAIN)
    layout = _settled(stated)
    if layout is None:
        raise SourceError(f"{where} has a tensor map for another number of dimensions than its shape", DOWNLOAD_AGAIN)
    if problem := _of_shards(layout):
        raise SourceError(f"{where} {problem}", DOWNLOAD_AGAIN)
    return layout


def check_ranks(layouts: Mapping[str, DeviceLayout], where: str) -> int:
    """Return how many ranks a stage has; `where` begins the error messages.

    Raises:
        SourceError: its layouts are for different numbers of ranks.
    """
    first, ranks = next((name, layout.ranks) for name, layout in layouts.items())
    for name, layout in layouts.items():
        if layout.ranks != ranks:
            raise SourceError(
                f"{where} is of one stage, and cuts {quote(first)} for {ranks} ranks, {quote(name)} for {layout.ranks}",
                "give the strategy of one training",
            )
    return ranks


def _of_devices(devices: Sequence[int]) -> str:
    if len(devices) > MAX_RANK:
        return f"has a device matrix of {len(devices)} axes, and {MAX_RANK} are the most"
    if wrong := next((size for size in devices if not 0 < size <= MAX_RANKS), None):
        return f"has a device matrix with an axis of {wrong} devices"
    if 0 in devices:
        return "has a device matrix with an axis of 0 devices"
    if (ranks := math.prod(devices)) > MAX_RANKS:
        return f"has a device matrix of {ranks} ranks, and {MAX_RANKS} are the most"
    return ""


def _of_maps(stated: Stated) -> str:
    if len(stated.maps) > MAX_RANK or any(len(one) > MAX_RANK for one in stated.maps):
        return f"has a tensor map of more than {MAX_RANK} dimensions"
    axes = [axis for axis in chain(*stated.maps) if axis != _NOT_CUT]
    for axis in axes:
        if not 0 <= axis < len(stated.devices):
            return f"is cut along device axis {axis}, and the device matrix has {len(stated.devices)}"
        if axes.count(axis) > 1:
            return f"is cut along device axis {axis} twice"
    return ""


def _of_shards(layout: DeviceLayout) -> str:
    copies = math.prod(layout.devices[position] for position in layout.free)
    if layout.optimizer_shards < -1:
        return f"is cut by optimizer sharding into {layout.optimizer_shards} parts"
    if copies % layout.shards:
        return f"is cut by optimizer sharding into {layout.shards} parts, and {copies} ranks have a copy to cut"
    return ""


def _settled(stated: Stated) -> DeviceLayout | None:
    """Return the layout; where its shape is stated, with that many dimensions or `None`."""
    is_list = len(stated.maps) == 1 and not stated.is_by_dimension
    maps = [(axis,) for axis in stated.maps[0]] if is_list else [one for one in stated.maps if one]
    layout = DeviceLayout(
        tuple(stated.devices),
        tuple(tuple(axis for axis in axes if axis != _NOT_CUT) for axes in maps),
        stated.shards if stated.step else 0,
        None if stated.shape is None else tuple(stated.shape),
        may_be_list=is_list and len(maps) > 1,
    )
    return layout if layout.shape is None else layout.for_dims(len(layout.shape))
