"""`metadata.json` of MindFormers 1.7 to 2.1 (`use_legacy_format: False`): which file has which slice of which tensor.

    "state_dict_metadata": {NAME: {"properties": {"dtype", …}, "global_shape", "axis_fragmentations", "layout",
                                   "chunk": [{"global_offset": [SLICE], "local_shape"}, …]}, …}
    "storage_data":        {"(NAME, (SLICE,))": [{"file_name", "storage_rank", "rank_group"}, …], …}

Dimensions are cut into `axis_fragmentations` equal parts; `global_offset` is no offset but the number of a slice, the
first dimension the most significant. A key of `storage_data` is Python's `repr`. `layout` is null for a whole tensor
(2.0 on), `rank_group` is there from 1.9 on. Optimizer sharding is part of the layout. Measured with 1.7.0 to 2.1.0.

MindFormers loads what metadata names without a look at what a file holds, and so may load another rank's slice. A rank
writes files of its own; so two ranks that have the same file are the sign of metadata that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from ..errors import SourceError, UnsupportedError
from ..formats.header_room import HeaderRoom
from ..formats.headers import (
    DOWNLOAD_AGAIN,
    is_plain_name,
    is_unicode,
    opened,
    parse_json_object,
    read_json,
    refuse_pointer,
    shape_nbytes,
)
from ..formats.shards import listing
from ..tensors.dtypes import DTYPES, DType
from ..text import counted, quote
from .device_layouts import DeviceLayout, slice_numbers
from .json_values import entries, integer, integers, items
from .layout_checks import MAX_RANKS, Stated, layout_of

_SAVE_AGAIN = f"{DOWNLOAD_AGAIN}; if it is the same, the training has to save the checkpoint again"
# MindFormers writes `float32` in graph mode and `Float32` in PyNative mode.
_DTYPES = {dtype.mindspore.lower(): dtype for dtype in DTYPES if dtype.mindspore}


class Holder(NamedTuple):
    """A file that holds a slice, and the rank that wrote it."""

    file_name: str
    rank: int


class SavedLayout(NamedTuple):
    """How the slices were placed: the layout, and the ranks of its devices, in the order of the device matrix."""

    layout: DeviceLayout
    ranks: tuple[int, ...]

    def slices(self) -> dict[int, int]:
        """Return rank → number of the slice that it has."""
        return dict(zip(self.ranks, slice_numbers(self.layout), strict=True))


class ShardedTensor(Struct, frozen=True):
    """A tensor in slices.

    Attributes:
        dtype: of its elements.
        shape: the whole tensor's.
        divisions: into how many equal parts each dimension is cut.
        holders: who has which slice, by the number of the slice: the first dimension is the most significant.
        saved: the layout it had in training, where that is stated.
    """

    dtype: DType
    shape: tuple[int, ...]
    divisions: tuple[int, ...]
    holders: tuple[tuple[Holder, ...], ...]
    saved: SavedLayout | None = None

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """The shape of each slice."""
        return tuple(size // divisions for size, divisions in zip(self.shape, self.divisions, strict=True))


def read(path: Path, header_room: HeaderRoom) -> Mapping[str, ShardedTensor]:
    """Return the tensors that a metadata.json lists, in its order.

    Args:
        path: the file.
        header_room: bytes that it may have, counting what its values take as objects.

    Raises:
        SourceError: unreadable, damaged, contradicts itself, or names files outside its directory.
        UnsupportedError: a dtype that streamconv does not know, or interleaved slices.
        BudgetError: more than `header_room` allows.
    """
    where = quote(path.name)
    with opened(path) as (descriptor, file):
        text = read_json(descriptor, file, 0, file.size, where, header_room)
    refuse_pointer(text, where)
    metadata = parse_json_object(text, where)
    tensors = entries(metadata.get("state_dict_metadata"), f"state_dict_metadata of {where}")
    storage = _Storage(where, entries(metadata.get("storage_data"), f"storage_data of {where}"))
    if not tensors:
        raise SourceError(f"{where} lists no tensor", _SAVE_AGAIN)
    found = {name: _tensor(name, entries(stated, _of(where, name)), storage) for name, stated in tensors.items()}
    storage.refuse_rest()
    return found


def _of(where: str, name: str) -> str:
    return f"{where}: {quote(name)}"


class _Storage:
    """`storage_data`: who holds what, checked while tensors ask for it."""

    def __init__(self, where: str, stated: Mapping[str, object]) -> None:
        self.where = where
        self._stated = stated
        self._asked: set[str] = set()
        # Thousands of tensors have the same few holders.
        self._known: dict[tuple[Holder, ...], tuple[Holder, ...]] = {}
        self._ranks: dict[str, tuple[Holder, str]] = {}
        self._slices: dict[SavedLayout, dict[int, int]] = {}

    def holders(self, name: str, number: int) -> tuple[Holder, ...]:
        """Return who holds this slice of a tensor; at least one."""
        key = repr((name, (number,)))
        where = f"{_of(self.where, name)}, slice {number}"
        if not self._stated.get(key):
            raise SourceError(f"{where}: storage_data names no file that holds it", _SAVE_AGAIN)
        self._asked.add(key)
        found = tuple(self._holder(entries(one, where), name, where) for one in items(self._stated[key], where))
        return self._known.setdefault(found, found)

    def check_ranks(self, saved: SavedLayout, holders: Sequence[Sequence[Holder]], where: str) -> None:
        """Refuse a slice that is stored by a rank which has another one, by the tensor's layout.

        In which order MindFormers 2.1 lists several axes of a dimension in PyNative mode was not measured. Tensors of
        such a layout have to agree with each other.
        """
        is_measured = all(len(axes) < 2 for axes in saved.layout.axes)
        if saved not in self._slices:
            self._slices[saved] = saved.slices() if is_measured else {}
        known, by = self._slices[saved], "its layout" if is_measured else "other tensors of its layout"
        for number, some in enumerate(holders):
            for rank in (holder.rank for holder in some):
                has = known.get(rank) if is_measured else known.setdefault(rank, number)
                if has != number:
                    words = "its layout is for other ranks" if has is None else f"by {by} that rank has slice {has}"
                    raise SourceError(f"{where}, slice {number} is stored by rank {rank}, and {words}", _SAVE_AGAIN)

    def refuse_rest(self) -> None:
        """Refuse entries of no tensor: MindFormers lists both from one list, so a tensor's shape is lost here."""
        if rest := [key for key in self._stated if key not in self._asked]:
            raise SourceError(
                f"{self.where}: storage_data has {counted(len(rest), 'slice')} of no tensor in state_dict_metadata: "
                f"{listing(rest)}",
                _SAVE_AGAIN,
            )

    def _holder(self, stated: Mapping[str, object], name: str, where: str) -> Holder:
        file_name = stated.get("file_name")
        if not isinstance(file_name, str) or not is_plain_name(file_name, portable=True):
            raise SourceError(f"{where} is in a file without a plain name: {quote(file_name)}", _SAVE_AGAIN)
        rank = _rank(integer(stated.get("storage_rank"), f"storage_rank of {where}"), where)
        if rank not in _ranks(stated.get("rank_group", [rank]), where):
            raise SourceError(f"{where} is stored by rank {rank}, which is not in its rank_group", _SAVE_AGAIN)
        known, first = self._ranks.setdefault(file_name, (Holder(file_name, rank), name))
        if known.rank != rank:
            raise SourceError(
                f"{self.where} says that rank {known.rank} wrote {quote(file_name)}, for {quote(first)}, and that rank "
                f"{rank} did, for {quote(name)}: one of them is another rank's slice",
                _SAVE_AGAIN,
            )
        return known


