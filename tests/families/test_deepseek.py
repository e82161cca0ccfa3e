"""DeepSeek, V2 and V3: every layout there and back, FP8 against NumPy, numbers that contradict, what stays float32."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamconv
from streamconv import testing as samples
from streamconv.errors import SourceError, StreamconvError, UnsupportedError, UsageError
from streamconv.families import registry as families
from streamconv.formats import safetensors, shards
from streamconv.formats.catalog import open_catalog
from streamconv.tensors.dtypes import BF16, DTYPES, F8_E4M3, F16, F32
from streamconv.tensors.refs import TensorSpec
from support import golden
from support.helpers import planned
from support.running import call

pytestmark = pytest.mark.slow

Tensors = dict[str, np.ndarray]
Options = Mapping[str, Any]

V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 7,
    "intermediate_size": 11,
    "moe_intermediate_size": 5,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 9,
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 6,
    "v_head_dim": 5,
    "n_routed_experts": 7,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "vocab_size": 13,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
V2 = {key: value for key, value in V3.items() if "nextn" not in key} | {"model_type": "deepseek_v2"}
CODER = {
    "model_type": "llama",
    "hidden_size": 9,
    "intermediate_size": 11,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 5,
    "num_hidden_layers": 2,
    "vocab_size": 13,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
#: Sizes that are no multiples of 128, most of them larger: blocks at the edges are cut, on both axes.
LARGE = {
    **V3,
    "hidden_size": 160,
    "intermediate_size": 200,
    "moe_intermediate_size": 136,
    "num_hidden_layers": 2,
    "q_lora_rank": 144,
    "kv_lora_rank": 132,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 48,
    "n_routed_experts": 3,
    "torch_dtype": "float8_e4m3fn",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}

#: model_type → its layouts.
LAYOUTS: dict[str, tuple[Options, ...]] = {
    "deepseek_v3": (
        {"layout": "classic", "use_gmm": False},
        {"layout": "classic", "use_gmm": True},
        {"layout": "infer"},
        {"layout": "mcore"},
        {"layout": "pynative"},
        {"layout": "graph_concat"},
    ),
    "deepseek_v2": tuple(
        {"mla_weight_split": split, "use_gmm": gmm} for split in (False, True) for gmm in (False, True)
    ),
    "llama": ({},),
}
V3_LAYOUTS = LAYOUTS["deepseek_v3"]
#: Those that nothing tells of whether gate and up alternate.
GRAPHS = ("mcore", "graph_concat")
EVERY = [(config, options) for config in (CODER, V2, V3) for options in LAYOUTS[config["model_type"]]]


def spelled(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{k}={v}" for k, v in value.items() if k != "quantization_config") or "-"
    return str(value)


def named(config: Options, options: Options) -> str:
    return f"{config['model_type']} {spelled(options)}"


EVERY_ID = [named(*one) for one in EVERY]


def family(config: Options) -> families.Family:
    """DeepSeek's Coder says of itself that it is a Llama."""
    return families.choose("deepseek", config)


def specs(config: Options) -> list[TensorSpec]:
    return samples.hf_specs(family(config), config)


def tensors(config: Options, seed: int = 0) -> Tensors:
    """A model of this config: random, but what real checkpoints store again in MTP layers is the same here."""
    rng = np.random.default_rng(seed)
    result = {s.name: samples.random_values(rng, math.prod(s.shape), s.dtype).reshape(s.shape) for s in specs(config)}
    for name in result:
        if name.endswith((".embed_tokens.weight", ".shared_head.head.weight")):
            result[name] = result["model.embed_tokens.weight" if "embed" in name else "lm_head.weight"]
    return result


