"""How a source is quantised, by whatever says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.configs.model_config import ModelConfig, updated
from streamconv.configs.quantisation import described, sign
from streamconv.errors import SourceError, UnsupportedError
from streamconv.formats.header_room import HeaderRoom
from streamconv.tensors import dtypes
from streamconv.tensors.dtypes import BF16, F32
from streamconv.tensors.refs import TensorSpec
from support.helpers import LLAMA, hf

MODULE = "model.layers.0.self_attn.q_proj"


def quantised(folder: Path, ending: str, config: dict[str, Any]) -> Path:
    """A Llama of which one weight was replaced by a part of what a method makes of it."""
    specs = [spec for spec in hf(LLAMA) if spec.name != f"{MODULE}.weight"]
    specs.append(TensorSpec(MODULE + ending, dtypes.from_safetensors("I32", ending), (3, 24)))
    samples.write_hf(folder, {**LLAMA, **config}, specs, 1 << 20)
    return folder


def entry(**values: object) -> dict[str, Any]:
    return {"quantization_config": values}


@pytest.mark.parametrize("model", ["llama", "raw"])
@pytest.mark.parametrize(
    ("ending", "config", "said"),
    [
        (".qweight", entry(quant_method="gptq", bits=4), f"{MODULE}.qweight: its scales {MODULE}.scales are missing"),
        (".qweight", entry(quant_method="awq"), f"its scales {MODULE}.scales are missing"),
        (".weight_packed", {"text_config": entry(quant_method="compressed-tensors")}, "_scale are missing"),
        (".x", entry(quant_method="new-one"), "quantised with new-one (config.json: quantization_config, new-one)"),
        (".qweight", {}, f"its scales {MODULE}.scales are missing"),
        (".weight_packed", {}, f"its scales {MODULE}.weight_scale are missing"),
        (".absmax", {}, f"quantised with bitsandbytes (tensor {MODULE}.absmax)"),
    ],
)
def test_what_cannot_be_read_is_named_and_may_be_kept(tmp_path, ending, config, said, model) -> None:
    source = quantised(tmp_path / "hf", ending, config)
    with pytest.raises((UnsupportedError, SourceError)) as error:
        streamconv.plan(source, tmp_path / "ms", model=model, max_mem="8G")
    assert said in str(error.value)
    kept = {"model": "raw", "format": "hf", "options": {"quantised": "keep"}}
    streamconv.convert(source, tmp_path / "raw", **kept, max_mem="8G")
    assert streamconv.diff(source, tmp_path / "raw").same
    assert json.loads((tmp_path / "raw" / "config.json").read_text()) == {**LLAMA, **config}


@pytest.mark.parametrize(
    ("file", "method"),
    [
        ("quant_model_description.json", "msmodelslim"),
        ("quant_model_description_w8a8.json", "msmodelslim"),
        ("hf_quant_config.json", "modelopt"),
        ("quantize_config.json", "gptq"),
    ],
)
def test_a_file_next_to_the_weights_names_it(tmp_path, file, method) -> None:
    (tmp_path / file).write_text('{"a": 1}')
    found = described({}, tmp_path, HeaderRoom())
    assert found is not None
    assert (found.name, found.method and found.method.name, found.entry, found.where) == (
        method,
        method,
        {"a": 1},
        file,
    )


def test_the_config_decides_wherever_it_says_it(tmp_path) -> None:
    (tmp_path / "hf_quant_config.json").write_text("no JSON")
    for config in (entry(quant_method="gptq"), {"text_config": entry(quant_method="gptq")}):
        found = described(config, tmp_path, HeaderRoom())
        assert found is not None and found.method is not None
        assert (found.method.name, found.where) == ("gptq", "config.json: quantization_config, gptq")


def test_nothing_is_read_where_nothing_is_quantised(tmp_path) -> None:
    samples.write_hf(tmp_path / "hf", LLAMA, hf(LLAMA), 1 << 20)
    (tmp_path / "hf" / "hf_quant_config.json").write_text("no JSON")
    streamconv.convert(tmp_path / "hf", tmp_path / "ms", max_mem="8G")
    assert described({}, tmp_path, HeaderRoom()) is None
    assert described(entry(), tmp_path, HeaderRoom()) is None
    assert sign(["a.weight", "a.weight_scale"]) == ""


def test_a_config_may_speak_of_methods_that_no_tensor_needs(tmp_path) -> None:
    samples.write_hf(tmp_path / "hf", {**LLAMA, **entry(quant_method="bitsandbytes")}, hf(LLAMA), 1 << 20)
    assert not streamconv.plan(tmp_path / "hf", tmp_path / "ms", max_mem="8G").mapping.dequantised


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


def test_what_is_kept_is_not_cast(tmp_path) -> None:
    source = quantised(tmp_path / "hf", ".qweight", {})
    with pytest.raises(streamconv.UsageError, match="keeps every tensor as it is"):
        streamconv.plan(source, tmp_path / "raw", model="raw", options={"quantised": "keep"}, dtype="bf16")


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
