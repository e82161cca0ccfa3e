"""One strategy file of MindSpore: how a distributed training cuts its tensors, as protobuf or JSON.

    ParallelStrategyMap   1 current_stage, 2 ParallelStrategyItem…, 3 ParallelLayoutItem…
    ParallelStrategyItem  1 node name, 2 {1 stage, …}: of an operator; all that is used is the stage of the first
    ParallelLayoutItem    1 parameter's name, 2 ParallelLayouts
    ParallelLayouts       1 device matrix, 2 tensor map…, 3 param_split_shape, 4 indices_offset,
                          5 field, 6 opt_weight_shard_step, 7 opt_weight_shard_size

A tensor map with several axes on one dimension is several messages, one for each dimension. Of a one-dimensional
tensor it is one message, like a plain map: only the tensor's shape tells them apart (`DeviceLayout.for_dims`).

A merged file has the parameters of all stages, `0-NAME`. Source: MindSpore 2.10, `node_strategy.proto` and
`mindspore.parallel._parallel_serialization` (measured).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from msgspec import Struct

from ..errors import SourceError
from ..formats import contents
from ..formats.header_room import HeaderRoom
from ..formats.headers import (
    DOWNLOAD_AGAIN,
    check_json,
    is_unicode,
    opened,
    parse_json_object,
    read_at,
    read_head,
)
from ..formats.protobuf import BYTES, VARINT
from ..formats.rank_slices import STRATEGY_BEGINS
from ..text import quote
from . import strategy_json
from .device_layouts import DeviceLayout
from .layout_checks import MAX_RANKS, Stated, check_ranks, layout_of
from .messages import Message, bytes_field, number_field, numbers_message, signed

# A strategy begins with any of these fields: a number, an operator, a parameter; a checkpoint with a message.
_BEGINS = (STRATEGY_BEGINS, b"\x12", b"\x1a")
_CHECKPOINT_BEGINS = b"\x0a"
_JSON_ENDING = ".json"
_MERGED = re.compile(r"(0|[1-9][0-9]{0,6})-(.*)", re.DOTALL)
_SNIFFED = 512
# What a parameter takes in memory besides its bytes, in bytes of header.
_PARAMETER_COST = 32

_ITEM, _LAYOUT_ITEM = 2 << 3 | BYTES, 3 << 3 | BYTES
_NAME, _INNER = 1 << 3 | BYTES, 2 << 3 | BYTES
_STAGE = 1 << 3 | VARINT
_DEVICES, _MAP, _PARTS = (number << 3 | BYTES for number in (1, 2, 3))
_FIELD, _STEP, _SHARDS = (number << 3 | VARINT for number in (5, 6, 7))


class StrategyFile(Struct, frozen=True, dict=True):
    """What one file states.

    Attributes:
        stage: of its operators; `None` where it lists none.
        layouts: parameter → layout, under the names in the file.
    """

    stage: int | None
    layouts: Mapping[str, DeviceLayout]

    @cached_property
    def is_merged(self) -> bool:
        """Whether it has several stages' parameters: then, and only then, all names begin with a stage."""
        return all(map(_MERGED.fullmatch, self.layouts))

    @cached_property
    def stages(self) -> Mapping[int | None, Mapping[str, DeviceLayout]]:
        """Stage → parameter → layout, under the parameters' own names."""
        if not self.is_merged:
            return {self.stage: self.layouts}
        found: dict[int | None, dict[str, DeviceLayout]] = {}
        for name, layout in self.layouts.items():
            if match := _MERGED.fullmatch(name):
                found.setdefault(int(match[1]), {})[match[2]] = layout
        return found


def load(path: Path, header_room: HeaderRoom) -> bytes:
    """Return the bytes of a strategy file; what begins like something else is refused unread.

    Args:
        path: the file.
        header_room: bytes that it may have.

    Raises:
        SourceError: unreadable, empty, or no strategy.
        BudgetError: longer than `header_room` allows.
    """
    with opened(path) as (descriptor, file):
        head = read_head(descriptor, file, _SNIFFED)
        if what := _what_else(head, path, file.size):
            raise SourceError(
                f"{quote(path.name)} is not a strategy file of MindSpore: it {what}",
                "give the file that the training saved as strategy_ckpt_save_file, such as ckpt_strategy_rank_0.ckpt",
            )
        header_room.check(file.size, quote(path.name))
        return read_at(descriptor, 0, file.size, file)


