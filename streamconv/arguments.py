"""The arguments of the public functions, as types."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypedDict

from .rules.family import Value

PathLike = str | os.PathLike[str]


class PlanOptions(TypedDict, total=False):
    """The keyword arguments of `plan`, for functions that pass them on."""

    model: str | None
    family: PathLike | None
    reverse: bool
    dtype: str | None
    options: Mapping[str, Value] | None
    format: str | None
    max_mem: str | int | None
    max_shard_size: str | int
    workers: int | None
    config: PathLike | None
    io: str
    crc: bool
    overwrite: bool
    restart: bool
    verify: bool