def store(folder: Path, config: Options, model: Tensors, count: int = 3) -> Path:
    """Write a checkpoint, its tensors dealt one by one over so many shards."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    kinds = {d.numpy: d for d in DTYPES}
    files = {shards.hf_shard_name(i + 1, count): list(model)[i::count] for i in range(count)}
    for file, names in files.items():
        some = [TensorSpec(n, kinds[model[n].dtype.name], model[n].shape) for n in names]
        golden.write(folder / file, safetensors.lay_out(file, some, {}), {n: model[n].tobytes() for n in names})
    index = {name: file for file, names in files.items() for name in names}
    (folder / shards.HF_INDEX).write_bytes(shards.index_bytes(0, index))
    return folder


def convert(source: Path, dest: Path, **arguments: Any) -> Path:
    streamconv.convert(source, dest, max_mem="8G", workers=1, **arguments)
    return dest


def arrays(path: Path) -> Tensors:
    return {name: tensor.numpy() for name, tensor in streamconv.open(path).items()}


def said(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


# There and back -------------------------------------------------------------------------------------------------------

ODD = st.sampled_from((1, 3, 5, 7, 9))


@st.composite
def configs(draw: st.DrawFn, base: Options) -> Options:
    """Models of small odd sizes; rotary rows come in pairs, and at least one layer has experts."""
    config = {**base, **{key: draw(ODD) for key in base if re.search(r"_size$|_rank$|_heads$|head_dim$", key)}}
    if base is CODER:
        return {**config, "num_attention_heads": config["num_key_value_heads"] * draw(st.integers(1, 3))}
    dense = draw(st.integers(0, 2))
    config |= {
        "qk_rope_head_dim": 2 * draw(st.integers(1, 3)),
        "q_lora_rank": draw(st.none() | ODD),
        "n_routed_experts": draw(st.sampled_from((1, 2, 7))),
        "n_shared_experts": draw(st.integers(1, 2)),
        "first_k_dense_replace": dense,
        "num_hidden_layers": dense + draw(st.integers(1, 2)),
    }
    return {**config, "num_nextn_predict_layers": draw(st.integers(0, 2))} if base is V3 else config


def without_mtp(config: Options, model: Tensors) -> Tensors:
    count = config["num_hidden_layers"]
    return {n: t for n, t in model.items() if not (m := re.match(r"model\.layers\.(\d+)", n)) or int(m[1]) < count}


def comes_back(folder: Path, config: Options, options: Options, count: int, dtype: str | None) -> None:
    """To a directory and to a `.ckpt`, and back from each, with the manifest and without."""
    model = tensors(config)
    store(folder / "hf", config, model, count)
    drops = options.get("mtp") is False
    expected = golden.found(store(folder / "kept", config, without_mtp(config, model) if drops else model, 1))
    settled = {**config, "num_nextn_predict_layers": 0} if drops else config
    name = {"model": "deepseek"} if config["model_type"] == "llama" else {}
    square = config["model_type"] == "deepseek_v2" and config["hidden_size"] == config["moe_intermediate_size"]
    untold = {"use_gmm": options.get("use_gmm", False)} if square else {}
    if options.get("layout") in GRAPHS:
        untold["interleave_mlp"] = options.get("interleave_mlp", True)
    number = 0

    def back(source: Path, **arguments: Any) -> None:
        nonlocal number
        number += 1
        dest = convert(source, folder / f"back{number}", reverse=True, dtype=dtype, **arguments)
        assert golden.found(dest) == expected
        assert said(dest) == settled

    for kind in ("ms", "ms.ckpt"):
        there = convert(folder / "hf", folder / kind, dtype=dtype, options=options, **name)
        assert golden.found(there).keys() != expected.keys()
        given = {} if kind == "ms" else {"config": folder / "hf"}
        back(there, **given)
        manifest = folder / ("ms/streamconv.json" if kind == "ms" else "ms.ckpt.streamconv.json")
        manifest.unlink()
        try:
            back(there, **given, **name)
        except UsageError as question:
            assert any(f'options={{"{key}": "false"}}' in str(question) for key in untold)
        back(there, **given, **name, options=untold)


@pytest.mark.parametrize("options", V3_LAYOUTS, ids=spelled)
@settings(max_examples=8, deadline=None)
@given(configs(V3), st.booleans(), st.integers(1, 4), st.sampled_from((None, "bf16")))
def test_v3_comes_back(tmp_path_factory, options, config, mtp, count, dtype) -> None:
    comes_back(tmp_path_factory.mktemp("v3"), config, {**options, "mtp": mtp}, count, dtype)


@pytest.mark.parametrize("options", LAYOUTS["deepseek_v2"], ids=spelled)
@settings(max_examples=6, deadline=None)
@given(configs(V2), st.integers(1, 4), st.sampled_from((None, "bf16")))
def test_v2_comes_back(tmp_path_factory, options, config, count, dtype) -> None:
    comes_back(tmp_path_factory.mktemp("v2"), config, options, count, dtype)


@settings(max_examples=10, deadline=None)
@given(configs(CODER), st.integers(1, 4), st.sampled_from((None, "bf16")))
def test_coder_comes_back(tmp_path_factory, config, count, dtype) -> None:
    comes_back(tmp_path_factory.mktemp("coder"), config, {}, count, dtype)


@pytest.mark.parametrize("mtp", [True, False])
@pytest.mark.parametrize("options", V3_LAYOUTS, ids=spelled)
def test_shards_filled_to_a_limit_and_a_config_without_a_word_of_mtp(tmp_path, options, mtp) -> None:
    config = {key: value for key, value in V3.items() if key != "num_nextn_predict_layers"}
    samples.write_hf(tmp_path / "hf", config, specs(config), 300)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 9
    convert(tmp_path / "hf", tmp_path / "ms", options={**options, "mtp": mtp}, max_shard_size=500)
    convert(tmp_path / "ms", tmp_path / "back", reverse=True)
    assert golden.found(tmp_path / "back") == golden.found(tmp_path / "hf")
    assert said(tmp_path / "back") == config


@pytest.mark.parametrize("options", V3_LAYOUTS, ids=spelled)
def test_a_config_without_a_word_of_the_mtp_layers_that_there_are(tmp_path, options) -> None:
    """Their names tell; only a config that says 0 drops them."""
    source = store(
        tmp_path / "hf", {**V3, "num_nextn_predict_layers": 2}, tensors({**V3, "num_nextn_predict_layers": 2})
    )
    silent = {key: value for key, value in V3.items() if key != "num_nextn_predict_layers"}
    (source / "config.json").write_text(json.dumps(silent))
    convert(source, tmp_path / "ms", options=options)
    convert(tmp_path / "ms", tmp_path / "back", reverse=True)
    assert golden.found(tmp_path / "back") == golden.found(source)


def test_a_yaml_as_mindformers_has_it(tmp_path) -> None:
    """The numbers of experts stand beside `model`, and nothing tells of MTP but the names."""
    source = store(tmp_path / "hf", V3, tensors(V3))
    said = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads"}
    same = ("hidden_size", "intermediate_size", "vocab_size", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim")
    said |= {key: key for key in (*same, "qk_rope_head_dim", "v_head_dim")}
    moe = {"expert_num": "n_routed_experts", "shared_expert_num": "n_shared_experts"}
    moe |= {key: key for key in ("first_k_dense_replace", "moe_intermediate_size")}
    lines = ["model:", "  model_config:", *(f"    {key}: {V3[of]}" for key, of in said.items())]
    lines += ["moe_config:", *(f"  {key}: {V3[of]}" for key, of in moe.items())]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    for options in V3_LAYOUTS:
        there = convert(source, tmp_path / f"{spelled(options)}.ckpt", options=options)
        there.with_name(there.name + ".streamconv.json").unlink()
        back = there.with_suffix(".back")
        asked = {"interleave_mlp": True} if options["layout"] in GRAPHS else {}
        convert(there, back, reverse=True, model="deepseek3", config=tmp_path / "run.yaml", options=asked)
        assert golden.found(back) == golden.found(source)


def test_a_copy_of_the_embedding_that_is_none_is_said_to_be_lost(tmp_path) -> None:
    model = tensors(V3)
    name = "model.layers.3.embed_tokens.weight"
    model[name] = model[name] + model[name]
    plan = streamconv.plan(store(tmp_path / "hf", V3, model), tmp_path / "ms", max_mem="8G").mapping
    assert "it differs from model.embed_tokens.weight, and is lost" in plan.dropped[name]
    assert all("lost" not in why for other, why in plan.dropped.items() if other != name)


@pytest.mark.parametrize("by_turns", [True, False])
def test_gate_and_up_of_mcore_by_turns_or_not(tmp_path, by_turns) -> None:
    source = store(tmp_path / "hf", V3, tensors(V3))
    convert(source, tmp_path / "ms", options={"layout": "mcore", "interleave_mlp": by_turns})
    gate, up = (arrays(source)[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up"))
    expected = np.stack((gate, up), 1).reshape(-1, gate.shape[1]) if by_turns else np.concatenate((gate, up))
    assert np.array_equal(arrays(tmp_path / "ms")["decoder.layers.0.mlp.linear_fc1.weight"], expected)
    assert golden.found(convert(tmp_path / "ms", tmp_path / "back", reverse=True)) == golden.found(source)
    with pytest.raises(UsageError, match="interleave_mlp=false goes only with layout=mcore"):
        convert(source, tmp_path / "other", options={"layout": "infer", "interleave_mlp": False})


@pytest.mark.parametrize("options", V3_LAYOUTS, ids=spelled)
def test_mtp_layers_that_are_dropped_are_listed_with_the_reason(tmp_path, options) -> None:
    config, model = {**V3, "num_nextn_predict_layers": 2}, tensors({**V3, "num_nextn_predict_layers": 2})
    store(tmp_path / "hf", config, model)
    plan = streamconv.plan(tmp_path / "hf", tmp_path / "ms", options={**options, "mtp": False}, max_mem="8G").mapping
    assert plan.dropped == dict.fromkeys(
        model.keys() - without_mtp(config, model).keys(), "mtp=false: layers that predict further tokens"
    )
    store(tmp_path / "zero", {**V3, "num_nextn_predict_layers": 0}, model)
    zero = streamconv.plan(tmp_path / "zero", tmp_path / "ms", options=options, max_mem="8G").mapping
    assert zero.dropped == dict.fromkeys(plan.dropped, "num_nextn_predict_layers of config.json is 0")
    silent = {key: value for key, value in config.items() if key != "num_nextn_predict_layers"}
    store(tmp_path / "silent", silent, model)
    asked = {**options, "mtp": False}
    assert (
        streamconv.plan(tmp_path / "silent", tmp_path / "ms", options=asked, max_mem="8G").mapping.dropped
        == plan.dropped
    )


@pytest.mark.parametrize("layout", ["classic", "mcore"])
def test_second_copies_are_not_needed_to_be_written_again(tmp_path, layout) -> None:
    """MTP layers share the embedding and the head: what is left out on the way there is there on the way back."""
    model = tensors(V3)
    again = {name for name in model if name.startswith("model.layers.3.") and model[name].shape == (13, 7)}
    assert len(again) == 2
    store(tmp_path / "hf", V3, {name: tensor for name, tensor in model.items() if name not in again})
    convert(tmp_path / "hf", tmp_path / "ms", options={"layout": layout})
    assert golden.found(convert(tmp_path / "ms", tmp_path / "back", reverse=True)) == golden.found(
        store(tmp_path / "whole", V3, model)
    )


@pytest.mark.parametrize("layout", ["classic", "infer"])
def test_a_head_that_is_the_embedding(tmp_path, layout) -> None:
    model = tensors(V3)
    del model["lm_head.weight"]
    model["model.layers.3.shared_head.head.weight"] = model["model.embed_tokens.weight"]
    source = store(tmp_path / "hf", {**V3, "tie_word_embeddings": True}, model)
    convert(source, tmp_path / "ms", options={"layout": layout})
    assert golden.found(convert(tmp_path / "ms", tmp_path / "back", reverse=True)) == golden.found(source)


# What layouts do, computed by NumPy -----------------------------------------------------------------------------------

M, D = "model.layers.1.", "decoder.layers.1."


def stacked(model: Tensors, *projections: str) -> np.ndarray:
    """[E, out, in], several projections one below the other."""
    experts = range(V3["n_routed_experts"])
    return np.stack(
        [np.concatenate([model[f"{M}mlp.experts.{e}.{p}_proj.weight"] for p in projections]) for e in experts]
    )


def rotary(rows: np.ndarray) -> np.ndarray:
    """Even rows before odd ones."""
    return np.concatenate([rows[0::2], rows[1::2]])


def per_head(model: Tensors, name: str, part: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.concatenate([part(head) for head in np.split(model[f"{M}self_attn.{name}.weight"], 3)])


def joined_attention(model: Tensors) -> np.ndarray:
    return np.concatenate([model[M + f"self_attn.{name}.weight"] for name in ("q_a_proj", "kv_a_proj_with_mqa")])


def alternating(model: Tensors, name: str) -> np.ndarray:
    gate, up = (model[f"{name}.{p}_proj.weight"] for p in ("gate", "up"))
    return np.array([row for pair in zip(gate, up, strict=True) for row in pair])


CLASSIC, INFER, MCORE = {"layout": "classic"}, {"layout": "infer"}, {"layout": "mcore"}
PYNATIVE, CONCAT = {"layout": "pynative"}, {"layout": "graph_concat"}
GMM = {"layout": "classic", "use_gmm": True}
COMPUTED: list[tuple[Options, str, Callable[[Tensors], np.ndarray]]] = [
    (CLASSIC, M + "attention.l2q_nope_proj.weight", lambda t: per_head(t, "q_b_proj", lambda head: head[:3])),
    (CLASSIC, M + "attention.l2q_pe_proj.weight", lambda t: per_head(t, "q_b_proj", lambda head: rotary(head[3:]))),
    (CLASSIC, M + "attention.kv2l_latent_kv.weight", lambda t: t[M + "self_attn.kv_a_proj_with_mqa.weight"][:5]),
    (CLASSIC, M + "attention.kv2l_k_pe.weight", lambda t: rotary(t[M + "self_attn.kv_a_proj_with_mqa.weight"][5:])),
    (CLASSIC, M + "attention.lkv2kv_k_nope.weight", lambda t: per_head(t, "kv_b_proj", lambda head: head[:3])),
    (CLASSIC, M + "attention.lkv2kv_v.weight", lambda t: per_head(t, "kv_b_proj", lambda head: head[3:])),
    (CLASSIC, M + "feed_forward.routed_experts.ffn.w3.weight", lambda t: stacked(t, "up")),
    (GMM, M + "feed_forward.routed_experts.ffn.w1", lambda t: stacked(t, "gate", "up").transpose(0, 2, 1)),
    (GMM, M + "feed_forward.routed_experts.ffn.w2", lambda t: stacked(t, "down").transpose(0, 2, 1)),
    (
        INFER,
        M + "attention.l2q_proj.weight",
        lambda t: per_head(t, "q_b_proj", lambda head: np.concatenate([head[:3], rotary(head[3:])])),
    ),
    (INFER, M + "feed_forward.routed_experts.ffn.w1.weight", lambda t: stacked(t, "gate").transpose(0, 2, 1)),
    (MCORE, D + "self_attention.linear_q_up_proj.weight", lambda t: t[M + "self_attn.q_b_proj.weight"]),
    (MCORE, "decoder.layers.0.mlp.linear_fc1.weight", lambda t: alternating(t, "model.layers.0.mlp")),
    (MCORE, D + "mlp.shared_experts.linear_fc1.weight", lambda t: alternating(t, M + "mlp.shared_experts")),
    (MCORE, D + "mlp.shared_experts.linear_fc2.weight", lambda t: t[M + "mlp.shared_experts.down_proj.weight"]),
    (MCORE, D + "mlp.experts.weight1", lambda t: stacked(t, "gate", "up").transpose(0, 2, 1).reshape(7 * 7, 2 * 5)),
    (MCORE, D + "mlp.experts.weight2", lambda t: stacked(t, "down").transpose(0, 2, 1).reshape(7 * 5, 7)),
    *((options, D + "self_attention.linear_qkv.weight", joined_attention) for options in (PYNATIVE, CONCAT)),
    (PYNATIVE, D + "mlp.experts.weight1", lambda t: stacked(t, "gate", "up").transpose(0, 2, 1)),
    (PYNATIVE, D + "mlp.experts.weight2", lambda t: stacked(t, "down").transpose(0, 2, 1)),
    (PYNATIVE, D + "mlp.shared_experts.linear_fc1.weight", lambda t: alternating(t, M + "mlp.shared_experts")),
    (CONCAT, D + "mlp.experts.weight2", lambda t: stacked(t, "down").transpose(0, 2, 1).reshape(7 * 5, 7)),
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Callable[[Options], Tensors]:
    """V3 in a layout."""
    folder, made = tmp_path_factory.mktemp("v3"), {}
    source = store(folder / "hf", V3, tensors(V3))

    def get(options: Options) -> Tensors:
        key = spelled(options)
        if key not in made:
            made[key] = arrays(convert(source, folder / key, options=options))
        return made[key]

    return get


@pytest.mark.parametrize(("options", "name", "reference"), COMPUTED, ids=[f"{spelled(o)} {n}" for o, n, _ in COMPUTED])
def test_what_a_layout_does(converted, options, name, reference) -> None:
    np.testing.assert_array_equal(converted(options)[name], reference(tensors(V3)))


def test_two_shared_experts_are_twice_as_many_rows(converted) -> None:
    assert converted(MCORE)[D + "mlp.shared_experts.linear_fc1.weight"].shape == (2 * 2 * 5, 7)


# FP8 ------------------------------------------------------------------------------------------------------------------


def quantised(config: Options, block: tuple[int, int] = (128, 128)) -> Tensors:
    """A model as DeepSeek publishes it: all finite FP8 bits, scales of very different sizes."""
    rng, model = np.random.default_rng(3), tensors(config)
    finite = np.array([bits for bits in range(256) if bits & 0x7F != 0x7F], np.uint8)
    result = {}
    for spec in samples.fp8_specs(specs(config)):
        name = spec.name.removesuffix("_scale_inv")
        if spec.dtype == F8_E4M3:
            result[name] = rng.choice(finite, spec.shape).view(ml_dtypes.float8_e4m3fn)
        elif spec.name != name:
            grid = [-(-size // side) for size, side in zip(result[name].shape, block, strict=True)]
            result[spec.name] = np.exp(rng.uniform(-9, 4, grid)).astype(np.float32)
        else:
            result[name] = model[name]
    return result


def dequantised(model: Tensors, block: tuple[int, int] = (128, 128)) -> Tensors:
    """The product in float32, rounded once to bfloat16; what has no scales stays as it is."""
    result = {name: tensor for name, tensor in model.items() if not name.endswith("_scale_inv")}
    for name, tensor in result.items():
        if name + "_scale_inv" in model:
            rows, columns = tensor.shape
            scale = model[name + "_scale_inv"].repeat(block[0], 0).repeat(block[1], 1)[:rows, :columns]
            result[name] = (tensor.astype(np.float32) * scale).astype(ml_dtypes.bfloat16)
    return result


FP8_LAYOUTS = [
    *((LARGE, options) for options in V3_LAYOUTS),
    (LARGE, {"layout": "mcore", "mtp": False}),
    *(({**LARGE, "model_type": "deepseek_v2"}, options) for options in LAYOUTS["deepseek_v2"]),
]


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> Callable[[Options], tuple[Path, Path]]:
    """The same model in FP8 and dequantised beforehand."""
    folder, made = tmp_path_factory.mktemp("fp8"), {}

    def get(config: Options) -> tuple[Path, Path]:
        name = config["model_type"]
        if name not in made:
            plain = {key: value for key, value in config.items() if key != "quantization_config"}
            model = quantised(config)
            made[name] = (
                store(folder / f"{name}-fp8", config, model),
                store(folder / f"{name}-plain", {**plain, "torch_dtype": "bfloat16"}, dequantised(model)),
            )
        return made[name]

    return get


def test_the_fp8_source_is_what_it_has_to_be(twins) -> None:
    """Blocks cut at both edges, scales in other shards than their weights, and rounding that matters."""
    catalog = open_catalog(twins(LARGE)[0])
    pairs = [(ref, catalog[ref.name + "_scale_inv"]) for ref in catalog.values() if ref.dtype == F8_E4M3]
    assert len(pairs) == (5 + 3) + 2 * (5 + 3 + 3 * 3)
    assert any(weight.shape[0] % 128 and weight.shape[1] % 128 and min(scale.shape) > 1 for weight, scale in pairs)
    assert all(weight.extents[0].file != scale.extents[0].file for weight, scale in pairs)
    model = quantised(LARGE)
    name = "model.layers.1.mlp.experts.0.gate_proj.weight"
    product = model[name].astype(np.float32)[:128, :128] * model[name + "_scale_inv"][0, 0]
    assert (product != dequantised(model)[name][:128, :128].astype(np.float32)).mean() > 0.5


@pytest.mark.parametrize("dtype", [None, "bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("config", "options"), FP8_LAYOUTS, ids=[named(*one) for one in FP8_LAYOUTS])
def test_fp8_is_converted_as_if_dequantised_before(tmp_path, twins, config, options, dtype) -> None:
    fp8, plain = twins(config)
    result = convert(fp8, tmp_path / "fp8", options=options, dtype=dtype)
    assert golden.found(result) == golden.found(convert(plain, tmp_path / "plain", options=options, dtype=dtype))
    word = {None: "bfloat16", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype]
    settled = {"num_nextn_predict_layers": 0} if options.get("mtp") is False else {}
    expected = {**config, "torch_dtype": word, **settled}
    del expected["quantization_config"]
    assert said(result) == expected
    assert "_scale_inv" not in (result / "param_name_map.json").read_text()


def test_fp8_into_a_ckpt_and_back_is_the_dequantised_model(tmp_path, twins) -> None:
    fp8, plain = twins(LARGE)
    there = convert(fp8, tmp_path / "ms.ckpt", options={"layout": "mcore"})
    assert golden.found(convert(there, tmp_path / "back", reverse=True, config=plain)) == golden.found(plain)


@pytest.mark.parametrize("dtype", [None, "bf16", "fp16", "fp32"])
def test_raw_dequantises_and_changes_no_name(tmp_path, twins, dtype) -> None:
    fp8, plain = twins(LARGE)
    arguments = {"model": "raw", "format": "hf", "dtype": dtype, "max_shard_size": 100_000}
    result = convert(fp8, tmp_path / "fp8", **arguments)
    assert golden.found(result) == golden.found(convert(plain, tmp_path / "plain", **arguments))
    assert dtype is not None or golden.found(result) == golden.found(plain)
    assert said(result) == said(tmp_path / "plain")
    assert "_scale_inv" not in (result / shards.HF_INDEX).read_text()


def test_the_plan_says_what_it_dequantises(twins, tmp_path) -> None:
    weights = sum(tensor.dtype_name == "F8_E4M3" for tensor in streamconv.open(twins(LARGE)[0]).values())
    for options, count in (({}, weights), ({"mtp": False}, weights - (4 + 1 + 3 * 3 + 3))):
        plan = streamconv.plan(twins(LARGE)[0], tmp_path / "ms", options=options, max_mem="8G")
        how = "FP8 (E4M3), blocks of 128 x 128"
        assert plan.to_json()["dequantised"] == {how: count}
        assert f"codes    {count} weights to BF16: {how}" in str(plan)


@settings(max_examples=12, deadline=None)
@given(
    configs(V3),
    st.sampled_from(V3_LAYOUTS),
    st.tuples(st.integers(16, 40), st.integers(16, 40)),
    st.integers(1, 9),
    st.integers(1, 4),
)
def test_blocks_of_any_size_over_matrices_of_any_size(tmp_path_factory, config, options, block, factor, count) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    config = {
        **config,
        "hidden_size": config["hidden_size"] * factor,
        "intermediate_size": config["intermediate_size"] * factor,
        "moe_intermediate_size": 3 * factor,
        "quantization_config": {"weight_block_size": list(block)},
    }
    model = quantised(config, block)
    fp8 = store(folder / "fp8", config, model, count)
    plain = store(folder / "plain", config, dequantised(model, block), 1)
    results = [golden.found(convert(s, folder / f"{s.name}-ms", options=options)) for s in (fp8, plain)]
    assert results[0] == results[1]


@pytest.mark.parametrize("block", [(64, 32), (16, 16), (1024, 17)], ids=str)
def test_the_config_says_how_large_a_block_is(tmp_path, block) -> None:
    config = {**LARGE, "quantization_config": {"weight_block_size": list(block)}}
    model = quantised(config, block)
    source, plain = store(tmp_path / "fp8", config, model), store(tmp_path / "plain", config, dequantised(model, block))
    result = convert(source, tmp_path / "raw", model="raw", format="hf")
    assert golden.found(result) == golden.found(plain)
    (source / "config.json").write_text(json.dumps(LARGE))
    with pytest.raises(UnsupportedError, match=re.escape("_scale_inv") + r" .* does not fit .* in blocks of 128 x 128"):
        convert(source, tmp_path / "ms")


def test_without_a_word_of_the_config_blocks_are_128(tmp_path, twins) -> None:
    fp8, plain = twins(LARGE)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({k: v for k, v in LARGE.items() if k != "quantization_config"}))
    assert golden.found(convert(fp8, tmp_path / "raw", model="raw", format="hf", config=config)) == golden.found(plain)


SMALL = {**V3, "quantization_config": LARGE["quantization_config"]}
UP = "model.layers.1.mlp.experts.2.up_proj.weight"
NORM, NOWHERE = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.experts.2.side_proj.weight"
ONE = np.ones((1, 1), np.float32)
BROKEN: dict[str, tuple[type[StreamconvError], Tensors, str]] = {
    "scales of a norm": (UnsupportedError, {NORM + "_scale_inv": ONE}, NORM + "_scale_inv"),
    "scales of nothing": (UnsupportedError, {NOWHERE + "_scale_inv": ONE}, NOWHERE + "_scale_inv"),
    "scales of a bfloat16 weight": (UnsupportedError, {UP: np.ones((5, 7), ml_dtypes.bfloat16)}, UP + "_scale_inv"),
    "no scales": (SourceError, {UP + "_scale_inv": np.empty(0)}, UP + "_scale_inv"),
    "more scales": (UnsupportedError, {UP + "_scale_inv": np.ones((1, 2), np.float32)}, UP + "_scale_inv"),
    "scales of one axis": (UnsupportedError, {UP + "_scale_inv": np.ones(3, np.float32)}, UP + "_scale_inv"),
    "scales in float64": (UnsupportedError, {UP + "_scale_inv": np.ones((1, 1), np.float64)}, UP),
    "scales in int32": (UnsupportedError, {UP + "_scale_inv": np.ones((1, 1), np.int32)}, UP),
    "a norm in FP8": (
        UnsupportedError,
        {NORM: np.ones(7, ml_dtypes.float8_e4m3fn), NORM + "_scale_inv": np.ones(1, np.float32)},
        NORM,
    ),
}


@pytest.mark.parametrize("arguments", [{}, {"model": "raw", "format": "hf"}], ids=["deepseek3", "raw"])
@pytest.mark.parametrize("what", BROKEN)
def test_fp8_that_is_broken_is_refused_by_name(tmp_path, what, arguments) -> None:
    kind, changed, name = BROKEN[what]
    model = {n: t for n, t in {**quantised(SMALL), **changed}.items() if t.ndim == 0 or t.size}
    source = store(tmp_path / "hf", SMALL, model)
    with pytest.raises(kind, match=re.escape(name) + r"(?!\w)"):
        convert(source, tmp_path / "ms", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("block", [[128], "128", [128, 0], [True, True], [128.0, 128.0], [[128, 128]]], ids=repr)
def test_blocks_that_are_none_are_refused(tmp_path, block) -> None:
    config = {**SMALL, "quantization_config": {"weight_block_size": block}}
    source = store(tmp_path / "hf", config, quantised(config))
    with pytest.raises(UnsupportedError, match="weight_block_size is " + re.escape(str(block))) as error:
        convert(source, tmp_path / "ms")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert 'keep all tensors as they are with model="raw" format="hf" options={"quantised": "keep"}' in error.value.hint
    keep = {"model": "raw", "options": {"quantised": "keep"}}
    with pytest.raises(UnsupportedError, match=r"MindSpore cannot load"):
        convert(source, tmp_path / "ms", **keep)
    kept = convert(source, tmp_path / "kept", **keep, format="hf")
    assert golden.found(kept) == golden.found(source)
    assert json.loads((kept / "config.json").read_text()) == config


def test_raw_is_not_told_to_choose_a_family(tmp_path) -> None:
    """Scales are missing: no other family would do, and `raw` is what was given."""
    lonely = {n: t for n, t in quantised(SMALL).items() if n != UP + "_scale_inv"}
    config = {**SMALL, "quantization_config": {"weight_block_size": [128, 128]}}
    with pytest.raises(StreamconvError) as error:
        convert(store(tmp_path / "hf", config, lonely), tmp_path / "ms", model="raw", format="hf")
    assert "source is complete" in error.value.hint
    assert "model" not in error.value.hint


def test_a_cast_of_fp8_without_scales_says_what_to_omit(tmp_path) -> None:
    model = {n: t for n, t in quantised(SMALL).items() if not n.endswith("_scale_inv")}
    source = store(tmp_path / "hf", {**SMALL, "quantization_config": None}, model)
    with pytest.raises(UnsupportedError, match=r"cannot be cast to BF16(.|\n)*hint: omit dtype"):
        convert(source, tmp_path / "ms", model="raw", format="hf", dtype="bf16")
    assert golden.found(convert(source, tmp_path / "ms", model="raw", format="hf")) == golden.found(source)


def test_fp8_without_any_scales_has_no_place_in_mindspore(tmp_path) -> None:
    model = {name: tensor for name, tensor in quantised(V3).items() if not name.endswith("_scale_inv")}
    source = store(tmp_path / "hf", V3, model)
    for dtype in (None, "bf16"):
        with pytest.raises(UnsupportedError, match=r"_proj.*F8_E4M3"):
            convert(source, tmp_path / "ms", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


# Numbers --------------------------------------------------------------------------------------------------------------


def plan_of(config: Options, some: list[TensorSpec], options: Options, reverse: bool = False) -> Any:
    return planned(some, config, family(config), reverse=reverse, **options)


def extra(name: str, *shape: int) -> Callable[[list[TensorSpec]], list[TensorSpec]]:
    return lambda some: [*some, TensorSpec(name, BF16, shape)]


def gone(part: str) -> Callable[[list[TensorSpec]], list[TensorSpec]]:
    return lambda some: [s for s in some if part not in s.name]


def shaped(name: str, *shape: int) -> Callable[[list[TensorSpec]], list[TensorSpec]]:
    return lambda some: [TensorSpec(s.name, s.dtype, shape) if s.name == name else s for s in some]


L0, L2, L3, L4 = (f"model.layers.{i}." for i in (0, 2, 3, 4))
WRONG: dict[str, tuple[Callable[[list[TensorSpec]], list[TensorSpec]], Options, str, str]] = {
    "a layer beyond": (
        extra(L4 + "input_layernorm.weight", 7),
        {},
        L4 + "input_layernorm.weight",
        "no layer 4; the model has 3",
    ),
    "an MTP layer beyond": (extra(L4 + "enorm.weight", 7), {}, L4 + "enorm.weight", "no mtp 1; the model has 1"),
    "MTP before its layer": (extra(L2 + "enorm.weight", 7), {}, L2 + "enorm.weight", ""),
    "one expert more": (
        extra(M + "mlp.experts.7.up_proj.weight", 5, 7),
        {},
        M + "mlp.experts.7.up_proj.weight",
        "no expert 7; the model has 7",
    ),
    "one expert more in MTP": (
        extra(L3 + "mlp.experts.7.up_proj.weight", 5, 7),
        {},
        L3 + "mlp.experts.7.up_proj.weight",
        "no expert 7; the model has 7",
    ),
    "a dense network beside experts": (
        extra(L2 + "mlp.up_proj.weight", 11, 7),
        {},
        L2 + "mlp.up_proj.weight",
        "no dense 2; the model has 1",
    ),
    "experts in a dense layer": (
        extra(L0 + "mlp.experts.0.up_proj.weight", 5, 7),
        {},
        L0 + "mlp.experts.0.up_proj.weight",
        "no moe 0; the model has 1 … 2",
    ),
    "one dense layer more": (
        lambda some: some,
        {"first_k_dense_replace": 2},
        M + "mlp.gate.weight",
        "no moe 1; the model has 2",
    ),
    "one dense layer less": (
        lambda some: some,
        {"first_k_dense_replace": 0},
        L0 + "mlp.up_proj.weight",
        "no dense 0; the model has",
    ),
    "one layer more": (lambda some: some, {"num_hidden_layers": 4}, L3 + "enorm.weight", ""),
    "one layer less": (
        lambda some: some,
        {"num_hidden_layers": 2},
        L3 + "input_layernorm.weight",
        "no layer 3; the model has 2",
    ),
    "a router of other rows": (shaped(M + "mlp.gate.weight", 6, 7), {}, M + "mlp.gate.weight", "experts is 7"),
    "a bias of other rows": (
        shaped(M + "mlp.gate.e_score_correction_bias", 8),
        {},
        M + "mlp.gate.e_score_correction_bias",
        "experts is 7",
    ),
    "q heads": (lambda some: some, {"qk_nope_head_dim": 4}, M + "self_attn.q_b_proj.weight", "is 30"),
    "kv heads": (lambda some: some, {"v_head_dim": 6}, M + "self_attn.kv_b_proj.weight", "is 27"),
    "rotary rows": (lambda some: some, {"qk_rope_head_dim": 4}, M + "self_attn.kv_a_proj_with_mqa.weight", "is 9"),
    "heads": (lambda some: some, {"num_attention_heads": 2}, M + "self_attn.o_proj.weight", "is 10"),
    "shared experts": (
        lambda some: some,
        {"n_shared_experts": 3},
        M + "mlp.shared_experts.up_proj.weight",
        "is 15",
    ),
    "the width of an expert": (lambda some: some, {"moe_intermediate_size": 6}, UP, "expert_ffn is 6"),
    "no such expert": (gone(UP), {}, UP, "missing"),
    "no experts in a layer": (gone(M + "mlp.experts."), {}, M + "mlp.experts.6.down_proj.weight", "missing"),
    "no bias": (gone(L2 + "mlp.gate.e_score"), {}, L2 + "mlp.gate.e_score_correction_bias", "missing"),
    "no MTP layer": (gone(L3), {}, L3 + "eh_proj.weight", "missing"),
    "no second MTP layer": (
        lambda some: some,
        {"num_nextn_predict_layers": 2},
        L4 + "mlp.experts.0.up_proj.weight",
        "missing",
    ),
}


@pytest.mark.parametrize("options", V3_LAYOUTS, ids=spelled)
@pytest.mark.parametrize("what", WRONG)
def test_numbers_that_contradict_are_refused_by_name(what, options) -> None:
    change, config, name, number = WRONG[what]
    some = change(specs(V3))
    assert some != specs(V3) or config
    kind = SourceError if number == "missing" else UnsupportedError
    with pytest.raises(kind, match=rf"(?m)^  (.*, )?{re.escape(name)}: .*{re.escape(number)}(?!\d)"):
        plan_of({**V3, **config}, some, options)


@pytest.mark.parametrize("config", [V3, {**V3, "num_nextn_predict_layers": 0}], ids=["mtp", "no mtp"])
@pytest.mark.parametrize("mtp", [True, False])
def test_what_no_rule_knows_is_said_with_mtp_layers_and_without(config, mtp) -> None:
    """Dropping all further layers takes nothing of the model's own."""
    made = [output.spec for output in plan_of(config, specs(config), {"mtp": mtp}).outputs]
    for some, name, reverse in (
        (specs(config), M + "mlp.side.weight", False),
        (made, M + "attention.side.weight", True),
    ):
        with pytest.raises(UnsupportedError, match=re.escape(name) + ": no rule matches"):
            plan_of(config, extra(name, 5)(some), {"mtp": mtp}, reverse=reverse)