def _what_else(head: bytes, path: Path, size: int) -> str:
    """Return what a file is by its first bytes; nothing if it may be a strategy."""
    found, is_json = contents.format_by(head, size), path.suffix == _JSON_ENDING
    if found in ("torch", "safetensors"):
        return f"is a {found} file"
    if not any(head):
        return f"begins with {len(head)} zeros"
    if head.lstrip().startswith(b"{") or (not is_json and head.startswith(_BEGINS)):
        return ""
    return "begins like a checkpoint" if head.startswith(_CHECKPOINT_BEGINS) else "does not begin like one"


def decode(data: bytes, path: Path, header_room: HeaderRoom) -> StrategyFile:
    """Return what the bytes of a strategy file state.

    Args:
        data: all its bytes.
        path: the file, for its ending and for errors.
        header_room: bytes of header that they may count as.

    Raises:
        SourceError: damaged, without a layout, or with one that contradicts itself.
        UnsupportedError: a tensor that is cut into parts of different sizes.
        BudgetError: more than `header_room` allows.
    """
    is_json = path.suffix == _JSON_ENDING or data.startswith(b"{")
    found = (_from_json if is_json else _from_protobuf)(data, path.name, header_room)
    where = quote(path.name)
    if not found.layouts:
        raise SourceError(
            f"{where} states the layout of no tensor", "give a strategy file that a distributed training saved"
        )
    if found.stage is not None and found.stage >= MAX_RANKS:
        raise SourceError(f"{where} is of stage {found.stage}, more than any training has", DOWNLOAD_AGAIN)
    for layouts in found.stages.values():
        check_ranks(layouts, where)
    return found


def read(path: Path, header_room: HeaderRoom) -> StrategyFile:
    """Return what a strategy file states; arguments and errors as in `load` and `decode`."""
    return decode(load(path, header_room), path, header_room)


def _collected(
    pairs: Iterable[tuple[str, DeviceLayout]], size: int, name: str, header_room: HeaderRoom
) -> dict[str, DeviceLayout]:
    found: dict[str, DeviceLayout] = {}
    for parameter, layout in pairs:
        if not is_unicode(parameter):
            raise SourceError(f"{quote(name)} has a name that is not Unicode: {quote(parameter)}", DOWNLOAD_AGAIN)
        if found.setdefault(parameter, layout) != layout:
            raise SourceError(f"{quote(name)} states two layouts of {quote(parameter)}", DOWNLOAD_AGAIN)
        if (needed := size + len(found) * _PARAMETER_COST) > header_room.nbytes:
            header_room.check(needed, f"{quote(name)} ({size} bytes)")
    return found


def _from_json(data: bytes, name: str, header_room: HeaderRoom) -> StrategyFile:
    where = quote(name)
    check_json(data, where, header_room)
    strategy = parse_json_object(data, where)
    pairs = (
        (parameter, layout_of(stated, f"{where}: {quote(parameter)}"))
        for parameter, stated in strategy_json.layouts(strategy, where)
    )
    return StrategyFile(strategy_json.stage_of(strategy, where), _collected(pairs, len(data), name, header_room))


def _from_protobuf(data: bytes, name: str, header_room: HeaderRoom) -> StrategyFile:
    stage: int | None = None
    items: list[Message] = []
    for key, _, inner in Message(data, 0, name).fields():
        if key == _ITEM and stage is None:
            stage = _stage(inner)
        elif key == _LAYOUT_ITEM:
            items.append(inner)
    return StrategyFile(stage, _collected(_layouts(items), len(data), name, header_room))


def _stage(item: Message) -> int:
    fields = [
        value for key, _, inner in item.fields() if key == _INNER for k, value, _ in inner.fields() if k == _STAGE
    ]
    return fields[-1] if fields else 0


