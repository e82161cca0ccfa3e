"""Checkpoints that mindone saved: what names tell, what they do not, and that there is no other way."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamconv
from streamconv.errors import SourceError, UnsupportedError, UsageError
from streamconv.formats import safetensors
from streamconv.tensors.dtypes import F32
from streamconv.tensors.refs import TensorSpec
from support import golden

CELLS = {
    "embed.embedding_table": (10, 8),
    "bn.gamma": (8,),
    "bn.beta": (8,),
    "bn.moving_mean": (8,),
    "bn.moving_variance": (8,),
    "conv.weight": (8, 2, 1, 3),
    "conv.bias": (8,),
    "pos.weight_g": (1, 1, 1, 8),
    "image.weight": (8, 2, 3, 3),
    "proj.weight": (3, 8),
}


def store(path: Path, cells: dict[str, tuple[int, ...]]) -> Path:
    specs = [TensorSpec(name, F32, shape) for name, shape in cells.items()]
    data = {spec.name: golden.golden_bytes(spec) for spec in specs}
    golden.write(path, safetensors.lay_out(path.name, specs, {}), data)
    return path


@pytest.fixture
def saved(tmp_path) -> Path:
    return store(tmp_path / "model.safetensors", CELLS)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (_, shape, _) in golden.found(path).items()}


def test_which_convolutions_are_one_dimensional_is_asked(saved, tmp_path) -> None:
    with pytest.raises(UsageError, match=r'"conv1d": "false"(.|\n)*"conv1d": "true"'):
        streamconv.plan(saved, tmp_path / "hf", model="mindone", reverse=True, max_mem="8G")


@pytest.mark.parametrize(("conv1d", "conv", "pos"), [(True, (8, 2, 3), (1, 1, 8)), (False, (8, 2, 1, 3), (1, 1, 1, 8))])
def test_names_and_axes(saved, tmp_path, conv1d, conv, pos) -> None:
    streamconv.convert(saved, tmp_path / "hf", model="mindone", reverse=True, options={"conv1d": conv1d}, max_mem="8G")
    assert shapes(tmp_path / "hf") == {
        "embed.weight": (10, 8),
        "bn.weight": (8,),
        "bn.bias": (8,),
        "bn.running_mean": (8,),
        "bn.running_var": (8,),
        "conv.weight": conv,
        "conv.bias": (8,),
        "pos.weight_g": pos,
        "image.weight": (8, 2, 3, 3),
        "proj.weight": (3, 8),
    }
    before, after = golden.found(saved), golden.found(tmp_path / "hf")
    assert sorted(digest for *_, digest in before.values()) == sorted(digest for *_, digest in after.values())


def test_a_gamma_by_itself_is_not_taken_for_a_norm_s(tmp_path) -> None:
    """Models with a scale for each layer call it so in HuggingFace too."""
    saved = store(tmp_path / "model.safetensors", {"block.gamma": (8,), "block.proj.weight": (8, 8)})
    with pytest.raises(SourceError, match=r"block\.beta: missing"):
        streamconv.plan(saved, tmp_path / "hf", model="mindone", reverse=True, max_mem="8G")


def test_there_is_no_other_way(saved, tmp_path) -> None:
    with pytest.raises(UnsupportedError, match=r"do not tell which cells(.|\n)*from_pretrained"):
        streamconv.plan(saved, tmp_path / "ms", model="mindone", max_mem="8G")
