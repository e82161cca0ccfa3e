"""MindSpore's own loader on what streamconv writes, in both formats, and what MindSpore writes read by streamconv."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.families import find
from support import golden
from support.mindspore_loader import by_mindspore, loaded, ours

if not importlib.util.find_spec("mindspore"):
    pytest.skip("MindSpore has no wheel for this Python", allow_module_level=True)

CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "num_hidden_layers": 2,
    "num_local_experts": 3,
    "vocab_size": 64,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "mixtral"
    samples.write_hf(folder, CONFIG, samples.hf_specs(find("mixtral"), CONFIG), 40_000)
    return folder


@pytest.mark.parametrize("dtype", [None, "fp32", "fp16"])
@pytest.mark.parametrize("name", ["model.ckpt", "model.crc.ckpt"])
def test_mindspore_loads_the_ckpt_with_the_same_values(source, tmp_path, dtype, name) -> None:
    dest = tmp_path / name
    streamconv.convert(source, dest, dtype=dtype, crc=name.endswith("crc.ckpt"), options={"use_gmm": True})
    assert loaded(dest) == ours(dest)


@pytest.mark.parametrize("dtype", [None, "fp16"])
def test_mindspore_loads_the_shards_with_the_same_values(source, tmp_path, dtype) -> None:
    dest = tmp_path / "ms"
    streamconv.convert(source, dest, dtype=dtype, max_shard_size=30_000)
    files = sorted(dest.glob("ms-model-*.safetensors"))
    assert len(files) > 2
    assert loaded(*files) == ours(dest)
    weight_map = json.loads((dest / "param_name_map.json").read_text())["weight_map"]
    assert weight_map.keys() == ours(dest).keys()
    assert {*weight_map.values()} == {file.name for file in files}


def test_what_mindspore_saves_comes_back_as_huggingface(source, tmp_path) -> None:
    """Forward by us, loaded and saved again by MindSpore, back by us: the source's bytes."""
    ckpt, saved, back = tmp_path / "m.ckpt", tmp_path / "saved.ckpt", tmp_path / "back"
    streamconv.convert(source, ckpt)
    code = (
        "import sys, mindspore as ms, mindspore.train.serialization as s; s._get_available_memory = lambda: None; "
        "loaded = ms.load_checkpoint(sys.argv[1]); "
        "ms.save_checkpoint([{'name': n, 'data': p} for n, p in loaded.items()], sys.argv[2])"
    )
    by_mindspore(code, ckpt, saved)
    streamconv.convert(saved, back, model="mixtral", reverse=True, config=source / "config.json")
    assert golden.found(back) == golden.found(source)
