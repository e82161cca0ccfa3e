"""LoRA: PEFT's directories to MindFormers' spellings and back; what scales an adapter is never guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.errors import SourceError, UnsupportedError, UsageError
from streamconv.formats.catalog import open_catalog
from streamconv.tensors.dtypes import BF16, F32
from streamconv.tensors.refs import TensorSpec
from support import golden
from support.helpers import LLAMA, hf

SPELLINGS = ("lora_a", "lora_A.weight", "mindpet_delta_lora_a", "tk_delta_lora_a")
MODELS = {
    "llama": ("model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.down_proj", "model.layers.{}.self_attn.v_proj"),
    "qwen2": ("model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.up_proj"),
    "qwen2_5": ("model.layers.{}.self_attn.k_proj", "model.layers.{}.mlp.gate_proj"),
    "glm-n": ("transformer.encoder.layers.{}.self_attention.query_key_value",),
}
CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 32, "lora_dropout": 0.1, "base_model_name_or_path": "a/b"}


def adapter(model: str, rank: int = 3, layers: int = 3, dtype=BF16) -> list[TensorSpec]:
    names = [f"base_model.model.{module.format(i)}" for i in range(layers) for module in MODELS[model]]
    return [
        TensorSpec(f"{name}.lora_{part}.weight", dtype, shape)
        for name in names
        for part, shape in (("A", (rank, 7)), ("B", (7, rank)))
    ]


def peft(folder: Path, specs: list[TensorSpec], config: dict[str, Any] | None = None) -> Path:
    """A PEFT directory: one file, and the adapter's config where there is one."""
    samples.write_hf(folder, {}, specs, 1 << 20)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    if config:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def convert(source: Path, dest: Path, **arguments: Any) -> Path:
    streamconv.convert(source, dest, max_mem="8G", workers=1, **arguments)
    return dest


def said(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("model", MODELS)
def test_there_and_back(tmp_path, model, spelling) -> None:
    source = peft(tmp_path / "peft", adapter(model), CONFIG)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    there = convert(source, tmp_path / "ms", model=model, options={"lora_names": spelling})
    names = golden.found(there)
    assert all(name.endswith((f".{spelling}", f".{spelling.replace('_a', '_b').replace('A', 'B')}")) for name in names)
    back = convert(there, tmp_path / "back", model=model, reverse=True)
    assert {path.name for path in back.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "streamconv.json",
    }
    assert golden.found(back) == golden.found(source)
    assert said(back) == {**CONFIG, **{k: v for k, v in said(back).items() if k not in CONFIG}}
    assert said(back)["target_modules"] == sorted({module.rpartition(".")[2] for module in MODELS[model]})
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}


def test_an_adapter_is_verified_against_its_source_as_its_manifest_says(tmp_path) -> None:
    source = peft(tmp_path / "peft", adapter("llama"), CONFIG)
    there = convert(source, tmp_path / "ms", model="llama")
    back = convert(there, tmp_path / "back", reverse=True)
    assert streamconv.verify(there, source=source, max_mem="8G").tensors == len(golden.found(there))
    assert streamconv.verify(back, source=there, max_mem="8G").tensors == len(golden.found(back))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_any_spelling_comes_back_without_a_manifest(tmp_path, spelling) -> None:
    source = peft(tmp_path / "peft", adapter("llama"), CONFIG)
    there = convert(source, tmp_path / "ms.ckpt", model="llama", options={"lora_names": spelling})
    Path(f"{there}.streamconv.json").unlink()
    with pytest.raises(
        UsageError, match=r'lora_alpha / r, and lora_alpha is stated nowhere\nhint: give options=\{"lora_alpha": "N"\}'
    ):
        convert(there, tmp_path / "none", model="llama", reverse=True)
    back = convert(there, tmp_path / "back", model="llama", reverse=True, options={"lora_alpha": 16})
    assert golden.found(back) == golden.found(source)
    assert (said(back)["r"], said(back)["lora_alpha"]) == (3, 16)
    (tmp_path / "train.yaml").write_text("model:\n  model_config:\n    pet_config:\n      lora_alpha: 8\n")
    told = convert(there, tmp_path / "told", model="llama", reverse=True, config=tmp_path / "train.yaml")
    assert said(told)["lora_alpha"] == 8


def test_peft_itself_reads_it(tmp_path) -> None:
    """What PEFT needs of its config, by its own rules: a type it knows, a rank, an alpha, modules by name."""
    source = peft(tmp_path / "peft", adapter("llama", dtype=F32), CONFIG)
    there = convert(source, tmp_path / "ms", model="llama", dtype="bf16")
    back = convert(there, tmp_path / "back", model="llama", reverse=True)
    config = said(back)
    assert config["peft_type"] == "LORA"
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert {kind for kind, _, _ in golden.found(back).values()} == {"BF16"}


@pytest.fixture
def trained(tmp_path) -> Path:
    """A MindSpore checkpoint that holds a model and its adapters, as training leaves it."""
    samples.write_hf(tmp_path / "hf", LLAMA, hf(LLAMA), 1 << 20)
    convert(tmp_path / "hf", tmp_path / "base")
    lora = [
        TensorSpec(f"model.layers.{i}.attention.wq.mindpet_delta_lora_{part}", BF16, shape)
        for i in range(2)
        for part, shape in (("a", (3, 20)), ("b", (24, 3)))
    ]
    model = [TensorSpec(n, BF16, ref.shape) for n, ref in open_catalog(tmp_path / "base").items()]
    samples.write_hf(tmp_path / "trained", LLAMA, [*model, *lora], 1 << 20)
    return tmp_path / "trained"


def test_the_adapter_of_a_trained_model_comes_alone(trained, tmp_path) -> None:
    with pytest.raises(UsageError, match=r'is_lora": "true"} or options={"is_lora": "drop"}'):
        convert(trained, tmp_path / "out", reverse=True)
    options = {"lora_alpha": 6, "is_lora": True}
    report = streamconv.convert(trained, tmp_path / "out", reverse=True, options=options, max_mem="8G")
    assert len(golden.found(tmp_path / "out")) == 4
    assert all(name.startswith("base_model.model.model.layers.") for name in golden.found(tmp_path / "out"))
    assert "an adapter has none of it" in str(report.prepared)


def test_or_the_model_without_it(trained, tmp_path) -> None:
    convert(trained, tmp_path / "out", reverse=True, options={"is_lora": "drop"})
    assert golden.found(tmp_path / "out").keys() == {spec.name for spec in hf(LLAMA)}


def test_a_b_without_its_a_is_missing(tmp_path) -> None:
    source = peft(tmp_path / "peft", adapter("llama")[1:], CONFIG)
    with pytest.raises(SourceError, match=r"layers\.0\.self_attn\.q_proj\.lora_A\.weight: missing"):
        convert(source, tmp_path / "ms", model="llama")


def test_a_rank_that_is_not_the_tensors(tmp_path) -> None:
    source = peft(tmp_path / "peft", adapter("llama"), {**CONFIG, "r": 4})
    with pytest.raises(UnsupportedError, match="r = 4, but the adapter's tensors have rank 3"):
        convert(source, tmp_path / "ms", model="llama")
    there = convert(peft(tmp_path / "right", adapter("llama"), CONFIG), tmp_path / "ms", model="llama")
    (there / "adapter_config.json").write_text(json.dumps({**CONFIG, "r": 4}))
    with pytest.raises(SourceError, match="states r = 4, but the adapter's tensors have rank 3"):
        convert(there, tmp_path / "back", model="llama", reverse=True)
