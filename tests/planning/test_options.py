"""Options decided: by hand, by the manifest, by names and shapes; numbers by hand are checked."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.errors import UnsupportedError, UsageError
from streamconv.families import find
from streamconv.tensors.dtypes import F32
from streamconv.tensors.refs import TensorSpec
from support import golden, running
from support.helpers import LLAMA, hf
from support.running import run

BLOOM = {"model_type": "bloom", "n_layer": 2, "hidden_size": 12, "n_head": 3, "vocab_size": 7}
GPT = {"model_type": "gpt2", "n_layer": 2, "n_embd": 6, "n_positions": 5, "vocab_size": 7, "n_inner": 24}


def model(folder: Path, config, name: str, told: bool = True, **options) -> Path:
    """A checkpoint of a small model; its config.json may be missing."""
    samples.write_hf(folder, config, samples.hf_specs(find(name), config, options), 1 << 20)
    if not told:
        (folder / "config.json").unlink()
    return folder


def test_a_number_by_hand_serves_where_no_config_tells_it(tmp_path) -> None:
    source = model(tmp_path / "hf", BLOOM, "bloom", told=False)
    with pytest.raises(UsageError, match="needs n_head"):
        streamconv.plan(source, tmp_path / "ms", model="bloom", max_mem="8G")
    streamconv.convert(source, tmp_path / "ms.ckpt", model="bloom", options={"n_head": "3"}, max_mem="8G")
    # The manifest remembers it.
    back = streamconv.plan(tmp_path / "ms.ckpt", tmp_path / "back", reverse=True, max_mem="8G")
    assert back.mapping.options["n_head"] == 3


@pytest.mark.parametrize(("option", "value"), [("n_head", 4), ("hidden_size", 24)])
def test_a_number_that_contradicts_the_config(tmp_path, option, value) -> None:
    source = model(tmp_path / "hf", BLOOM, "bloom")
    said = rf'options={{"{option}": {value}}} contradicts the model: \w+ is \d+ \(config: '
    with pytest.raises(UsageError, match=said):
        streamconv.plan(source, tmp_path / "ms", options={option: value}, max_mem="8G")


def test_a_number_that_contradicts_the_shapes(tmp_path) -> None:
    source = model(tmp_path / "hf", BLOOM, "bloom", told=False)
    with pytest.raises(UnsupportedError, match=r'hidden is 24 \(options\["hidden_size"\]\), not 12'):
        streamconv.plan(source, tmp_path / "ms", model="bloom", options={"hidden_size": 24, "n_head": 3}, max_mem="8G")
    with pytest.raises(UnsupportedError, match="cannot be split in 5 equal parts"):
        streamconv.plan(source, tmp_path / "ms", model="bloom", options={"n_head": 5}, max_mem="8G")


def test_layers_that_the_number_leaves_out_are_no_model_s(tmp_path) -> None:
    """MindFormers' --layers drops what is above in silence."""
    source = model(tmp_path / "hf", GPT, "gpt", told=False)
    with pytest.raises(UnsupportedError, match=r'h\.1\.\S+: no layer 1; the model has 1 \(options\["layers"\]\)'):
        streamconv.plan(source, tmp_path / "ms", model="gpt", options={"layers": 1}, max_mem="8G")


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "", "99999999999", "१"])
def test_a_number_that_is_none(tmp_path, text) -> None:
    source = model(tmp_path / "hf", BLOOM, "bloom")
    with pytest.raises(UsageError, match=r'"n_head": .*: not a whole number from 1 up'):
        streamconv.plan(source, tmp_path / "ms", options={"n_head": text}, max_mem="8G")


@pytest.mark.parametrize("prefix", [False, True])
def test_names_tell_an_option_forward(tmp_path, prefix) -> None:
    source = model(tmp_path / "hf", GPT, "gpt", prefix=prefix)
    plan = streamconv.plan(source, tmp_path / "ms", max_mem="8G").mapping
    assert plan.options["prefix"] is prefix
    other = streamconv.plan(source, tmp_path / "ms", options={"prefix": not prefix}, max_mem="8G").mapping
    assert "with transformer. in front" in other.notes[0] or "without transformer." in other.notes[0]
    assert [output.name for output in other.outputs] == [output.name for output in plan.outputs]


@pytest.mark.slow
def test_mindformers_spelling_of_numbers_and_options(tmp_path) -> None:
    model(tmp_path / "bloom", BLOOM, "bloom", told=False)
    model(tmp_path / "gpt", GPT, "gpt", told=False)
    running.tiny(tmp_path / "llama")
    for words in (
        ("--model", "bloom", "--input_path", "bloom", "--output_path", "a", "--n_head", "3", "--hidden_size", "12"),
        ("--model", "gpt", "--input_path", "gpt", "--output_path", "b", "--layers", "2"),
        ("--input_path", "llama", "--output_path", "c.ckpt", "--qkv_concat", "True", "--dtype", "fp16"),
    ):
        ended = run("convert", *words, "--quiet", "--json", cwd=tmp_path)
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["model"] in ("bloom", "gpt", "llama")
    wrong = run("convert", "bloom", "d", "--model", "bloom", "--n_head", "--hidden_size", "12", cwd=tmp_path)
    assert (wrong.code, "--n_head needs a value" in wrong.err) == (2, True)


