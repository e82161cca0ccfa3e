"""A MindFormers YAML in place of config.json: what people have beside a checkpoint that they trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.configs import mindformers_yaml as mindformers
from streamconv.configs.model_config import load
from streamconv.errors import SourceError, UsageError
from streamconv.families import find
from support import golden
from support.helpers import LLAMA, MIXTRAL, hf, text_of

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
    with pytest.raises(
        UsageError, match=r'options=\{"rearrange_rope": "false"\} or options=\{"rearrange_rope": "true"\}'
    ):
        streamconv.plan(source, tmp_path / "back", config=tmp_path / "hf", **arguments)
    streamconv.convert(source, tmp_path / "back", config=tmp_path / "run.yaml", **arguments)
    assert golden.found(tmp_path / "back") == golden.found(tmp_path / "hf")
    by_hand = streamconv.plan(
        source, tmp_path / "other", config=tmp_path / "run.yaml", options={"rearrange_rope": False}, **arguments
    )
    assert by_hand.mapping.options["rearrange_rope"] is False


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
    assert text_of(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yml"]


def test_a_config_json_is_no_yaml(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    config = load(tmp_path, None)
    assert config.is_copied
    assert not config.yaml_values


QWEN3 = {"model_type": "qwen3", "vocab_size": 11, "hidden_size": 20, "intermediate_size": 14, "num_hidden_layers": 2}
QWEN3 |= {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4, "tie_word_embeddings": False}
QWEN3_YAML = """
model:
  model_config:
    num_layers: 2
    hidden_size: 20
    ffn_hidden_size: 14
    num_attention_heads: 6
    num_query_groups: 3
    vocab_size: 11
    tie_word_embeddings: False
    use_interleaved_weight_layout_mlp: {interleaved}
    use_contiguous_weight_layout_attention: {contiguous}
"""


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
def test_it_tells_how_qwen3_lies_both_ways(tmp_path, interleaved, contiguous) -> None:
    """And the heads' width, which no YAML of MindFormers has to say, comes from the shapes."""
    options = {"interleave_mlp": interleaved, "contiguous_qkv": contiguous}
    source = trained(tmp_path, QWEN3, samples.hf_specs(find("qwen3"), QWEN3), options=options)
    yaml = tmp_path / "run.yaml"
    yaml.write_text(QWEN3_YAML.format(**{"interleaved": interleaved, "contiguous": contiguous}))
    arguments = {"model": "qwen3", "config": yaml, "max_mem": "8G"}
    streamconv.convert(source, tmp_path / "back", reverse=True, **arguments)
    assert golden.found(tmp_path / "back") == golden.found(tmp_path / "hf")
    forward = streamconv.convert(tmp_path / "hf", tmp_path / "again.ckpt", **arguments)
    assert forward.prepared.mapping.options.items() >= options.items()
    assert (tmp_path / "again.ckpt").read_bytes() == source.read_bytes()


def test_it_tells_options_forward_unless_they_are_given(tmp_path) -> None:
    samples.write_hf(tmp_path / "hf", GLM, samples.hf_specs(find("glm-n"), GLM), 1 << 20)
    (tmp_path / "run.yaml").write_text(GLM_YAML)
    arguments = {"model": "glm-n", "config": tmp_path / "run.yaml", "max_mem": "8G"}
    plan = streamconv.plan(tmp_path / "hf", tmp_path / "ms", options={"mlp_concat": True}, **arguments).mapping
    assert {name: plan.options[name] for name in ("qkv_concat", "mlp_concat", "rearrange_rope")} == {
        "qkv_concat": False,
        "mlp_concat": True,
        "rearrange_rope": True,
    }


def test_the_width_of_qwen_s_network_is_said_itself_and_not_twice(tmp_path) -> None:
    config = {"model_type": "qwen", "vocab_size": 11, "hidden_size": 12, "intermediate_size": 10}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 3}
    source = trained(tmp_path, config, samples.hf_specs(find("qwen"), config))
    (tmp_path / "run.yaml").write_text(
        "model:\n  model_config: {num_layers: 2, num_heads: 3, hidden_size: 12, intermediate_size: 5, vocab_size: 11}\n"
    )
    streamconv.convert(
        source, tmp_path / "back", model="qwen", reverse=True, config=tmp_path / "run.yaml", max_mem="8G"
    )
    assert golden.found(tmp_path / "back") == golden.found(tmp_path / "hf")


@pytest.mark.parametrize("beside", [True, False])
def test_experts_may_be_described_beside_the_model(beside) -> None:
    """MindFormers' own YAMLs have `moe_config` at the top."""
    text = "model:\n  model_config:\n    num_layers: 3\n    moe_config: {expert_num: 5}\n"
    if beside:
        text += "moe_config: {expert_num: 7, first_k_dense_replace: 1, shared_expert_num: 2}\n"
    config = mindformers.as_config(mindformers.parse(text.encode(), "run.yaml"))
    assert config["n_routed_experts"] == 5
    assert (config.get("first_k_dense_replace"), config.get("n_shared_experts")) == ((1, 2) if beside else (None, None))
