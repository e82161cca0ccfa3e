"""The cases, and how one is compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import streamconv
from streamconv.families import Value

from . import huggingface as hf
from . import mcore
from . import mindformers as mf
from .tensors import Array, Config, Inputs, Tensors

#: The memory limit covers the whole process, and torch and MindSpore are in this one.
_MEMORY = "8G"

_HEADS: Config = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
_ROPE_3_1: Config = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Wrong:
    """A wrong layout that still loads: other options of the conversion, or a change to its tensors."""

    title: str
    options: Mapping[str, Value] = field(default_factory=dict)
    change: Callable[[Tensors, Config], Tensors] = lambda tensors, config: tensors


@dataclass(frozen=True)
class Case:
    """One model on both sides.

    Attributes:
        family: the family in streamconv.
        title: what the model is.
        source: writes a HuggingFace checkpoint to a path, and returns what its model computes.
        network: makes MindFormers' model of that config.
        wrong: the layout that the comparison must notice.
        options: options of the conversion.
        unused: names that the checkpoint may hold although the network has no such parameters.
        check: checks what the logits cannot show.
    """

    family: str
    title: str
    source: Callable[[Path], hf.Computed]
    network: Callable[[Config, Inputs], mf.Network]
    wrong: Wrong
    options: Mapping[str, Value] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    check: Callable[[Path, Tensors], None] = lambda source, tensors: None


@dataclass(frozen=True)
class Found:
    """The largest differences between logits, right and wrong, and the largest logit."""

    difference: float
    largest: float
    wrong: float


def compare(case: Case, folder: Path) -> Found:
    """Convert, load, compute and compare; then again with the wrong layout."""
    source = folder / "hf"
    computed = case.source(source)
    config: Config = json.loads((source / "config.json").read_text())
    tensors = _converted(case, source, folder / "right.ckpt", case.options)
    case.check(source, tensors)
    others = _converted(case, source, folder / "wrong.ckpt", {**case.options, **case.wrong.options})
    right, wrong = (
        mf.logits(case.network(config, computed.inputs), values, computed.inputs, case.unused)
        for values in (tensors, case.wrong.change(others, config))
    )
    want = computed.logits
    return Found(_apart(right, want), float(np.abs(want).max()), _apart(wrong, want))


def _converted(case: Case, source: Path, dest: Path, options: Mapping[str, Value]) -> Tensors:
    streamconv.convert(source, dest, model=case.family, options=options, max_mem=_MEMORY)
    return mf.load(dest)


def _apart(found: Array, want: Array) -> float:
    return float(np.abs(found.reshape(want.shape) - want).max())


def _interleaved(tensors: Tensors, config: Config) -> Tensors:
    """Lay out q and k for a rotation of neighbours: row i of one half next to row i of the other."""
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    result = dict(tensors)
    for name, values in tensors.items():
        for module, number in zip((".wq.", ".wk."), heads, strict=True):
            if module in name:
                apart = values.reshape(number, 2, -1, *values.shape[1:])
                result[name] = np.ascontiguousarray(apart.swapaxes(1, 2)).reshape(values.shape)
    return result


def _swapped(one: str, other: str) -> Callable[[Tensors, Config], Tensors]:
    """Swap the names of two tensors in every layer."""

    def change(tensors: Tensors, config: Config) -> Tensors:
        names = {name: name.replace(one, other) for name in tensors if one in name}
        both = names | {b: a for a, b in names.items()}
        return {both.get(name, name): values for name, values in tensors.items()}

    return change


def _alternating(tensors: Tensors, config: Config) -> Tensors:
    """Alternate the columns of gate and up, as other layers alternate their rows."""
    result = dict(tensors)
    for name, values in tensors.items():
        if name.endswith("experts.weight1"):
            by_turns = values.reshape(len(values), 2, -1).swapaxes(1, 2)
            result[name] = np.ascontiguousarray(by_turns).reshape(values.shape)
    return result


def _same_biases(source: Path, tensors: Tensors) -> None:
    """Compare biases directly: that of the keys cancels in the softmax, so logits cannot show that it is right."""
    for name, values in hf.tensors(source).items():
        if name.endswith("c_attn.bias"):
            layer = f"backbone.blocks.{name.split('.')[-4]}.attention."
            ours = [tensors[f"{layer}dense{i}.bias"] for i in (1, 2, 3)]
            if not np.array_equal(np.concatenate(ours), values):
                raise ValueError(f"{name} differs from {layer}dense1, 2 and 3")


_PAIRS = Wrong("q and k for a rotation of neighbours", change=_interleaved)
_HAS_GROUPS = mf.VERSION >= (1, 5)
_TRUE, _BLOCKS = {"qkv_concat": True}, {"qkv_concat": "blocks"}
_TIED = ("lm_head.weight",)


def _llama(title: str, **config: object) -> Case:
    return Case("llama", title, hf.decoder("Llama", {**_HEADS, **config}), mf.llama, _PAIRS)


def _qwen2(title: str, **config: object) -> Case:
    return Case("qwen2", title, hf.decoder("Qwen2", {**_HEADS, **config}), mf.llama, _PAIRS)


def _concat(case: Case) -> Case:
    """Put q, k and v in one tensor as the installed MindFormers reads it; wrong is the layout of other versions."""
    right, wrong = (_TRUE, _BLOCKS) if _HAS_GROUPS else (_BLOCKS, _TRUE)
    title = f"qkv_concat={str(wrong['qkv_concat']).lower()}"
    return Case(case.family, case.title, case.source, mf.llama_concat, Wrong(title, wrong), right)


def _chatglm(network: Callable[[Config, Inputs], mf.Network], rearranged: bool, **options: Value) -> Case:
    wrong = Wrong(f"rearrange_rope={str(not rearranged).lower()}", {"rearrange_rope": not rearranged})
    unused = ("transformer.rotary_pos_emb.inv_freq",)
    return Case("glm-n", "ChatGLM3, grouped queries", hf.chatglm, network, wrong, options, unused)


def _tied(case: Case) -> Case:
    return Case(case.family, case.title, case.source, case.network, case.wrong, unused=_TIED)


CASES = {
    "llama": _llama("Llama, every head its own keys", num_key_value_heads=4),
    "llama-gqa": _llama("Llama, grouped queries"),
    "llama-tied": _tied(_llama("Llama, tied head", tie_word_embeddings=True)),
    "llama-3.1-rope": _llama("Llama, frequencies of 3.1", rope_scaling=_ROPE_3_1, max_position_embeddings=128),
    "llama-concat": _concat(_llama("Llama, grouped queries")),
    "qwen2": _qwen2("Qwen2, grouped queries, biases"),
    "qwen2-tied": _tied(_qwen2("Qwen2, tied head", tie_word_embeddings=True)),
    "qwen2-concat": _concat(_qwen2("Qwen2, grouped queries, biases")),
    # Experts as wide as the model, so that the transposed layout has the same shapes, and loads.
    "mixtral": Case(
        "mixtral",
        "Mixtral, 4 experts, 2 per token",
        hf.decoder("Mixtral", {**_HEADS, "intermediate_size": 64, "num_local_experts": 4}),
        mf.mixtral,
        Wrong("use_gmm=true", {"use_gmm": True}),
    ),
    "chatglm": _chatglm(mf.chatglm, rearranged=False),
    "smollm2": Case("llama", "SmolLM2-135M, real weights", hf.smollm2, mf.llama, _PAIRS, unused=_TIED),
}
_SWAPPED = _swapped("dense1.", "dense2.")
_UNTIL_1_3 = {
    "gpt2": Case(
        "gpt",
        "GPT-2",
        hf.gpt2,
        mf.gpt2,
        Wrong("q and k swapped", change=_SWAPPED),
        check=_same_biases,
    ),
    "bloom": Case(
        "bloom",
        "BLOOM",
        hf.bloom,
        mf.bloom,
        Wrong("q and k swapped", change=_SWAPPED),
    ),
    "whisper": Case(
        "whisper",
        "Whisper, encoder and decoder",
        hf.whisper,
        mf.whisper,
        Wrong("q and k swapped", change=_swapped("q_proj.weight", "k_proj.weight")),
        unused=("proj_out.weight",),
    ),
}
_SINCE_1_5 = {
    "chatglm-apart": _chatglm(mf.chatglm_apart, rearranged=False, qkv_concat=False, mlp_concat=False),
    "chatglm-rearranged": _chatglm(mf.chatglm_rearranged, rearranged=True, rearrange_rope=True),
}
_LATENT: Config = {
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "hidden_size": 64,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
}
_EXPERTS: Config = {**_HEADS, "head_dim": 24, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_BY_TURNS = Wrong("gate and up of experts by turns", change=_alternating)
_SEPARATE = Wrong("interleave_mlp=false", {"interleave_mlp": False})
_SINCE_1_7 = {
    "qwen3": Case(
        "qwen3",
        "Qwen3, grouped queries",
        hf.decoder("Qwen3", {**_HEADS, "head_dim": 24}),
        mcore.qwen3,
        _SEPARATE,
    ),
    "qwen3-tied": Case(
        "qwen3",
        "Qwen3, tied head",
        hf.decoder("Qwen3", {**_HEADS, "head_dim": 24, "tie_word_embeddings": True}),
        mcore.qwen3,
        _SEPARATE,
    ),
    "qwen3-moe": Case(
        "qwen3_moe",
        "Qwen3-MoE, 8 experts, 2 per token",
        hf.decoder("Qwen3Moe", {**_EXPERTS, "norm_topk_prob": True}),
        mcore.qwen3_moe,
        _BY_TURNS,
    ),
    "deepseek3": Case(
        "deepseek3",
        "DeepSeek-V3, 8 experts in 4 groups",
        hf.decoder("DeepseekV3", _LATENT),
        mcore.deepseek3,
        _BY_TURNS,
        {"layout": "mcore", "mtp": False},
    ),
}
CASES |= _SINCE_1_5 if _HAS_GROUPS else _UNTIL_1_3
CASES |= _SINCE_1_7 if mf.VERSION >= (1, 7) else {}