@pytest.mark.parametrize("options", V3_LAYOUTS, ids=spelled)
@pytest.mark.parametrize("mtp", [0, 1])
def test_a_layer_too_many_is_no_layer_that_predicts_further_tokens(options, mtp) -> None:
    """It has no norms of its own, and no eh_proj: the config is wrong, and nothing is dropped in silence."""
    some = [s for s in specs(V3) if not s.name.startswith(L3)]
    config = {**V3, "num_hidden_layers": 2, "num_nextn_predict_layers": mtp}
    with pytest.raises(StreamconvError, match=re.escape(L2)):
        plan_of(config, some, {**options, "mtp": bool(mtp)})


WRONG_BACK: list[tuple[Options, Callable[[list[TensorSpec]], list[TensorSpec]], str, str]] = [
    (
        MCORE,
        extra("decoder.layers.3.input_layernorm.weight", 7),
        "decoder.layers.3.input_layernorm",
        "no layer 3; the model has 3",
    ),
    (MCORE, extra("mtp.layers.1.enorm.weight", 7), "mtp.layers.1.enorm", "no mtp 1; the model has 1"),
    (MCORE, gone("mtp.layers.0."), "mtp.layers.0.enorm.weight", "missing"),
    (MCORE, shaped(D + "mlp.experts.weight1", 6 * 7, 10), D + "mlp.experts.weight1", "not 6"),
    (MCORE, shaped(D + "mlp.experts.weight2", 7 * 6, 7), D + "mlp.experts.weight2", "not 6"),
    (MCORE, shaped(D + "mlp.shared_experts.linear_fc1.weight", 10, 14), D + "mlp.shared_experts.linear_fc1", "is 10"),
    (MCORE, shaped("decoder.layers.0.mlp.linear_fc1.weight", 21, 7), "decoder.layers.0.mlp.linear_fc1", "21"),
    (GMM, shaped(M + "feed_forward.routed_experts.ffn.w1", 6, 7, 10), M + "feed_forward.routed_experts.ffn.w1", "of 6"),
    (GMM, shaped(M + "feed_forward.routed_experts.ffn.w2", 7, 6, 7), M + "feed_forward.routed_experts.ffn.w2", "not 6"),
    (GMM, gone("mtp_norms"), "model.mtp_norms.0.weight", "missing"),
    (GMM, extra(L3 + "feed_forward.w1.weight", 11, 7), L3 + "feed_forward.w1.weight", "no dense 3; the model has 1"),
    (CLASSIC, shaped(M + "attention.l2q_pe_proj.weight", 17, 9), M + "attention.l2q_pe_proj.weight", "17"),
    (CLASSIC, shaped(M + "attention.kv2l_k_pe.weight", 4, 7), M + "attention.kv2l_k_pe.weight", "9 rows"),
    (CLASSIC, gone(M + "attention.kv2l_k_pe"), M + "attention.kv2l_k_pe.weight", "missing"),
    (INFER, shaped(M + "attention.l2q_proj.weight", 24, 9), M + "attention.l2q_proj.weight", "8 rows"),
    (INFER, extra(L4 + "attention_norm.weight", 7), L4 + "attention_norm.weight", "no layer 4; the model has 3"),
]


