"""The golden cases of ranks the other way round: a whole file to be cut, and what the files of ranks hold then."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamconv.formats import ckpt, safetensors
from streamconv.formats.header_room import HeaderRoom
from streamconv.ranks.device_layouts import DeviceLayout
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import golden, golden_ranks
from support.golden_ranks import Expected, RankCase

#: Cases with slices, and a strategy that says how they were cut.
CUT = [case for case in golden_ranks.legacy_cases() if case.strategy_files]


def whole_tensors(case: RankCase) -> dict[str, tuple[Expected, bytes]]:
    """All tensors of a case, put together from the files of its ranks, and as the case says that they are."""
    expected, found = {**case.unified, **case.not_in_strategy}, {}
    held = {rank: golden_ranks.arrays(path) for rank, path in case.rank_files.items()}
    for name, (dtype, shape, digest) in expected.items():
        data = _joined(name, shape, case, held).tobytes()
        assert hashlib.sha256(data).hexdigest() == digest, name
        found[name] = (dtype, shape, digest), data
    return found


def _joined(
    name: str, shape: tuple[int, ...], case: RankCase, held: Mapping[int, Mapping[str, NDArray[Any]]]
) -> NDArray[Any]:
    whole: NDArray[Any] | None = None
    for rank, layout in _holders(name, case):
        if name in held.get(rank, {}):
            one = held[rank][name]
            whole = np.empty(shape, one.dtype) if whole is None else whole
            piece = layout.index_of(rank % layout.ranks) if layout else (0,) * one.ndim
            whole[tuple(slice(i * n, (i + 1) * n) for i, n in zip(piece, one.shape, strict=True))] = one
    assert whole is not None, name
    return whole


def _holders(name: str, case: RankCase) -> Iterator[tuple[int, DeviceLayout | None]]:
    """The ranks that may hold a tensor, and how it is cut for them: of the first stage that has it."""
    per_stage = case.world_size // len(case.layouts)
    stages = [stage for stage, layouts in case.layouts.items() if name in layouts]
    for rank in range(stages[0] * per_stage, (stages[0] + 1) * per_stage) if stages else range(case.world_size):
        yield rank, case.layouts[stages[0]][name] if stages else None


def write_whole(path: Path, case: RankCase) -> Path:
    """Write one file with all tensors of a case, and return it."""
    tensors = whole_tensors(case)
    specs = [
        TensorSpec(name, dtypes.from_safetensors(dtype, "here"), shape)
        for name, ((dtype, shape, _), _) in tensors.items()
    ]
    if path.suffix == ".ckpt":
        file = ckpt.lay_out(path.name, specs)
    else:
        file = safetensors.lay_out(path.name, specs, {"format": "ms"})
    golden.write(path, file, {name: data for name, (_, data) in tensors.items()})
    return path


def described(path: Path) -> dict[str, Expected]:
    """The tensors of one file, as cases say them."""
    names = {spec.name: spec.dtype.name for spec in _refs(path).values()}
    return {
        name: (names[name], array.shape, hashlib.sha256(array.tobytes()).hexdigest())
        for name, array in golden_ranks.arrays(path).items()
    }


def _refs(path: Path) -> Mapping[str, Any]:
    return ckpt.read(path)[1] if path.suffix == ".ckpt" else safetensors.read(path, HeaderRoom())[1]
