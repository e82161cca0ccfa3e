"""A strategy file in JSON: the same values as in protobuf, under the names of its fields.

Besides, MindSpore writes each tensor's whole shape, `tensor_shape`. Source: MindSpore 2.10, `_build_json_strategy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .json_values import entries, integer, integers, items, key
from .layout_checks import Stated

_ITEMS, _LAYOUTS = "parallel_strategy_item", "parallel_layout_item"
_NUMBERS = ("field", "opt_weight_shard_step", "opt_weight_shard_size")


def stage_of(strategy: Mapping[str, object], where: str) -> int | None:
    """Return the stage of the first operator; `None` where there is none.

    Raises:
        SourceError: values of other types, as everywhere here.
    """
    for name, item in entries(strategy.get(_ITEMS) or {}, key(where, _ITEMS)).items():
        return integer(entries(item, key(where, name)).get("stage", 0), key(where, f"the stage of {name}"))
    return None


def layouts(strategy: Mapping[str, object], where: str) -> Iterator[tuple[str, Stated]]:
    """Yield what is stated of each parameter; `where` begins the error messages."""
    for name, item in entries(strategy.get(_LAYOUTS) or {}, key(where, _LAYOUTS)).items():
        yield name, _stated(entries(item, key(where, name)), key(where, name))


def _stated(item: Mapping[str, object], where: str) -> Stated:
    shape = item.get("tensor_shape")
    maps = items(item.get("tensor_map"), f"tensor_map of {where}")
    field, step, shards = (integer(item.get(name, 0), f"{name} of {where}") for name in _NUMBERS)
    return Stated(
        integers(item.get("dev_matrix"), f"dev_matrix of {where}"),
        _maps(maps, where),
        integers(item.get("param_split_shape") or [], f"param_split_shape of {where}"),
        field,
        step,
        shards,
        None if shape is None else integers(shape, f"tensor_shape of {where}"),
        _is_nested(maps),
    )


def _maps(found: list[object], where: str) -> list[tuple[int, ...]]:
    """Return one map, or one for each dimension where some are lists."""
    if not _is_nested(found):
        return [integers(found, f"tensor_map of {where}")]
    return [integers(one if isinstance(one, list) else [one], f"tensor_map of {where}") for one in found]


def _is_nested(found: list[object]) -> bool:
    return any(isinstance(one, list) for one in found)