@pytest.mark.parametrize(
    ("options", "change", "name", "number"), WRONG_BACK, ids=[f"{spelled(o)} {n}" for o, _, n, _ in WRONG_BACK]
)
def test_numbers_that_contradict_are_refused_on_the_way_back(options, change, name, number) -> None:
    made = [output.spec for output in plan_of(V3, specs(V3), options).outputs]
    some = change(made)
    assert some != made
    kind = SourceError if number == "missing" else UnsupportedError
    with pytest.raises(kind, match=rf"(?m)^  (.*, )?{re.escape(name)}.*: .*{re.escape(number)}(?!\d)"):
        plan_of(V3, some, options, reverse=True)


def test_the_wrong_way_round_is_said_and_not_what_options_exclude_each_other(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"HuggingFace's names(.|\n)*omit reverse=True"):
        plan_of(V3, specs(V3), {}, reverse=True)
    source = store(tmp_path / "hf", V3, {s.name: np.zeros(s.shape, ml_dtypes.bfloat16) for s in specs(V3)})
    for one in (source, store(tmp_path / "fp8", V3, quantised(V3))):
        with pytest.raises(UsageError, match="omit reverse=True"):
            convert(one, tmp_path / "back", reverse=True)
    with pytest.raises(UsageError, match="goes only with layout=classic, not with layout=mcore"):
        convert(source, tmp_path / "back", reverse=True, options={"layout": "mcore", "use_gmm": True})


