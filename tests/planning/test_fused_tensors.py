"""Experts as transformers 5 fuses them: the same result, byte for byte, as from separate ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import streamconv
from streamconv import testing as samples
from streamconv.errors import UnsupportedError
from streamconv.families import find
from streamconv.formats import safetensors
from streamconv.rules.fused import Fused
from streamconv.tensors.dtypes import F8_E4M3, F32
from streamconv.tensors.extents import Extent, SourceFile
from streamconv.tensors.refs import TensorRef, TensorSpec
from support import golden
from support.helpers import LLAMA, choices

EXPERTS, FFN = 3, 6
MOE: dict[str, Any] = {
    **LLAMA,
    **{"num_experts": EXPERTS, "num_local_experts": EXPERTS, "torch_dtype": "float32"},
    **{"intermediate_size": FFN, "moe_intermediate_size": FFN, "shared_expert_intermediate_size": FFN},
    **{"n_routed_experts": EXPERTS, "n_shared_experts": 1, "q_lora_rank": 6, "kv_lora_rank": 4},
    **{"qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4},
}
_QWEN = ("mlp.experts.", ("gate_proj", "up_proj", "down_proj"))
#: Family -> where its separate experts are, and what they are called.
KINDS = {
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "deepseek2", "deepseek3"), _QWEN),
    "mixtral": ("block_sparse_moe.experts.", ("w1", "w3", "w2")),
}
Tensors = dict[str, NDArray[Any]]


def config(name: str, **more: Any) -> dict[str, Any]:
    return {**MOE, "model_type": find(name).model_types[0], **more}


def separate(name: str, **sizes: int) -> Tensors:
    rng = np.random.default_rng(3)
    specs = samples.hf_specs(find(name), config(name, **sizes), {})
    return {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in specs}


def fused(name: str, tensors: Tensors) -> Tensors:
    """The same model as transformers 5 holds it."""
    place, (gate, up, down) = KINDS[name]
    kept = {n.replace("block_sparse_moe.gate", "mlp.gate"): a for n, a in tensors.items() if ".experts." not in n}
    for layer in range(MOE["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        each = [[tensors[f"{at}{place}{e}.{w}.weight"] for e in range(EXPERTS)] for w in (gate, up, down)]
        kept[at + "mlp.experts.gate_up_proj"] = np.stack([np.concatenate(pair) for pair in zip(*each[:2], strict=True)])
        kept[at + "mlp.experts.down_proj"] = np.stack(each[2])
    return kept


def swapped(tensors: Tensors) -> Tensors:
    """Rows and columns of fused experts in each other's place, as Qwen3-VL-MoE has them."""
    return {n: a.transpose(0, 2, 1) if ".mlp.experts." in n else a for n, a in tensors.items()}


def store(folder: Path, name: str, tensors: Tensors, **more: object) -> Path:
    folder.mkdir()
    specs = [TensorSpec(n, F8_E4M3 if a.itemsize == 1 else F32, a.shape) for n, a in tensors.items()]
    data = {n: np.ascontiguousarray(a).tobytes() for n, a in tensors.items()}
    golden.write(folder / "model.safetensors", safetensors.lay_out("model.safetensors", specs, {}), data)
    (folder / "config.json").write_text(json.dumps(config(name, **more)))
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_fused_and_separate_experts_give_the_same_bytes(tmp_path, name) -> None:
    tensors = separate(name)
    together = store(tmp_path / "fused", name, fused(name, tensors))
    plan = streamconv.plan(together, tmp_path / "a", max_mem="8G")
    assert "note     experts are read from 4 fused tensors, such as model.layers.0.mlp.experts.gate_up_proj" in str(
        plan
    )
    plan.run()
    streamconv.convert(store(tmp_path / "separate", name, tensors), tmp_path / "b", max_mem="8G")
    assert golden.found(tmp_path / "a") == golden.found(tmp_path / "b")
    streamconv.verify(tmp_path / "a", source=together, max_mem="8G")


