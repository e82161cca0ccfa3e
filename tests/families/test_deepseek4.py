"""DeepSeek-V4: which layer has which tensors, three spellings of its names, integers of two widths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamconv
from streamconv import testing as samples
from streamconv.errors import SourceError, UnsupportedError
from streamconv.families import find
from streamconv.formats import safetensors
from streamconv.tensors.dtypes import BF16
from streamconv.tensors.refs import TensorSpec
from support import golden

CONFIG: dict[str, Any] = {
    **{"model_type": "deepseek_v4", "vocab_size": 11, "hidden_size": 10, "moe_intermediate_size": 5},
    **{"num_hidden_layers": 4, "num_nextn_predict_layers": 1, "num_attention_heads": 2, "head_dim": 6},
    **{"q_lora_rank": 3, "o_lora_rank": 3, "o_groups": 2, "n_routed_experts": 3, "n_shared_experts": 1},
    **{"num_experts_per_tok": 2, "num_hash_layers": 1, "compress_ratios": [0, 4, 128, 4, 0]},
    **{"index_n_heads": 2, "index_head_dim": 4, "hc_mult": 2, "tie_word_embeddings": False},
}
TABLE = "layers.0.ffn.gate.tid2eid"


def specs(config: dict[str, Any] = CONFIG) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in samples.hf_specs(find("deepseek4"), config)}


def store(folder: Path, tensors: dict[str, TensorSpec], config: dict[str, Any] | None = CONFIG, **data: bytes) -> Path:
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    values = {name: data.get(name) or golden.golden_bytes(spec) for name, spec in tensors.items()}
    layout = safetensors.lay_out("model.safetensors", [*tensors.values()], {})
    golden.write(folder / "model.safetensors", layout, values)
    return folder


def plan(source: Path, **arguments: Any) -> streamconv.Plan:
    return streamconv.plan(source, source.parent / "out", model="deepseek4", max_mem="8G", **arguments)


def convert(source: Path, dest: Path, **arguments: Any) -> Path:
    streamconv.convert(source, dest, model="deepseek4", max_mem="8G", **arguments)
    return dest


@pytest.mark.parametrize("part", ["attn.compressor.", "attn.indexer.", "ffn.gate.bias"])
def test_a_layer_without_what_the_config_says_it_has(tmp_path, part) -> None:
    """Though others have it: all of layer 3's are missing."""
    kept = {name: spec for name, spec in specs().items() if not name.startswith(f"layers.3.{part}")}
    with pytest.raises(SourceError, match=rf"layers\.3\.{part}.*: missing"):
        plan(store(tmp_path / "hf", kept))


@pytest.mark.parametrize("name", ["layers.0.attn.compressor.ape", "layers.2.attn.indexer.wq_b.weight"])
def test_a_layer_with_what_the_config_says_it_has_not(tmp_path, name) -> None:
    more = {**specs(), name: TensorSpec(name, BF16, (4, 12))}
    with pytest.raises(UnsupportedError, match=f"{name}: no rule matches"):
        plan(store(tmp_path / "hf", more))


def test_no_layer_has_a_table_and_a_bias(tmp_path) -> None:
    name = "layers.0.ffn.gate.bias"
    more = {**specs(), name: TensorSpec(name, BF16, (3,))}
    with pytest.raises(UnsupportedError, match=f"{name}: no balanced 0; the model has 1 … 3"):
        plan(store(tmp_path / "hf", more))
    listed = {key: value for key, value in CONFIG.items() if key != "num_hash_layers"}
    listed["mlp_layer_types"] = ["hash_moe", "moe", "moe", "moe"]
    with pytest.raises(UnsupportedError, match=f"{name}: no rule matches"):
        plan(store(tmp_path / "listed", more, listed))


@pytest.mark.parametrize("kind", ["moe", "hash_moe"])
def test_all_layers_choose_experts_in_one_way(tmp_path, kind) -> None:
    config = {**CONFIG, "num_hash_layers": {"moe": 0, "hash_moe": 4}[kind]}
    listed = {key: value for key, value in config.items() if key != "num_hash_layers"} | {"mlp_layer_types": [kind] * 4}
    tensors = specs(config)
    assert tensors.keys() == specs(listed).keys()
    outputs = {output.name for output in plan(store(tmp_path / "hf", tensors, listed)).mapping.outputs}
    assert outputs == {output.name for output in plan(store(tmp_path / "count", tensors, config)).mapping.outputs}
    assert any("expert_bias" in name for name in outputs if name.startswith("decoder")) == (kind == "moe")