def _tensor(name: str, stated: Mapping[str, object], storage: _Storage) -> ShardedTensor:
    where = _of(storage.where, name)
    if not is_unicode(name):
        raise SourceError(f"{where} has a name that is not Unicode", _SAVE_AGAIN)
    dtype = _dtype(entries(stated.get("properties"), f"properties of {where}").get("dtype"), where)
    shape = integers(stated.get("global_shape"), f"global_shape of {where}")
    shape_nbytes(shape, dtype, where)
    divisions = integers(stated.get("axis_fragmentations"), f"axis_fragmentations of {where}")
    _check_divisions(shape, divisions, where)
    slices = _slices(items(stated.get("chunk"), f"chunk of {where}"), where)
    _check_slices(slices, shape, divisions, where)
    holders = tuple(storage.holders(name, number) for number in range(len(slices)))
    saved = _saved(stated.get("layout"), divisions, where)
    if saved:
        storage.check_ranks(saved, holders, where)
    return ShardedTensor(dtype, shape, divisions, holders, saved)


def _dtype(stated: object, where: str) -> DType:
    dtype = _DTYPES.get(stated.lower()) if isinstance(stated, str) else None
    if dtype is None:
        raise UnsupportedError(
            f"{where} has type {quote(stated)}, which streamconv cannot read; it reads {', '.join(_DTYPES)}"
        )
    return dtype