@pytest.mark.parametrize("layout", ["infer", "mcore", "pynative", "graph_concat"])
def test_use_gmm_is_a_choice_of_the_classic_layout(tmp_path, layout) -> None:
    source = store(tmp_path / "hf", V3, tensors(V3))
    with pytest.raises(UsageError, match=f"use_gmm goes only with layout=classic, not with layout={layout}"):
        convert(source, tmp_path / "ms", options={"layout": layout, "use_gmm": True})


def test_what_mindformers_adds_is_dropped_on_the_way_back() -> None:
    made = [output.spec for output in plan_of(V3, specs(V3), MCORE).outputs]
    more = [TensorSpec("mtp.output_layer.weight", BF16, (13, 7)), TensorSpec("adam_m.x", F32, (3,))]
    plan = plan_of(V3, [*made, *more], MCORE, reverse=True)
    assert plan.dropped.keys() == {"mtp.output_layer.weight", "adam_m.x"}
    assert sorted(o.name for o in plan.outputs) == sorted(s.name for s in specs(V3))


# What stays float32 ---------------------------------------------------------------------------------------------------

#: What a name in MindSpore has in it where the model keeps the tensor in float32: as MindFormers' converters say.
FLOAT32 = {
    "llama -": r"$^",
    **dict.fromkeys((named(V2, options) for options in LAYOUTS["deepseek_v2"]), r"norm|router\.dense"),
    named(V3, V3_LAYOUTS[0]): r"norm|router\.dense|topk_bias",
    named(V3, V3_LAYOUTS[1]): r"norm|topk_bias",
    named(V3, INFER): r"e_score_correction_bias",
    **dict.fromkeys((named(V3, options) for options in (MCORE, PYNATIVE, CONCAT)), r"expert_bias"),
}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("config", "options"), EVERY, ids=EVERY_ID)
def test_what_stays_float32(tmp_path, config, options, dtype) -> None:
    source = store(tmp_path / "hf", config, tensors(config))
    arguments = {"model": "deepseek", "max_mem": "8G"}
    plan = streamconv.plan(source, tmp_path / "ms", dtype=dtype, options=options, **arguments)
    kinds = {o.name: o.dtype.name for o in plan.mapping.outputs}
    expected = {name for name in kinds if re.search(FLOAT32[named(config, options)], name)}
    assert {name for name, kind in kinds.items() if kind == "F32"} == expected
    assert {kinds[name] for name in kinds.keys() - expected} == {dtype.upper().replace("FP", "F")}
    assert bool(expected) == (config is not CODER)
    lines = [line for line in str(plan).splitlines() if line.startswith("fp32")]
    assert len(lines) == bool(expected)
    for line in lines:
        assert re.match(rf"fp32 +{len(expected)} tensors that the model keeps in float32: ", line)
        assert set(re.sub(".*float32: | and .*", "", line).split(", ")) <= expected


