"""MindSpore cuts what streamconv converted, and cuts again what it cut: the same tensors in every rank."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.families import find
from streamconv.ranks.device_layouts import DeviceLayout
from streamconv.ranks.strategy_format import encode
from streamconv.tensors.refs import TensorSpec
from support import cut_ranks
from support.golden_ranks import Expected
from support.mindspore_loader import by_mindspore

if not importlib.util.find_spec("mindspore"):
    pytest.skip("MindSpore has no wheel for this Python", allow_module_level=True)

CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "num_local_experts": 8,
    "vocab_size": 160,
    "tie_word_embeddings": False,
}
OPTIONS = {"use_gmm": True}

#: Device matrix, device axes of tensor parallelism, those of expert parallelism, optimizer shards.
CUTS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]] = {
    "tensor": ((4,), (0,), (), 0),
    "experts": ((2, 2), (0,), (1,), 0),
    "optimizer": ((4, 2), (0,), (), -1),
    "optimizer_in_part": ((4, 2), (0,), (), 2),
    "axes": ((2, 2, 2), (2, 0), (1,), 0),
    "axes_ascending": ((2, 2, 2), (0, 1), (2,), 0),
    "axes_and_optimizer": ((2, 2, 2), (1, 0), (), -1),
}
#: Cut for the pipeline, two stages of two ranks, as one merged file.
PIPELINE = "pipeline"
NAMES = (*CUTS, PIPELINE)

_CUT = """
import os, sys
import mindspore
if __name__ == "__main__":
    whole, dest, *strategies = sys.argv[1:]
    for strategy in strategies:
        for ending in ("safetensors", "ckpt"):
            name = os.path.splitext(os.path.basename(strategy))[0]
            mindspore.load_distributed_checkpoint(
                network=None, predict_strategy=strategy, format="safetensors", unified_safetensors_dir=whole,
                dst_safetensors_dir=f"{dest}/{name}-{ending}", output_format=ending, max_process_num=2,
            )
"""
_CUT_AGAIN = "import sys, mindspore; mindspore.transform_checkpoints(*sys.argv[1:3], 'net', *sys.argv[3:])"


def layout_of(spec: TensorSpec, cut: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]) -> DeviceLayout:
    """Columns by dimension 0, rows by dimension 1, stacks of experts by their number and by what is theirs."""
    devices, tensor, experts, shards = cut
    row = spec.name.endswith(("wo.weight", "w2.weight"))
    if len(spec.shape) == 1:
        return DeviceLayout(devices, ((),), shards)
    if len(spec.shape) == 3:
        return DeviceLayout(devices, (experts, *((tensor, ()) if row else ((), tensor))), shards)
    return DeviceLayout(devices, ((), tensor) if row else (tensor, ()), shards)


def stage_of(name: str) -> int:
    return int(not name.startswith(("model.tok_embeddings", "model.layers.0")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "mixtral"
    samples.write_hf(folder, CONFIG, samples.hf_specs(find("mixtral"), CONFIG), 1_000_000)
    return folder


@pytest.fixture(scope="module")
def whole(source: Path) -> Path:
    """The model under MindSpore's names, in several files."""
    dest = source.with_name("whole")
    streamconv.convert(source, dest, options=OPTIONS, max_shard_size=200_000)
    assert len(list(dest.glob("*.safetensors"))) > 1
    return dest


@pytest.fixture(scope="module")
def strategies(source: Path, whole: Path) -> Mapping[str, Path]:
    """A strategy file for each of `NAMES`; each names every tensor."""
    specs = [output.spec for output in streamconv.plan(source, source.with_name("no"), options=OPTIONS).outputs]
    found = {name: {spec.name: layout_of(spec, cut) for spec in specs} for name, cut in CUTS.items()}
    in_stages = [(stage_of(spec.name), spec.name, layout_of(spec, ((2,), (0,), (), 0))) for spec in specs]
    assert {stage for stage, _, _ in in_stages} == {0, 1}
    found[PIPELINE] = {f"{stage}-{name}": layout for stage, name, layout in sorted(in_stages, key=lambda one: one[0])}
    for name, layouts in found.items():
        (source.parent / f"{name}.ckpt").write_bytes(encode(int(name == PIPELINE), layouts))
    return {name: source.parent / f"{name}.ckpt" for name in NAMES}


@pytest.fixture(scope="module")
def by_them(whole: Path, strategies: Mapping[str, Path]) -> Path:
    """`NAME-ENDING/rank_N/net.ENDING`: what MindSpore cuts from the whole model."""
    dest = whole.with_name("by-them")
    by_mindspore(_CUT, whole, dest, *strategies.values())
    return dest


def in_ranks(folder: Path, ending: str) -> dict[str, dict[str, Expected]]:
    """Rank's folder → what the one file in it holds, as dtype, shape and digest."""
    files: Iterable[Path] = folder.glob(f"rank_*/*.{ending}")
    found = {path.parent.name: cut_ranks.described(path) for path in files}
    assert found
    return found


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
@pytest.mark.parametrize("name", NAMES)
def test_mindspore_cuts_the_whole_conversion_the_same(name, ending, source, strategies, by_them, tmp_path) -> None:
    streamconv.convert(source, tmp_path / "ours", options=OPTIONS, strategy=strategies[name], format=ending)
    assert in_ranks(tmp_path / "ours", ending) == in_ranks(by_them / f"{name}-{ending}", ending)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("tensor", "optimizer_in_part"),
        ("experts", "axes"),
        ("axes_and_optimizer", PIPELINE),
        (PIPELINE, "tensor"),
        ("optimizer", "axes_ascending"),
    ],
)
def test_mindspore_cuts_slices_again_the_same(before, after, source, strategies, tmp_path) -> None:
    cut = tmp_path / "cut"
    streamconv.convert(source, cut, options=OPTIONS, strategy=strategies[before], format="ckpt")
    streamconv.convert(cut, tmp_path / "ours", model="raw", dest_strategy=strategies[after], format="ckpt")
    by_mindspore(_CUT_AGAIN, cut, tmp_path / "theirs", strategies[before], strategies[after])
    assert in_ranks(tmp_path / "ours", "ckpt") == in_ranks(tmp_path / "theirs", "ckpt")