def _layouts(items: list[Message]) -> Iterator[tuple[str, DeviceLayout]]:
    # A model has few different layouts, and many tensors of each.
    known: dict[bytes, DeviceLayout] = {}
    for item in items:
        parameter, stated = _halves(item)
        layout = known.get(stated.data)
        if layout is None:
            where = f"{quote(item.name)}, byte {item.at}: {quote(parameter)}"
            layout = known[stated.data] = layout_of(_stated(stated, where), where)
        yield parameter, layout


def _halves(item: Message) -> tuple[str, Message]:
    parameter, stated = None, None
    for key, _, inner in item.fields():
        if key == _NAME:
            parameter = inner.text()
        elif key == _INNER:
            # Protobuf merges what is there twice, and to put the bytes together is to merge.
            stated = inner if stated is None else inner._replace(data=stated.data + inner.data)
    if parameter is None or stated is None:
        raise item.broken(0, "a layout has no name, or a name no layout")
    return parameter, stated


def _stated(message: Message, where: str) -> Stated:
    lists: dict[int, list[tuple[int, ...]]] = {_DEVICES: [], _MAP: [], _PARTS: []}
    numbers = {_FIELD: 0, _STEP: 0, _SHARDS: 0}
    for key, value, inner in message.fields():
        if key in lists:
            lists[key].append(inner.numbers())
        elif key in numbers:
            numbers[key] = signed(value)
    if not lists[_DEVICES] or not lists[_MAP]:
        raise SourceError(f"{where} has no device matrix or no tensor map", DOWNLOAD_AGAIN)
    parts = lists[_PARTS][0] if lists[_PARTS] else ()
    return Stated(lists[_DEVICES][0], lists[_MAP], parts, numbers[_FIELD], numbers[_STEP], numbers[_SHARDS])


def encode(stage: int, layouts: Mapping[str, DeviceLayout]) -> bytes:
    """Return the strategy file of a pipeline stage, as MindSpore reads it.

    Optimizer sharding where no rank has a copy to cut is left out: it cuts nothing.

    Args:
        stage: its number, from 0.
        layouts: parameter → layout, in the order of the file.
    """
    # MindSpore takes the stage from the first operator, whatever that is; it needs one.
    operator = bytes_field(1, b"Parameter-op0") + bytes_field(2, number_field(1, stage) + bytes_field(2, b""))
    known: dict[DeviceLayout, bytes] = {}
    parts = [number_field(1, stage), bytes_field(2, operator)]
    for name, layout in layouts.items():
        if layout not in known:
            known[layout] = bytes_field(2, _encoded(layout))
        parts.append(bytes_field(3, bytes_field(1, name.encode()) + known[layout]))
    return b"".join(parts)


def _encoded(layout: DeviceLayout) -> bytes:
    maps = b"".join(bytes_field(2, numbers_message(one)) for one in _maps(layout.axes))
    step, shards = (_step(layout), layout.optimizer_shards) if layout.shards > 1 else (0, 0)
    # MindSpore takes the first of `param_split_shape` and `indices_offset`, which has to be there and be empty.
    empty = bytes_field(3, b"") + bytes_field(4, b"")
    numbers = number_field(5, 0) + number_field(6, step) + number_field(7, shards)
    return bytes_field(1, numbers_message(layout.devices)) + maps + empty + numbers


def _maps(axes: Sequence[tuple[int, ...]]) -> Sequence[Sequence[int]]:
    """Return one map of all dimensions, or one for each where several axes cut one of several."""
    lists = [one or (-1,) for one in axes]
    if len(lists) > 1 and any(len(one) > 1 for one in lists):
        return lists
    return [[axis for one in lists for axis in one]]


def _step(layout: DeviceLayout) -> int:
    """Return how far apart the ranks are that hold copies, on average, as MindSpore states it."""
    strides = [math.prod(layout.devices[position + 1 :]) for position in layout.free]
    sizes = [layout.devices[position] for position in layout.free]
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return last // (math.prod(sizes) - 1)