@pytest.mark.parametrize(("config", "options"), EVERY, ids=EVERY_ID)
def test_on_the_way_back_only_the_bias_of_the_router_stays_float32(tmp_path, config, options) -> None:
    made = convert(store(tmp_path / "hf", config, tensors(config)), tmp_path / "ms", model="deepseek", options=options)
    plan = streamconv.plan(made, tmp_path / "back", reverse=True, dtype="fp16", max_mem="8G")
    kept = {o.name for o in plan.mapping.outputs if o.dtype == F32}
    assert kept == {s.name for s in specs(config) if s.name.endswith("e_score_correction_bias")}
    assert {o.dtype for o in plan.mapping.outputs} == ({F32, F16} if config is V3 else {F16})
    assert any(line.startswith("fp32 ") for line in str(plan).splitlines()) == (config is V3)


@pytest.mark.parametrize(("config", "options"), EVERY, ids=EVERY_ID)
def test_where_all_is_float32_or_nothing_is_asked_there_is_no_exception(tmp_path, config, options) -> None:
    source = store(tmp_path / "hf", config, tensors(config))
    for dtype, kinds in (("fp32", {F32}), (None, {BF16, F32} if config is V3 else {BF16})):
        plan = streamconv.plan(source, tmp_path / "ms", model="deepseek", dtype=dtype, options=options, max_mem="8G")
        assert {o.dtype for o in plan.mapping.outputs} == kinds
        assert "\nfp32 " not in str(plan)