def test_two_choices_that_come_to_the_same_are_no_question(tmp_path) -> None:
    """With one KV group and no gate to alternate with, fused is fused."""
    config = {**LLAMA, "model_type": "qwen2_moe", "num_key_value_heads": 1, "num_experts": 2}
    config |= {"moe_intermediate_size": 3, "shared_expert_intermediate_size": 5}
    samples.write_hf(tmp_path / "hf", config, hf(config), 1 << 20)
    streamconv.convert(tmp_path / "hf", tmp_path / "ms", options={"qkv_concat": "blocks"}, max_mem="8G")
    (tmp_path / "ms" / "streamconv.json").unlink()
    plan = streamconv.plan(tmp_path / "ms", tmp_path / "back", reverse=True, max_mem="8G").mapping
    assert plan.options["qkv_concat"] is True


#: Qwen3's fused layouts, whose names and shapes are the same: how the source was made, by option.
QWEN3: dict[str, Any] = {**LLAMA, "model_type": "qwen3", "num_attention_heads": 6, "num_key_value_heads": 3}
FUSED = [
    {"interleave_mlp": by_turns, "contiguous_qkv": contiguous}
    for by_turns, contiguous in product((True, False), repeat=2)
]


@pytest.mark.parametrize("made_with", FUSED, ids=str)
def test_a_layout_that_nothing_tells_is_asked(tmp_path, made_with) -> None:
    source = model(tmp_path / "hf", QWEN3, "qwen3")
    streamconv.convert(source, tmp_path / "ms", options=made_with, max_mem="8G")
    streamconv.convert(tmp_path / "ms", tmp_path / "recorded", reverse=True, max_mem="8G")
    (tmp_path / "ms" / "streamconv.json").unlink()
    with pytest.raises(UsageError, match="neither names nor shapes tell") as question:
        streamconv.plan(tmp_path / "ms", tmp_path / "back", reverse=True, max_mem="8G")
    for name in made_with:
        assert f'options={{"{name}": "true"}}' in question.value.hint
        assert f'options={{"{name}": "false"}}' in question.value.hint
    streamconv.convert(tmp_path / "ms", tmp_path / "back", reverse=True, options=made_with, max_mem="8G")
    assert golden.found(tmp_path / "back") == golden.found(tmp_path / "recorded") == golden.found(source)


def test_the_yaml_tells_a_layout(tmp_path) -> None:
    source = model(tmp_path / "hf", QWEN3, "qwen3")
    streamconv.convert(source, tmp_path / "ms", options=FUSED[2], max_mem="8G")
    (tmp_path / "ms" / "streamconv.json").unlink()
    keys = {"num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "vocab_size"}
    lines = ["model:", "  model_config:", *(f"    {key}: {QWEN3[key]}" for key in sorted(keys))]
    lines += ["    use_interleaved_weight_layout_mlp: False"]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    given = {"model": "qwen3", "reverse": True, "config": tmp_path / "run.yaml", "max_mem": "8G"}
    with pytest.raises(UsageError) as question:
        streamconv.plan(tmp_path / "ms", tmp_path / "back", **given)
    assert "contiguous_qkv" in question.value.hint
    assert "interleave_mlp" not in question.value.hint
    lines += ["    use_contiguous_weight_layout_attention: True"]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    streamconv.convert(tmp_path / "ms", tmp_path / "back", **given)
    assert golden.found(tmp_path / "back") == golden.found(source)


def test_the_error_in_reverse_is_that_of_the_layout_whose_names_fit(tmp_path) -> None:
    """A config of another size: the fused layout knows no wq, and its list of findings is shorter."""
    source = model(tmp_path / "hf", LLAMA, "llama")
    streamconv.convert(source, tmp_path / "ms", max_mem="8G")
    (tmp_path / "ms" / "streamconv.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "hidden_size": 40, "head_dim": 8}))
    with pytest.raises(UnsupportedError, match=r"wq\.weight: shape \[24, 20\] does not fit") as error:
        streamconv.plan(tmp_path / "ms", tmp_path / "back", reverse=True, config=tmp_path / "config.json", max_mem="8G")
    assert "no rule matches" not in str(error.value)


def test_a_model_is_offered_no_adapter_s_name(tmp_path) -> None:
    specs = [TensorSpec("net.blocks.0.q_proj.weight", F32, (4, 4)), TensorSpec("net.q_proj.lora", F32, (4, 4))]
    samples.write_hf(tmp_path / "hf", LLAMA, specs, 1 << 20)
    with pytest.raises(UnsupportedError, match="no rule matches") as error:
        streamconv.plan(tmp_path / "hf", tmp_path / "ms", max_mem="8G")
    assert "base_model" not in str(error.value)