def _check_divisions(shape: Sequence[int], divisions: Sequence[int], where: str) -> None:
    if len(shape) != len(divisions) or any(
        count < 1 or size % count for size, count in zip(shape, divisions, strict=False)
    ):
        raise SourceError(
            f"{where} of shape {list(shape)} cannot be cut into {list(divisions)} equal parts", _SAVE_AGAIN
        )


def _slices(chunks: Sequence[object], where: str) -> dict[int, tuple[int, ...]]:
    """Return slice number → shape."""
    found: dict[int, tuple[int, ...]] = {}
    for chunk in chunks:
        stated = entries(chunk, f"a chunk of {where}")
        offset = integers(stated.get("global_offset"), f"global_offset of {where}")
        if len(offset) != 1 or offset[0] in found:
            raise SourceError(
                f"{where} has a global_offset that is no slice's number of its own: {list(offset)}", _SAVE_AGAIN
            )
        found[offset[0]] = integers(stated.get("local_shape"), f"local_shape of {where}")
    return found


def _check_slices(
    slices: Mapping[int, tuple[int, ...]], shape: Sequence[int], divisions: Sequence[int], where: str
) -> None:
    count = math.prod(divisions)
    if len(slices) != count or any(not 0 <= number < count for number in slices):
        raise SourceError(
            f"{where} is cut into {counted(count, 'slice')}, and its chunks are {listing([*map(str, slices)])}",
            _SAVE_AGAIN,
        )
    expected = tuple(size // parts for size, parts in zip(shape, divisions, strict=True))
    for number, found in slices.items():
        if found != expected:
            raise SourceError(
                f"{where}, slice {number} has the shape {list(found)}, and {list(expected)} is one of {count} of "
                f"{list(shape)}",
                _SAVE_AGAIN,
            )


def _saved(stated: object, divisions: tuple[int, ...], where: str) -> SavedLayout | None:
    if stated is None:
        return None
    values = entries(stated, f"layout of {where}")
    if values.get("interleaved_parallel"):
        raise UnsupportedError(
            f"{where} is saved with interleaved_parallel, which streamconv cannot read",
            "train and save without interleaved parallelism",
        )
    devices = integers(values.get("device_matrix"), f"device_matrix of {where}")
    maps = [*_maps(items(values.get("tensor_map"), f"tensor_map of {where}"), where)]
    layout = layout_of(Stated(devices, maps, is_by_dimension=True), f"{where}, layout,")
    ranks = _ranks(values.get("rank_list"), where)
    if layout.divisions != divisions or len(set(ranks)) != len(ranks) or len(ranks) != layout.ranks:
        raise SourceError(
            f"{where} is cut into {list(divisions)} parts, and its layout is of {list(layout.divisions)} parts for "
            f"{layout.ranks} ranks, of which rank_list names {len(set(ranks))}",
            _SAVE_AGAIN,
        )
    return SavedLayout(layout, ranks)


def _maps(tensor_map: Sequence[object], where: str) -> Iterator[tuple[int, ...]]:
    for axes in tensor_map:
        yield integers(axes if isinstance(axes, list) else [axes], f"tensor_map of {where}")


def _ranks(stated: object, where: str) -> tuple[int, ...]:
    return tuple(_rank(rank, where) for rank in integers(stated, f"the ranks of {where}"))


def _rank(rank: int, where: str) -> int:
    if not 0 <= rank < MAX_RANKS:
        raise SourceError(f"{where} names the rank {rank}, and no training has it", DOWNLOAD_AGAIN)
    return rank
