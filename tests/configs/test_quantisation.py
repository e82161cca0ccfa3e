"""How a source is quantised, by whatever says so: the first line of the error names the method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.configs.model_config import ModelConfig, updated
from streamconv.configs.quantisation import described
from streamconv.errors import SourceError, UnsupportedError
from streamconv.tensors import dtypes
from streamconv.tensors.dtypes import BF16, F32
from streamconv.tensors.refs import TensorSpec
from support.helpers import LLAMA, hf


def quantised(folder: Path, ending: str, config: dict[str, Any]) -> Path:
    """A Llama of which one weight was replaced by what a method makes of it."""
    specs = [spec for spec in hf(LLAMA) if not spec.name.endswith("0.self_attn.q_proj.weight")]
    specs.append(
        TensorSpec("model.layers.0.self_attn.q_proj" + ending, dtypes.from_safetensors("I32", ending), (3, 24))
    )
    samples.write_hf(folder, {**LLAMA, **config}, specs, 1 << 20)
    return folder


@pytest.mark.parametrize(
    ("ending", "config", "said"),
    [
        (".qweight", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ (config.json"),
        (".qweight", {"quantization_config": {"quant_method": "awq"}}, "AWQ (config.json"),
        (".weight_packed", {"text_config": {"quantization_config": {"quant_method": "compressed-tensors"}}}, "compr"),
        (".x", {"quantization_config": {"quant_method": "new-one"}}, "new-one (config.json"),
        (".qweight", {}, "GPTQ or AWQ (tensor model.layers.0.self_attn.q_proj.qweight)"),
        (".weight_packed", {}, "compressed-tensors (tensor"),
        (".deq_scale", {}, "msModelSlim (tensor"),
        (".weight_scale", {}, "FP8 or INT8 (tensor"),
    ],
)
def test_the_first_line_names_the_method(tmp_path, ending, config, said) -> None:
    source = quantised(tmp_path / "hf", ending, config)
    with pytest.raises(UnsupportedError) as error:
        streamconv.plan(source, tmp_path / "ms", max_mem="8G")
    assert error.value.message.startswith(f"the source is quantised with {said}")
    assert 'model="raw"' in error.value.hint
    streamconv.convert(source, tmp_path / "raw", model="raw", max_mem="8G")


@pytest.mark.parametrize(
    ("file", "method"),
    [
        ("quant_model_description.json", "msModelSlim"),
        ("quant_model_description_w8a8.json", "msModelSlim"),
        ("hf_quant_config.json", "ModelOpt"),
        ("quantize_config.json", "GPTQ"),
    ],
)
def test_a_file_next_to_the_weights_names_it(tmp_path, file, method) -> None:
    (tmp_path / file).write_text("{}")
    assert described({}, tmp_path, ["a.weight"]) == f"{method} ({file})"


def test_what_is_not_quantised_or_is_read_has_no_method(tmp_path) -> None:
    blocks = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    assert described({}, tmp_path, ["a.weight", "a.weight_scale_inv"]) == ""
    assert described(blocks, tmp_path, ["a.weight"]) == ""
    assert described({"quantization_config": None}, tmp_path, []) == ""


def test_a_model_that_lacks_a_tensor_is_not_called_quantised(tmp_path) -> None:
    samples.write_hf(tmp_path / "hf", LLAMA, hf(LLAMA)[:-1], 1 << 20)
    with pytest.raises(SourceError, match="missing") as error:
        streamconv.plan(tmp_path / "hf", tmp_path / "ms", max_mem="8G")
    assert "quantised" not in str(error.value)


def test_scales_that_a_model_has_of_its_own_are_no_quantisation(tmp_path) -> None:
    specs = [*hf(LLAMA), TensorSpec("model.layers.0.self_attn.scale", F32, (1,)), TensorSpec("extra", BF16, (2,))]
    samples.write_hf(tmp_path / "hf", LLAMA, specs, 1 << 20)
    with pytest.raises(UnsupportedError, match="no rule matches") as error:
        streamconv.plan(tmp_path / "hf", tmp_path / "ms", max_mem="8G")
    assert "quantised" not in str(error.value)


def test_sections_are_mended_like_the_whole(tmp_path) -> None:
    """Nested configs of vision-language models: dtype, scales and block sizes."""
    inner = {"torch_dtype": "float8", "quantization_config": {"quant_method": "fp8"}, "num_nextn_predict_layers": 1}
    config = {
        "text_config": inner,
        "vision_config": {"dtype": "float32", "deep_config": {"dtype": "float16"}},
        "a_config": 3,
    }
    mended = json.loads(updated(ModelConfig(None, config), BF16, True, {"num_nextn_predict_layers": 0}))
    assert mended == {
        "text_config": {"torch_dtype": "bfloat16", "num_nextn_predict_layers": 0},
        "vision_config": {"dtype": "bfloat16", "deep_config": {"dtype": "bfloat16"}},
        "a_config": 3,
    }
    assert config["text_config"] == inner
