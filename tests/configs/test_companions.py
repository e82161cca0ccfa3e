"""The files next to the weights: written or copied, for models and for adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamconv.configs.companions import Home, of_mindspore_adapter, of_model, of_peft_adapter
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
    found = of_model(Home(load(source, None), source, True), BF16, False, {"num_nextn_predict_layers": 0})
    assert {name: json.loads(text) for name, text in found.texts.items()} == {
        "config.json": {"torch_dtype": "bfloat16", "num_nextn_predict_layers": 0}
    }
    assert found.copies == {"tokenizer.json": source / "tokenizer.json"}


@pytest.mark.parametrize("config", [None, "run.yaml", "adapter_config.json"])
def test_a_model_without_a_config_of_its_own_gets_none(source: Path, config: str | None) -> None:
    (source / "run.yaml").write_text("model:\n  model_config:\n    num_layers: 2\n")
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    found = of_model(Home(load(source, source / config if config else None), source, True), BF16, False, {})
    assert found.texts == {}
    assert found.copies == {"tokenizer.json": source / "tokenizer.json"}


def test_an_adapter_for_peft_has_a_new_config(source: Path) -> None:
    (source / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 8}')
    found = of_peft_adapter(Home(ModelConfig(), source, True), LORA, 16)
    assert json.loads(found.texts["adapter_config.json"])["lora_alpha"] == 16
    assert list(found.copies) == ["tokenizer.json"]
    (source / "adapter_config.json").unlink()
    with pytest.raises(UsageError):
        of_peft_adapter(Home(ModelConfig(), source, True), LORA, None)


def test_an_adapter_for_mindspore_keeps_the_config_for_the_way_back(source: Path) -> None:
    found = of_mindspore_adapter(Home(ModelConfig(), source, True), LORA)
    assert (found.texts, list(found.copies)) == ({}, ["tokenizer.json"])
    assert found.warnings == (
        "there is no adapter_config.json: nothing tells lora_alpha, by which MindFormers scales the adapter",
    )
    (source / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 6}')
    found = of_mindspore_adapter(Home(ModelConfig(), source, True), LORA)
    assert list(found.copies) == ["adapter_config.json", "tokenizer.json"]
    assert found.warnings == ()


def test_they_lie_next_to_the_weights_and_next_to_the_config_which_wins(tmp_path: Path) -> None:
    home, weights = tmp_path / "home", tmp_path / "weights"
    for folder in (home, weights):
        folder.mkdir()
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_text("{}")
    (weights / "visual.py").write_text("")
    given, beside = (of_model(Home(load(weights, one), weights, True), None, False, {}) for one in (home, None))
    assert given.copies == {"tokenizer.json": home / "tokenizer.json", "visual.py": weights / "visual.py"}
    assert beside.copies == {"tokenizer.json": weights / "tokenizer.json", "visual.py": weights / "visual.py"}


@pytest.mark.parametrize("config", ["config.json", "run.yaml", None])
def test_a_folder_that_only_holds_a_file_that_was_given_keeps_its_other_files(tmp_path: Path, config) -> None:
    """A home directory, downloads: what lies there is nobody's tokenizer."""
    for name in ("passwords.json", "taxes/2025.txt", "work/a.py", "notes.txt", "run.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("private")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "run.yaml").write_text("model:\n  model_config:\n    num_layers: 2\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    weights = tmp_path / "weights"
    weights.mkdir()
    found = of_model(Home(load(weights, tmp_path / config if config else None), weights, True), None, False, {})
    assert list(found.copies) == (["tokenizer.json"] if config == "config.json" else [])
    alone = of_model(Home(load(tmp_path, None), tmp_path, False), None, False, {})
    assert (list(alone.copies), alone.left) == (["tokenizer.json"], {})


def test_a_repository_without_weights_is_one_by_its_files(tmp_path: Path) -> None:
    home, weights = tmp_path / "repository", tmp_path / "weights"
    for path in (home / "encoding" / "x.py", home / "tokenizer_config.json", home / "visual.py", weights / "x.ckpt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (home / "config.json").write_text("{}")
    found = of_model(Home(load(weights, home), weights, True), None, False, {})
    assert list(found.copies) == ["tokenizer_config.json", "visual.py", "encoding/x.py"]


def test_a_description_of_quantised_weights_stays_once_they_are_not(source: Path) -> None:
    (source / "hf_quant_config.json").write_text("{}")
    kept, dropped = (of_model(Home(ModelConfig(), source, True), None, flag, {}) for flag in (False, True))
    assert "hf_quant_config.json" in kept.copies
    assert "hf_quant_config.json" not in dropped.copies
    assert dropped.left == {"hf_quant_config.json": "describes the quantised weights"}
