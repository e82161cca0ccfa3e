"""Golden cases of ranks the other way round: their whole tensors, and what files of ranks hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamconv.formats import ckpt, safetensors
from streamconv.formats.catalog import open_catalog
from streamconv.ranks import strategies
from streamconv.tensors.refs import TensorRef, TensorSpec
from support import golden

FOLDER = Path(__file__).parent.parent / "golden_ranks"


class Tensor(NamedTuple):
    """A tensor and its bytes."""

    spec: TensorSpec
    data: bytes

    @property
    def described(self) -> list[object]:
        """As the cases describe it."""
        return [self.spec.dtype.name, list(self.spec.shape), hashlib.sha256(self.data).hexdigest()]


def case(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((FOLDER / name / "case.json").read_text())
    return values


def cut_cases() -> list[str]:
    """Those that have a strategy, and slices of whole tensors that are known."""
    names = sorted(path.name for path in FOLDER.iterdir() if (path / "case.json").exists())
    return [name for name in names if (found := case(name))["kind"] == "merge" and found.get("strategy")]


def strategy_files(name: str) -> list[Path]:
    return [FOLDER / name / file for file in case(name)["strategy"]]


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    return {name: Tensor(TensorSpec(name, ref.dtype, ref.shape), _bytes(ref)) for name, ref in open_catalog(path).items()}


def _bytes(ref: TensorRef) -> bytes:
    return b"".join(e.file.path.read_bytes()[e.offset : e.offset + e.length] for e in ref.extents)


def whole_tensors(name: str) -> dict[str, Tensor]:
    """All tensors of a case, put together from its files, and compared with what the case says."""
    found = case(name)
    strategy = strategies.read(strategy_files(name))
    files = {int(r): tensors_in(FOLDER / name / entry["file"]) for r, entry in found["ranks"].items()}
    whole: dict[str, Tensor] = {}
    for stage in strategy.stages:
        for rank in range(stage.first_rank, stage.first_rank + stage.ranks):
            for one, held in files.get(rank, {}).items():
                _place(whole, one, held, stage, rank - stage.first_rank)
    expected = {**found["unified"], **found["not_in_strategy"]}
    return {one: tensor for one, tensor in whole.items() if one in expected and tensor.described == expected[one]}


def _place(whole: dict[str, Tensor], name: str, held: Tensor, stage: strategies.Stage, rank: int) -> None:
    layout = stage.layouts.get(name)
    fitting = layout.for_dims(len(held.spec.shape)) if layout else None
    if fitting is None:
        whole[name] = held
        return
    shape = tuple(size * count for size, count in zip(held.spec.shape, fitting.pieces, strict=True))
    array = _array(whole[name] if name in whole else Tensor(held.spec, bytes()), shape, held.spec.dtype.itemsize)
    at = zip(fitting.piece_of(rank), held.spec.shape, strict=True)
    array[tuple(slice(i * size, (i + 1) * size) for i, size in at)] = _array(
        held, held.spec.shape, held.spec.dtype.itemsize
    )
    whole[name] = Tensor(TensorSpec(name, held.spec.dtype, shape), array.tobytes())


def _array(tensor: Tensor, shape: tuple[int, ...], itemsize: int) -> NDArray[Any]:
    kind = np.dtype(f"<u{itemsize}")
    return np.frombuffer(tensor.data, kind).reshape(shape).copy() if tensor.data else np.zeros(shape, kind)


def write_whole(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write one file with all tensors, and return it."""
    specs = [tensor.spec for tensor in tensors.values()]
    if path.suffix == ".ckpt":
        file = ckpt.lay_out(path.name, specs)
    else:
        file = safetensors.lay_out(path.name, specs, {"format": "ms"})
    golden.write(path, file, {name: tensor.data for name, tensor in tensors.items()})
    return path