@pytest.mark.parametrize("dtype", [None, "bf16"])
@pytest.mark.parametrize("sizes", [(20, 6), (12, 6), (6, 6), (1, 6), (6, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_rows_and_columns_in_each_other_s_place_give_the_same_bytes(tmp_path, name, sizes, dtype) -> None:
    """Also where one of the two tensors is square, and its shape alone does not tell."""
    keys = ("hidden_size", "intermediate_size", "moe_intermediate_size")
    these = dict(zip(keys, (sizes[0], sizes[1], sizes[1]), strict=True)) | {"head_dim": 4}
    tensors = separate(name, **these)
    source = store(tmp_path / "swapped", name, swapped(fused(name, tensors)), **these)
    streamconv.convert(source, tmp_path / "a", max_mem="8G", dtype=dtype)
    streamconv.convert(store(tmp_path / "separate", name, tensors, **these), tmp_path / "b", max_mem="8G", dtype=dtype)
    assert golden.found(tmp_path / "a") == golden.found(tmp_path / "b")
    streamconv.verify(tmp_path / "a", source=source, max_mem="8G")


WAYS = [(name, options) for name in KINDS for options in choices(find(name)) if options.get("mtp", True)]


@pytest.mark.parametrize(("name", "options"), WAYS, ids=str)
def test_fused_experts_come_back_fused(tmp_path, name, options) -> None:
    source = store(tmp_path / "hf", name, fused(name, separate(name)))
    streamconv.convert(source, tmp_path / "ms", max_mem="8G", options=options)
    asked = {"max_mem": "8G", "reverse": True, "options": {"experts": "fused"}}
    report = streamconv.convert(tmp_path / "ms", tmp_path / "back", **asked)
    assert golden.found(tmp_path / "back") == golden.found(source)
    streamconv.verify(tmp_path / "back", source=tmp_path / "ms", max_mem="8G")
    assert all(len(set(output.sources)) == len(output.sources) for output in report.prepared.mapping.outputs)


def test_what_was_asked_on_the_way_there_counts_on_the_way_back(tmp_path) -> None:
    """There it changes nothing; the manifest keeps it."""
    source = store(tmp_path / "hf", "mixtral", separate("mixtral"))
    for experts in ("separate", "fused"):
        there = tmp_path / experts
        streamconv.convert(source, there, max_mem="8G", options={"experts": experts})
        streamconv.convert(there, tmp_path / f"{experts}-hf", max_mem="8G", reverse=True)
    assert golden.found(tmp_path / "separate") == golden.found(tmp_path / "fused")
    assert golden.found(tmp_path / "separate-hf") == golden.found(source)
    expected = golden.found(store(tmp_path / "other", "mixtral", fused("mixtral", separate("mixtral"))))
    assert golden.found(tmp_path / "fused-hf") == expected


def test_a_router_of_another_name_alone_is_noted(tmp_path) -> None:
    tensors = {n.replace("block_sparse_moe.gate", "mlp.gate"): a for n, a in separate("mixtral").items()}
    plan = streamconv.plan(store(tmp_path / "hf", "mixtral", tensors), tmp_path / "a", max_mem="8G")
    assert plan.notes == ("2 tensors have the names of transformers 5, such as model.layers.0.mlp.gate.weight",)


def test_fused_experts_in_a_wrapper(tmp_path) -> None:
    tensors = {f"module.{name}": array for name, array in fused("mixtral", separate("mixtral")).items()}
    plan = streamconv.plan(store(tmp_path / "fused", "mixtral", tensors), tmp_path / "a", max_mem="8G")
    assert len(plan.notes) == 2


def test_a_model_without_fused_tensors_has_no_note(tmp_path) -> None:
    source = store(tmp_path / "hf", "mixtral", separate("mixtral"))
    assert streamconv.plan(source, tmp_path / "a", max_mem="8G").notes == ()


def test_fused_and_separate_at_once_is_refused(tmp_path) -> None:
    """Which of the two is meant?"""
    tensors = separate("qwen3_moe")
    with pytest.raises(UnsupportedError, match="is in the source twice"):
        streamconv.plan(
            store(tmp_path / "hf", "qwen3_moe", {**tensors, **fused("qwen3_moe", tensors)}),
            tmp_path / "a",
            max_mem="8G",
        )


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_fused_experts_in_fp8_are_the_same_as_dequantised_ones(family, tmp_path) -> None:
    """The rows of `up` begin within a block of scales."""
    rng = np.random.default_rng(3)
    codes, values = fused(family, separate(family)), fused(family, separate(family))
    for name in [name for name, array in codes.items() if array.ndim == 3]:
        shape = codes[name].shape
        drawn = rng.integers(0, 0x7F, shape, np.uint8).view(ml_dtypes.float8_e4m3fn)
        scale = np.exp2(rng.integers(-9, 0, (shape[0], -(-shape[1] // 8), 1))).astype(np.float32)
        codes[name], codes[name + "_scale_inv"] = drawn, scale
        values[name] = drawn.astype(np.float32) * np.repeat(scale, 8, axis=1)[:, : shape[1]]
    entry = {"quant_method": "fp8", "weight_block_size": [8, 4096]}
    streamconv.convert(
        store(tmp_path / "codes", family, codes, quantization_config=entry), tmp_path / "a", dtype="bf16", max_mem="8G"
    )
    streamconv.convert(store(tmp_path / "values", family, values), tmp_path / "b", dtype="bf16", max_mem="8G")
    assert golden.found(tmp_path / "a") == golden.found(tmp_path / "b")


def test_an_unknown_model_with_fused_experts_is_told_its_family(tmp_path) -> None:
    source = store(tmp_path / "hf", "qwen3_moe", fused("qwen3_moe", separate("qwen3_moe")))
    (source / "config.json").write_text(json.dumps({**MOE, "model_type": "strange"}))
    with pytest.raises(UnsupportedError, match=r"names of its tensors are those of .*qwen3_moe"):
        streamconv.plan(source, tmp_path / "a", max_mem="8G")


def test_gate_and_up_of_odd_rows_are_not_cut(tmp_path) -> None:
    tensors = fused("qwen3_moe", separate("qwen3_moe"))
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = np.zeros((EXPERTS, 2 * FFN + 1, 20), np.float32)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.mlp\.experts\.gate_up_proj: no rule matches"):
        streamconv.plan(store(tmp_path / "hf", "qwen3_moe", tensors), tmp_path / "a", max_mem="8G")


@pytest.mark.parametrize("shape", [(1 << 40, 0, 20), (1 << 40, 12, 0), (0, 12, 20)])
def test_a_tensor_without_elements_is_not_cut(shape) -> None:
    """However many experts its shape says it has."""
    assert Fused("x", ("{e}.gate", "{e}.up")).cut(TensorRef("x", F32, shape, ())) is None


def test_a_part_lies_where_it_did_across_extents() -> None:
    """As in a .ckpt, where a tensor may be stored in slices."""
    one, other = SourceFile(Path("a"), 100), SourceFile(Path("b"), 100)
    ref = TensorRef("x.gate_up_proj", F32, (2, 2, 1), (Extent(one, 8, 6), Extent(other, 4, 10)))
    parts = list(Fused("x.gate_up_proj", ("x.{e}.gate", "x.{e}.up")).cut(ref) or [])
    assert [part.name for part in parts] == ["x.0.gate", "x.0.up", "x.1.gate", "x.1.up"]
    assert [part.shape for part in parts] == [(1, 1)] * 4
    assert [part.extents for part in parts] == [
        (Extent(one, 8, 4),),
        (Extent(one, 12, 2), Extent(other, 4, 2)),
        (Extent(other, 6, 4),),
        (Extent(other, 10, 4),),
    ]
