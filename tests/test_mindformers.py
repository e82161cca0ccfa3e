"""A MindFormers YAML in place of config.json: what people have beside a checkpoint that they trained."""

from __future__ import annotations

import json
from pathlib import Path

import golden
import pytest
from helpers import LLAMA, MIXTRAL, hf

import streamconv
from streamconv import mindformers, samples
from streamconv.config import load
from streamconv.errors import SourceError, UsageError
from streamconv.families import find

LLAMA_YAML = """
seed: 0
run_mode: 'train'
model:
  model_config:
    type: LlamaConfig
    batch_size: 1
    hidden_size: 20
    num_layers: 2
    num_heads: 6
    n_kv_heads: 3
    vocab_size: 11
    multiple_of: 256
    ffn_dim_multiplier: null
    intermediate_size: 14
    head_dim: 4
    qkv_concat: True
  arch:
    type: LlamaForCausalLM
"""
MIXTRAL_YAML = LLAMA_YAML.replace("    qkv_concat: True\n", "").replace(
    "    batch_size: 1\n", "    moe_config:\n      expert_num: 3\n"
)
GLM_YAML = """
model:
  model_config:
    num_layers: 2
    hidden_size: 16
    ffn_hidden_size: 12
    num_heads: 4
    kv_channels: 4
    multi_query_attention: True
    multi_query_group_num: 2
    padded_vocab_size: 9
    qkv_concat: False
    mlp_concat: False
    use_rearrange_rope: True
"""
GLM = {
    "model_type": "chatglm",
    "num_layers": 2,
    "hidden_size": 16,
    "ffn_hidden_size": 12,
    "num_attention_heads": 4,
    "kv_channels": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "padded_vocab_size": 9,
}


def trained(folder: Path, config, specs, **arguments) -> Path:
    """A MindSpore checkpoint without a word of where it came from."""
    samples.write_hf(folder / "hf", config, specs, 1 << 20)
    streamconv.convert(folder / "hf", folder / "trained.ckpt", max_mem="8G", **arguments)
    (folder / "trained.ckpt.streamconv.json").unlink()
    return folder / "trained.ckpt"


@pytest.mark.parametrize(
    ("name", "text", "config", "given"),
    [
        ("llama", LLAMA_YAML, LLAMA, {"qkv_concat": True}),
        ("llama", LLAMA_YAML, LLAMA, {"qkv_concat": "blocks"}),
        ("mixtral", MIXTRAL_YAML, MIXTRAL, {"use_gmm": True}),
    ],
)
def test_it_serves_as_a_config(tmp_path, name, text, config, given) -> None:
    source = trained(tmp_path, config, hf(config), options=given)
    (tmp_path / "run.yaml").write_text(text)
    back = tmp_path / "back"
    streamconv.convert(
        source, back, model=name, reverse=True, config=tmp_path / "run.yaml", options=given, max_mem="8G"
    )
    assert golden.found(back) == golden.found(tmp_path / "hf")
    assert not (back / "config.json").exists()


def test_it_tells_the_options_that_nothing_else_does(tmp_path) -> None:
    options = {"qkv_concat": False, "mlp_concat": False, "rearrange_rope": True}
    source = trained(tmp_path, GLM, samples.hf_specs(find("glm-n"), GLM), options=options)
    (tmp_path / "run.yaml").write_text(GLM_YAML)
    arguments = {"model": "glm-n", "reverse": True, "max_mem": "8G"}
    with pytest.raises(UsageError, match="-o rearrange_rope=false or true"):
        streamconv.plan(source, tmp_path / "back", config=tmp_path / "hf", **arguments)
    streamconv.convert(source, tmp_path / "back", config=tmp_path / "run.yaml", **arguments)
    assert golden.found(tmp_path / "back") == golden.found(tmp_path / "hf")
    by_hand = streamconv.plan(
        source, tmp_path / "other", config=tmp_path / "run.yaml", options={"rearrange_rope": False}, **arguments
    )
    assert by_hand.plan.options["rearrange_rope"] is False


def test_its_names_are_those_of_config_json() -> None:
    config = mindformers.as_config(mindformers.parse(MIXTRAL_YAML.encode(), "run.yaml"))
    assert config["num_hidden_layers"] == config["n_layer"] == 2
    assert config["num_local_experts"] == config["num_experts"] == 3
    assert config["num_key_value_heads"] == 3
    assert "ffn_dim_multiplier" not in config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not YAML"),
        ("\x00", "is not YAML"),
        ("model: 3", "has no model.model_config"),
        ("[1, 2]", "has no model.model_config"),
        ("", "has no model.model_config"),
        ("model: !!python/object/apply:os.system ['touch pwned']", "is not YAML"),
        ("a: &a [x]\n" + "".join(f"{c}: &{c} [*{chr(ord(c) - 1)}, *{chr(ord(c) - 1)}]\n" for c in "bcdefgh"), "has no"),
    ],
)
def test_a_yaml_that_is_none(tmp_path, monkeypatch, text, said) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yml").write_text(text)
    with pytest.raises(SourceError, match=said) as caught:
        load(tmp_path, tmp_path / "run.yml")
    assert str(caught.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["run.yml"]


def test_a_config_json_is_no_yaml(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    config = load(tmp_path, None)
    assert config.goes_along
    assert not config.said
