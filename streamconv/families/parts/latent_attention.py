"""Rules shared by DeepSeek's V2 and V3: sizes, latent attention and experts, under MindFormers' classic names.

A layer is named by its prefix, the same on both sides. `DENSE` and `MOE` are the layers with one feed-forward network
and with experts, `MTP` those that predict further tokens, stored after all others.
"""

from __future__ import annotations

from ...rules.family import Config, Option
from ...rules.interleaving import Deinterleave, Interleave
from ...rules.statements import Copy, Rule, Side, Statement
from ...rules.transforms import Identity, PerTensor, Transform
from .decoder import DECODER_SIZES
from .rotary import even_then_odd

DENSE, MOE, MTP = "model.layers.{dense}.", "model.layers.{moe}.", "model.layers.{mtp+layers}."

#: Router biases stay in float32 on both sides: rounded ones would choose other experts.
BOTH = tuple(Side)

SIZES = {
    **DECODER_SIZES,
    "q_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank",
    "nope": "qk_nope_head_dim",
    "rope": "qk_rope_head_dim",
    "value": "v_head_dim",
    "experts": "n_routed_experts",
    "shared": "n_shared_experts",
    "expert_ffn": "moe_intermediate_size",
    "dense": "first_k_dense_replace | =0",
    "mtp": "num_nextn_predict_layers",
}

RANGES = {
    "layer": "layers",
    "dense": "dense",
    "moe": "dense..layers",
    "mtp": "mtp",
    "expert": "experts",
}

KEEP_MTP = Option(
    "mtp",
    (True, False),
    "keep the layers for multi-token prediction (as many as config.json says), or drop them",
    is_preference=True,
    config_updates={False: {"num_nextn_predict_layers": 0}},
)

WHOLE, REORDERED, SPLIT = "whole", "reordered", "split"

_Q, _KV, _KV_UP = "heads*(nope+rope), q_rank", "kv_rank+rope, hidden", "heads*(nope+value), kv_rank"
_PER_HEAD = Deinterleave(Interleave(("nope", "rope"), "heads"))
_LATENT = Deinterleave(Interleave(("kv_rank", "rope")))


def has_q_lora(config: Config) -> bool:
    """Return whether q has a down- and an up-projection, as in all but the Lite models."""
    return config.get("q_lora_rank") is not None


def latent_attention(layer: str, config: Config, form: str, fp32: tuple[Side, ...]) -> list[Statement]:
    """Return the rules of latent attention; `form` is that of the up-projections of q, k and v.

    `WHOLE`: as HuggingFace has them. `SPLIT`: rotary rows apart and even ones first, keys and values apart.
    `REORDERED`: rotary rows in their place, even ones first, keys and values apart.
    """
    return [
        *_queries(layer, config, form, fp32),
        *_keys_and_values(layer, form),
        Rule(layer + "self_attn.kv_a_layernorm.weight", layer + "attention.lkv_norm.weight", "kv_rank", fp32=fp32),
        Rule(layer + "self_attn.o_proj.weight", layer + "attention.wo.weight", "hidden, heads*value"),
    ]


def _queries(layer: str, config: Config, form: str, fp32: tuple[Side, ...]) -> list[Statement]:
    hf, ms = layer + "self_attn.", layer + "attention."
    if not has_q_lora(config):
        return [Rule(hf + "q_proj.weight", ms + "q_proj.weight", "heads*(nope+rope), hidden")]
    forms: dict[str, tuple[str | tuple[str, ...], Transform]] = {
        WHOLE: (ms + "l2q_proj.weight", Identity()),
        REORDERED: (ms + "l2q_proj.weight", _reordered(_PER_HEAD, "heads")),
        SPLIT: ((ms + "l2q_nope_proj.weight", ms + "l2q_pe_proj.weight"), _split(_PER_HEAD, "heads")),
    }
    names, up = forms[form]
    return [
        Rule(hf + "q_a_proj.weight", ms + "q2l_proj.weight", "q_rank, hidden"),
        Rule(hf + "q_a_layernorm.weight", ms + "lq_norm.weight", "q_rank", fp32=fp32),
        Rule(hf + "q_b_proj.weight", names, _Q, up),
    ]


def _keys_and_values(layer: str, form: str) -> list[Statement]:
    hf, ms = layer + "self_attn.", layer + "attention."
    down, up = hf + "kv_a_proj_with_mqa.weight", hf + "kv_b_proj.weight"
    if form == WHOLE:
        return [Rule(down, ms + "kv2l.weight", _KV), Rule(up, ms + "lkv2kv.weight", _KV_UP)]
    latent: Statement = Rule(down, ms + "kv2l.weight", _KV, _reordered(_LATENT, "1"))
    if form == SPLIT:
        latent = Rule(down, (ms + "kv2l_latent_kv.weight", ms + "kv2l_k_pe.weight"), _KV, _split(_LATENT, "1"))
    names = ms + "lkv2kv_k_nope.weight", ms + "lkv2kv_v.weight"
    return [latent, Rule(up, names, _KV_UP, Deinterleave(Interleave(("nope", "value"), "heads")))]


def _split(part: Deinterleave, heads: str) -> Transform:
    return part >> PerTensor((Identity(), even_then_odd(heads, "rope//2")))


def _reordered(part: Deinterleave, heads: str) -> Transform:
    return _split(part, heads) >> part.inverse


def feed_forward(layer: str, hf: str, ms: str, ffn: str) -> list[Statement]:
    """Return the rules of a gated feed-forward network: gate, down and up are w1, w2 and w3."""
    return [
        Rule(f"{layer}{hf}.{name}.weight", f"{layer}{ms}.{w}.weight", shape) for name, w, shape in _gate_down_up(ffn)
    ]


def dense_layers() -> list[Statement]:
    """Return the rules of the feed-forward networks in layers without experts."""
    return feed_forward(DENSE, "mlp", "feed_forward", "ffn")


def shared_experts(layer: str) -> list[Statement]:
    """Return the rules of the shared experts: one network of `shared` times the width."""
    return feed_forward(layer, "mlp.shared_experts", "feed_forward.shared_experts", "shared*expert_ffn")


def stacked_experts(layer: str, transform: Transform) -> list[Statement]:
    """Return the rules of the routed experts: one stack for each of w1, w2 and w3."""
    hf, ms = layer + "mlp.experts.{expert}.", layer + "feed_forward.routed_experts.ffn."
    return [
        Rule(f"{hf}{name}.weight", f"{ms}{w}.weight", shape, transform)
        for name, w, shape in _gate_down_up("expert_ffn")
    ]


def router_bias(layer: str, ms: str) -> Statement:
    """Return the rule of the bias that balances V3's experts."""
    return Rule(layer + "mlp.gate.e_score_correction_bias", ms, "experts", fp32=BOTH)


def mtp_copies() -> list[Statement]:
    """Return what V3's further layers hold once more, and MindFormers does not."""
    why = "MindFormers' MTP layers share the main model's"
    return [
        Copy(MTP + "embed_tokens.weight", "model.embed_tokens.weight", why),
        Copy(MTP + "shared_head.head.weight", "lm_head.weight", why),
    ]


def _gate_down_up(ffn: str) -> tuple[tuple[str, str, str], ...]:
    wide, narrow = f"{ffn}, hidden", f"hidden, {ffn}"
    return ("gate_proj", "w1", wide), ("down_proj", "w2", narrow), ("up_proj", "w3", wide)
