"""Checkpoints of many ranks, written by MindSpore and MindFormers, as data. See tests/golden_ranks/README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamconv.formats import ckpt, safetensors
from streamconv.formats.header_room import HeaderRoom
from streamconv.ranks.device_layouts import DeviceLayout
from streamconv.tensors.refs import TensorRef
from support import TESTS
from support.golden import stored_bytes

FOLDER = TESTS / "golden_ranks"

#: A tensor: safetensors' dtype name, shape, SHA-256 of its bytes.
Expected = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True)
class RankCase:
    """One golden case."""

    name: str
    values: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return FOLDER / self.name

    @property
    def is_hostile(self) -> bool:
        """Whether something in it is broken."""
        return bool(self.values["kind"] == "hostile")

    @property
    def is_legacy(self) -> bool:
        """Whether it has folders of ranks, not one of an iteration with a metadata.json."""
        return bool(self.values["format"] != "mf2")

    @property
    def checkpoint(self) -> Path:
        """The folder of rank folders, or the iteration's."""
        if self.is_legacy:
            return self.folder / str(self.values["ranks_dir"])
        return self.folder / str(self.values["root"]) / f"iteration_{self.values['iteration']:08}"

    @property
    def strategy_files(self) -> list[Path]:
        """The strategy files; none after data-parallel training, and for iterations."""
        return [self.folder / name for name in self.values.get("strategy") or ()]

    @property
    def world_size(self) -> int:
        """How many ranks the training had."""
        return int(self.values["world_size"])

    @cached_property
    def layouts(self) -> dict[int, dict[str, DeviceLayout]]:
        """Stage → parameter → layout."""
        return {
            int(stage): {name: _layout(stated) for stated in groups for name in stated["params"]}
            for stage, groups in self.values["layouts"].items()
        }

    @property
    def unified(self) -> dict[str, Expected]:
        """The whole tensors; of a hostile case those before it was broken."""
        return _expected(self.values["would_be" if self.is_hostile else "unified"])

    @property
    def not_in_strategy(self) -> dict[str, Expected]:
        """Scalars, and what no strategy names."""
        return _expected(self.values.get("not_in_strategy", {}))

    @property
    def optimizer(self) -> dict[str, Expected]:
        """Whole tensors of the optimizer, in its own files."""
        return _expected(self.values.get("optimizer", {}))

    @property
    def hf(self) -> dict[str, Expected]:
        """The HuggingFace tensors that the whole tensors are, converted."""
        return _expected(self.values["hf"])

    @property
    def model(self) -> dict[str, Any]:
        """Family (`model`), `options` and `config`."""
        return dict(self.values["model"])

    @property
    def rank_files(self) -> dict[int, Path]:
        """Rank → its file; the later one of several."""
        return {int(rank): self.folder / one["file"] for rank, one in self.values["ranks"].items()}

    @property
    def slices(self) -> dict[int, dict[str, Expected]]:
        """Rank → what its file holds."""
        return {int(rank): _expected(one["tensors"]) for rank, one in self.values["ranks"].items()}

    @property
    def files(self) -> dict[str, dict[str, Expected]]:
        """File of an iteration → what it holds."""
        return {name: _expected(tensors) for name, tensors in self.values["files"].items()}


def cases() -> list[RankCase]:
    """All cases."""
    return [RankCase(path.parent.name, json.loads(path.read_text())) for path in sorted(FOLDER.glob("*/case.json"))]


def legacy_cases(hostile: bool = False) -> list[RankCase]:
    """Cases with rank folders: the good ones, or the hostile."""
    return [case for case in cases() if case.is_legacy and case.is_hostile == hostile]


def case(start: str) -> RankCase:
    """The case whose name begins like this, such as `d07`."""
    return next(case for case in cases() if case.name.startswith(start))


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of one file, read the plainest way, as unsigned integers of their size."""
    _, refs = ckpt.read(path) if path.suffix == ".ckpt" else safetensors.read(path, HeaderRoom())
    return {name: _array(ref) for name, ref in refs.items()}


def _array(ref: TensorRef) -> NDArray[Any]:
    return np.frombuffer(stored_bytes(ref), f"u{ref.dtype.itemsize}").reshape(ref.shape)


def _layout(stated: Mapping[str, Any]) -> DeviceLayout:
    lists = [one if isinstance(one, list) else [one] for one in stated["tensor_map"]]
    axes = tuple(tuple(axis for axis in one if axis >= 0) for one in lists)
    shards = stated["opt_weight_shard_size"] if stated["opt_weight_shard_step"] else 0
    return DeviceLayout(tuple(stated["dev_matrix"]), axes, shards)


def _expected(tensors: Mapping[str, Any]) -> dict[str, Expected]:
    return {name: (dtype, tuple(shape), digest) for name, (dtype, shape, digest) in tensors.items()}
