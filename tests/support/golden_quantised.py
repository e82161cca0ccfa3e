"""Quantised repositories with proven answers: what has to come out of each, or which error."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import streamconv

FOLDER = Path(__file__).parent.parent / "golden_quantised"
_QUIET = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000}


@dataclass(frozen=True)
class Case:
    """A repository, and the values of its `case.json`: see the README there."""

    name: str
    values: dict[str, Any]

    @property
    def source(self) -> Path:
        return FOLDER / self.name / "src"

    @property
    def dequantised(self) -> Path:
        """The same repository in BF16."""
        return FOLDER / self.name / "dequantised"

    @property
    def arguments(self) -> dict[str, Any]:
        return {**self.values["convert"], "format": "hf"}

    @property
    def expected(self) -> dict[str, tuple[str, list[int], str]]:
        return {one["name"]: (one["dtype"], one["shape"], one["sha256"]) for one in self.values["expected"]}


def cases(with_key: str) -> list[Case]:
    """All cases that have this key."""
    every = [Case(path.parent.name, json.loads(path.read_text())) for path in sorted(FOLDER.glob("*/case.json"))]
    return [case for case in every if with_key in case.values]


def found(folder: Path) -> dict[str, tuple[str, list[int], str]]:
    """Name, dtype, shape and digest of every tensor; a NaN counts as the positive quiet one."""
    with streamconv.open(folder) as opened:
        return {one.name: (one.dtype_name, list(one.shape), _digest(one)) for one in opened.values()}


def _digest(tensor: streamconv.LazyTensor) -> str:
    values = tensor.numpy()
    if tensor.dtype_name in _QUIET:
        bits = values.view(f"<u{values.itemsize}")
        values = np.where(np.isnan(values), bits.dtype.type(_QUIET[tensor.dtype_name]), bits)
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def at(values: Any, dotted: str) -> Any:
    """The value under a dotted key, `None` if there is none."""
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values
