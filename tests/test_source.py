"""A source, opened: what says that a file is not a whole model, and why a source does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.errors import UnsupportedError, UsageError
from streamconv.families import recognise
from streamconv.tensors.dtypes import F32
from streamconv.tensors.refs import TensorSpec
from support.helpers import LLAMA, ms

ARGUMENTS: dict[str, Any] = {"reverse": True, "model": "llama", "max_mem": "8G"}
HALVED = {"wo": 1, "w2": 1, "wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "embedding_weight": 0, "lm_head": 0}


def half(spec: TensorSpec) -> TensorSpec:
    """What rank 0 of 2 holds of a tensor."""
    axis = next((axis for part, axis in HALVED.items() if part in spec.name.split(".")), None)
    shape = tuple(n // 2 if here == axis else n for here, n in enumerate(spec.shape))
    return TensorSpec(spec.name, spec.dtype, shape)


@pytest.fixture
def saved(tmp_path: Path):
    """The file that training saves for rank 0: of the whole model on one card, or a slice of it."""

    def make(specs: list[TensorSpec], name: str = "llama_rank_0-5_1.safetensors") -> Path:
        samples.write_hf(tmp_path / "made", {}, specs, 1 << 20)
        folder = tmp_path / "rank_0"
        folder.mkdir()
        (tmp_path / "made" / "model.safetensors").rename(folder / name)
        (tmp_path / "config.json").write_text(json.dumps(LLAMA))
        return folder

    return make


@pytest.mark.parametrize("name", ["llama_rank_0-5_1.safetensors", "checkpoint_0.safetensors"])
def test_rank_0_alone_is_a_model_if_its_shapes_are(saved, tmp_path, name) -> None:
    config = {**LLAMA, "vocab_size": 12}
    folder = saved([*ms(config)], name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = streamconv.plan(folder, tmp_path / "hf", config=tmp_path / "config.json", **ARGUMENTS)
    assert len(plan.outputs) == len(ms(config))


@pytest.mark.parametrize("name", ["llama_rank_0-5_1.safetensors", "checkpoint_0.safetensors"])
def test_rank_0_alone_is_a_slice_if_its_shapes_are_not_the_config_s(saved, tmp_path, name) -> None:
    folder = saved([half(spec) for spec in ms(LLAMA)], name)
    with pytest.raises(UnsupportedError, match="it holds one rank's slices") as error:
        streamconv.plan(folder, tmp_path / "hf", config=tmp_path / "config.json", **ARGUMENTS)
    assert error.value.message.startswith(name)
    assert "the files of all ranks" in error.value.hint


def test_rank_0_alone_without_a_config_is_asked_about(saved, tmp_path) -> None:
    """Half a model of consistent shapes looks like a whole one of half the size."""
    folder = saved([half(spec) for spec in ms(LLAMA)])
    with pytest.raises(UsageError, match="no config tells whether its shapes are those of the whole model"):
        streamconv.plan(folder, tmp_path / "hf", **ARGUMENTS)
    raw = streamconv.plan(folder, tmp_path / "x.ckpt", model="raw", max_mem="8G")
    assert "it is read as a whole model" in raw.warnings[0]


def test_a_config_of_another_model_is_not_called_a_slice_without_a_name_for_it(saved, tmp_path) -> None:
    folder = saved(ms(LLAMA), "llama.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "hidden_size": 40}))
    (tmp_path / "rank_0").rename(tmp_path / "plain")
    with pytest.raises(UnsupportedError, match="does not fit") as error:
        streamconv.plan(tmp_path / "plain", tmp_path / "hf", config=tmp_path / "config.json", **ARGUMENTS)
    assert "slice" not in str(error.value)
    assert folder.name == "rank_0"


def test_a_source_of_empty_tensors_is_written_not_called_complete(tmp_path) -> None:
    specs = [TensorSpec(f"w{number}", F32, (0,)) for number in range(3)]
    samples.write_hf(tmp_path / "hf", {}, specs, 1 << 20)
    report = streamconv.convert(tmp_path / "hf", tmp_path / "out", model="raw", format="hf", max_mem="8G")
    assert str(report).startswith("wrote 3 tensors")
    assert "warning: all 3 tensors are empty" in str(report)


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"]}, "deepseek3"),
        ({"model_type": "kimi_k2"}, "deepseek3"),
        ({"model_type": "deepseek_v3", "quantization_config": {"scale_fmt": "ue8m0"}}, "deepseek3"),
        ({"model_type": "kimi_k3", "architectures": ["DeepseekV3ForCausalLM"]}, "deepseek3"),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "deepseek3"),
        ({"architectures": ["LlamaForCausalLM"]}, "llama"),
        ({"model_type": "llama", "architectures": ["MixtralForCausalLM"]}, "llama"),
        ({"architectures": ["QWenLMHeadModel"], "visual": {}}, "qwenvl"),
        ({"architectures": ["QWenLMHeadModel"]}, "qwen"),
    ],
)
def test_what_a_config_says_the_model_is(config, family) -> None:
    assert recognise(config)[0].name == family
