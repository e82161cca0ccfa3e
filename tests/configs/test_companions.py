"""The files next to the weights: written or copied, for models and for adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamconv.configs.companions import of_mindspore_adapter, of_model, of_peft_adapter
from streamconv.configs.model_config import ModelConfig, load
from streamconv.errors import UsageError
from streamconv.tensors.dtypes import BF16, F32
from streamconv.tensors.refs import TensorSpec

LORA = [
    TensorSpec("base_model.model.layers.0.q_proj.lora_A.weight", F32, (3, 7)),
    TensorSpec("base_model.model.layers.0.q_proj.lora_B.weight", F32, (7, 3)),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_a_model_has_its_updated_config(source: Path) -> None:
    (source / "config.json").write_text('{"torch_dtype": "float32", "num_nextn_predict_layers": 1}')
    found = of_model(load(source, None), source, BF16, False, {"num_nextn_predict_layers": 0})
    assert {name: json.loads(text) for name, text in found.texts.items()} == {
        "config.json": {"torch_dtype": "bfloat16", "num_nextn_predict_layers": 0}
    }
    assert found.copies == {"tokenizer.json": source / "tokenizer.json"}


@pytest.mark.parametrize("config", [None, "run.yaml", "adapter_config.json"])
def test_a_model_without_a_config_of_its_own_gets_none(source: Path, config: str | None) -> None:
    (source / "run.yaml").write_text("model:\n  model_config:\n    num_layers: 2\n")
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    found = of_model(load(source, source / config if config else None), source, BF16, False, {})
    assert found.texts == {}
    assert found.copies == {"tokenizer.json": source / "tokenizer.json"}


def test_an_adapter_for_peft_has_a_new_config(source: Path) -> None:
    (source / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 8}')
    found = of_peft_adapter(LORA, ModelConfig(), source, 16)
    assert json.loads(found.texts["adapter_config.json"])["lora_alpha"] == 16
    assert list(found.copies) == ["tokenizer.json"]
    (source / "adapter_config.json").unlink()
    with pytest.raises(UsageError):
        of_peft_adapter(LORA, ModelConfig(), source, None)


def test_an_adapter_for_mindspore_keeps_the_config_for_the_way_back(source: Path) -> None:
    found = of_mindspore_adapter(LORA, ModelConfig(), source)
    assert (found.texts, list(found.copies)) == ({}, ["tokenizer.json"])
    assert found.warnings == (
        "there is no adapter_config.json: nothing tells lora_alpha, by which MindFormers scales the adapter",
    )
    (source / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 6}')
    found = of_mindspore_adapter(LORA, ModelConfig(), source)
    assert list(found.copies) == ["adapter_config.json", "tokenizer.json"]
    assert found.warnings == ()


def test_they_lie_next_to_the_config_that_was_given(tmp_path: Path) -> None:
    home, weights = tmp_path / "home", tmp_path / "weights"
    for folder in (home, weights):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    (home / "tokenizer.json").write_text("{}")
    (weights / "vocab.json").write_text("{}")
    assert of_model(load(weights, home), weights, None, False, {}).copies == {"tokenizer.json": home / "tokenizer.json"}
    assert of_model(load(weights, None), weights, None, False, {}).copies == {"vocab.json": weights / "vocab.json"}


def test_a_description_of_quantised_weights_stays_once_they_are_not(source: Path) -> None:
    (source / "hf_quant_config.json").write_text("{}")
    kept, dropped = (of_model(ModelConfig(), source, None, flag, {}) for flag in (False, True))
    assert "hf_quant_config.json" in kept.copies
    assert "hf_quant_config.json" not in dropped.copies
    assert dropped.left == {"hf_quant_config.json": "describes the quantised weights"}