# Which family ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "name"), [(CODER, "deepseek"), (V2, "deepseek2"), (V3, "deepseek3")])
def test_model_deepseek_is_the_family_of_the_config(tmp_path, config, name) -> None:
    source = store(tmp_path / "hf", config, tensors(config))
    options = LAYOUTS[config["model_type"]][-1]
    forward = streamconv.plan(source, tmp_path / "ms", model="deepseek", options=options, max_mem="8G")
    assert (forward.family.name, forward.mapping.family) == (name, name)
    forward.run()
    for arguments in ({}, {"model": "deepseek"}, {"model": name}):
        back = streamconv.plan(tmp_path / "ms", tmp_path / "back", reverse=True, max_mem="8G", **arguments)
        assert back.family.name == name
        assert {key: back.mapping.options[key] for key in options} == options


def test_other_models_stay_what_was_asked(tmp_path) -> None:
    source = store(tmp_path / "hf", V3, tensors(V3))
    with pytest.raises(UnsupportedError, match="no rule matches"):
        streamconv.plan(source, tmp_path / "ms", model="llama", max_mem="8G")
    with pytest.raises(UnsupportedError, match="fit"):
        streamconv.plan(source, tmp_path / "ms", model="deepseek2", max_mem="8G")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "deepseek",
            ["deepseek-ai/deepseek-coder-7b-{base,instruct}-v1.5", "attention.wq.weight  [heads*head_dim, hid"],
        ),
        (
            "deepseek2",
            ["model_type deepseek_v2", "mla_weight_split=false|true", "use_gmm=false|true", "l2q_proj.weight"],
        ),
        (
            "deepseek3",
            [
                "model_type deepseek_v3",
                "deepseek-ai/DeepSeek-R1{,-Zero,-0528}",
                "layout=classic|infer|mcore|pynative|graph_concat",
                "mtp=true|false",
                "model.layers.{mtp+layers}.enorm.weight -> model.mtp_hidden_fusers.{mtp}.norm_emb.weight  [hidden]",
                "in reverse a copy of lm_head.weight",
            ],
        ),
    ],
)
def test_models_shows_the_family(capsys, name, parts) -> None:
    shown = call(capsys, "models", name).out
    assert shown.startswith(f"{name}: ")
    assert not [part for part in parts if part not in shown]
    assert name in call(capsys, "models").out.split()