def test_without_a_config_names_tell_what_a_layer_has(tmp_path) -> None:
    source = store(tmp_path / "hf", specs())
    there = convert(store(tmp_path / "silent", specs(), None), tmp_path / "ms")
    assert golden.found(there) == golden.found(convert(source, tmp_path / "told"))
    assert golden.found(convert(there, tmp_path / "back", reverse=True)) == golden.found(source)


@pytest.mark.parametrize("case", ["ds4_tf5_fused_hf2ms_none", "ds4_tf5_resaved_hf2ms_bf16"])
def test_the_names_of_transformers_come_back_where_they_are_asked(tmp_path, case) -> None:
    """What it saves by default is a mixture, and comes back as it is in memory."""
    (one,) = (c for c in golden.cases("deepseek4") if c.name == case)
    folder = one.write_source(tmp_path / "hf")
    there = convert(folder, tmp_path / "ms")
    back = convert(there, tmp_path / "back", reverse=True, options={"experts": "fused"})
    (inside,) = (c for c in golden.cases("deepseek4") if c.name == "ds4_tf5_fused_hf2ms_none")
    expected = golden.found(inside.write_source(tmp_path / "memory"))
    if case == inside.name:
        assert golden.found(back) == expected
    assert {n: kept[:2] for n, kept in golden.found(back).items()} == {n: kept[:2] for n, kept in expected.items()}
    again = convert(back, tmp_path / "again")
    assert golden.found(again) == golden.found(there)


@pytest.mark.parametrize(
    "said",
    [
        {"compress_ratios": [0, "4", None, [4]]},
        {"compress_ratios": "0404"},
        {"compress_ratios": None, "layer_types": [["x"], 1, None, {}], "compress_rates": {"x": []}},
        {"compress_ratios": None, "layer_types": {}, "compress_rates": []},
    ],
    ids=str,
)
def test_what_a_config_says_in_no_form_that_is_known_is_not_said(tmp_path, said) -> None:
    source = store(tmp_path / "hf", specs(), {**CONFIG, **said})
    assert len(plan(source).mapping.outputs) > 100


def test_more_layers_than_memory_has_room_for_are_missing(tmp_path) -> None:
    many = {**CONFIG, "num_hidden_layers": 1 << 30, "num_hash_layers": (1 << 30) - 1}
    with pytest.raises((SourceError, UnsupportedError), match="do not fit the model"):
        plan(store(tmp_path / "hf", specs(), many))


def test_layers_that_predict_further_tokens_may_be_dropped(tmp_path) -> None:
    source = store(tmp_path / "hf", specs())
    dropped = plan(source, options={"mtp": False}).mapping.dropped
    assert dropped == dict.fromkeys(
        (name for name in specs() if name.startswith("mtp.")), "mtp=false: layers that predict further tokens"
    )
    none = store(tmp_path / "none", specs(), {**CONFIG, "num_nextn_predict_layers": 0})
    assert {*plan(none).mapping.dropped.values()} == {"num_nextn_predict_layers of config.json is 0"}


@pytest.mark.parametrize("wrong", [1 << 31, -(1 << 31) - 1, 1 << 40])
def test_an_integer_that_does_not_fit_ends_the_conversion(tmp_path, wrong) -> None:
    ids = np.zeros((11, 2), np.int64)
    ids[7, 1] = wrong
    source = store(tmp_path / "hf", specs(), **{TABLE: ids.tobytes()})
    with pytest.raises(UnsupportedError, match="an integer of the source does not fit into I32"):
        convert(source, tmp_path / "ms")


def test_a_table_of_floats_is_refused(tmp_path) -> None:
    """Above 256 BF16 has not every integer."""
    with pytest.raises(UnsupportedError, match=f"{TABLE}: BF16 are no integers"):
        plan(store(tmp_path / "hf", {**specs(), TABLE: TensorSpec(TABLE, BF16, (11, 2))}), dtype="bf16")
