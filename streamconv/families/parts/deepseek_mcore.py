"""Rules of DeepSeek-V3 under MCore names, in the three forms that MindFormers' networks have.

The graph network holds the parts of latent attention one by one (`GRAPH`) or, with `mla_qkv_concat`, their
down-projections in one tensor (`GRAPH_CONCAT`); its experts have two dimensions. The pynative network (`PYNATIVE`) has
the joined attention, experts of three dimensions, and the bias of the router outside of it. No rotary row moves.
"""

from __future__ import annotations

from typing import NamedTuple

from ...rules.family import Config
from ...rules.interleaving import Interleave
from ...rules.statements import Drop, Rule, Statement
from ...rules.transforms import Flatten, Identity, Transform
from . import latent_attention as latent
from .decoder import LAYER, gate_and_up, head
from .experts import joined_experts
from .latent_attention import DENSE, MOE, MTP


class Form(NamedTuple):
    """What tells one network's tensors from another's: attention, experts, and the name of the router's bias."""

    joins_attention: bool
    experts: Transform
    bias: str


_MTP_MS = "mtp.layers.{mtp}."
MTP_LAYER = _MTP_MS + "transformer_layer."

_FLAT = Flatten(0, "experts")
GRAPH = Form(False, _FLAT, "mlp.router.expert_bias")
GRAPH_CONCAT = Form(True, _FLAT, "mlp.router.expert_bias")
PYNATIVE = Form(True, Identity(), "mlp.expert_bias")


def rules(config: Config, form: Form, mtp: bool, by_turns: bool) -> list[Statement]:
    """Return the rules of the whole model.

    Args:
        config: the model's config.
        form: the network that reads it.
        mtp: with the layers that predict further tokens.
        by_turns: the rows of gate and up alternate, but for the routed experts'.
    """
    embedding, gate_up = "model.embed_tokens.weight", gate_and_up(by_turns)
    return [
        Rule(embedding, "embedding.word_embeddings.weight", "vocab, hidden"),
        *_layer(LAYER, "decoder.layers.{layer}.", config, form),
        *mlp(DENSE + "mlp.", "decoder.layers.{dense}.mlp.", "ffn", gate_up),
        *experts(MOE, "decoder.layers.{moe}.", form, gate_up),
        Rule("model.norm.weight", "decoder.final_layernorm.weight", "hidden"),
        head(config, "lm_head.weight", "output_layer.weight", embedding),
        *(_further(config, form, gate_up) if mtp else []),
    ]


def _further(config: Config, form: Form, gate_up: Interleave) -> list[Statement]:
    return [*_layer(MTP, MTP_LAYER, config, form), *experts(MTP, MTP_LAYER, form, gate_up), *mtp_ends()]


def mtp_ends() -> list[Statement]:
    """Return the rules of what a layer that predicts further tokens has besides a decoder's layer."""
    return [
        Rule(MTP + "enorm.weight", _MTP_MS + "enorm.weight", "hidden"),
        Rule(MTP + "hnorm.weight", _MTP_MS + "hnorm.weight", "hidden"),
        Rule(MTP + "eh_proj.weight", _MTP_MS + "eh_proj.weight", "hidden, 2*hidden"),
        Rule(MTP + "shared_head.norm.weight", _MTP_MS + "final_layernorm.weight", "hidden"),
        *latent.mtp_copies(),
        Drop("MindFormers' second copy of the output layer", ms=("mtp.output_layer.weight",)),
    ]


def _layer(hf: str, ms: str, config: Config, form: Form) -> list[Statement]:
    attention = _joined_attention if form.joins_attention else _attention
    table = (
        ("input_layernorm", "input_layernorm", "hidden"),
        ("post_attention_layernorm", "pre_mlp_layernorm", "hidden"),
        ("self_attn.o_proj", "self_attention.linear_proj", "hidden, heads*value"),
    )
    return [
        *_renamed(hf, ms, table),
        *attention(hf + "self_attn.", ms + "self_attention.", latent.has_q_lora(config)),
    ]


_Table = tuple[tuple[str, str, str], ...]
_Q, _Q_UP, _KV = "heads*(nope+rope)", "heads*(nope+rope), q_rank", "kv_rank+rope"
_KV_UP = "heads*(nope+value), kv_rank"


def _renamed(hf: str, ms: str, table: _Table) -> list[Statement]:
    return [Rule(f"{hf}{name}.weight", f"{ms}{theirs}.weight", shape) for name, theirs, shape in table]


def _attention(hf: str, ms: str, has_q_lora: bool) -> list[Statement]:
    table: _Table = (
        ("kv_a_proj_with_mqa", "linear_kv_down_proj", f"{_KV}, hidden"),
        ("kv_a_layernorm", "kv_layernorm", "kv_rank"),
        ("kv_b_proj", "linear_kv_up_proj", _KV_UP),
    )
    with_lora: _Table = (
        ("q_a_proj", "linear_q_down_proj", "q_rank, hidden"),
        ("q_a_layernorm", "q_layernorm", "q_rank"),
        ("q_b_proj", "linear_q_up_proj", _Q_UP),
    )
    without: _Table = (("q_proj", "linear_q_proj", f"{_Q}, hidden"),)
    return _renamed(hf, ms, (*table, *(with_lora if has_q_lora else without)))


def _joined_attention(hf: str, ms: str, has_q_lora: bool) -> list[Statement]:
    """Return the rules of attention where all that reads the hidden state is one tensor: q first, then keys and values.

    Its first rows are those of q's down-projection or, without q-LoRA, of q itself.
    """
    first, rows = ("q_a_proj", "q_rank") if has_q_lora else ("q_proj", _Q)
    down = Rule(
        (f"{hf}{first}.weight", f"{hf}kv_a_proj_with_mqa.weight"),
        ms + "linear_qkv.weight",
        (f"{rows}, hidden", f"{_KV}, hidden"),
        Interleave((rows, _KV)),
        ms_shape=f"{rows}+{_KV}, hidden",
    )
    table: _Table = (("kv_a_layernorm", "k_layernorm", "kv_rank"), ("kv_b_proj", "linear_kvb", _KV_UP))
    with_lora: _Table = (("q_a_layernorm", "q_layernorm", "q_rank"), ("q_b_proj", "linear_qb", _Q_UP))
    return [down, *_renamed(hf, ms, (*table, *(with_lora if has_q_lora else ())))]


def mlp(hf: str, ms: str, ffn: str, gate_up: Interleave) -> list[Statement]:
    """Return the rules of a gated feed-forward network, gate and up joined."""
    pair = hf + "gate_proj.weight", hf + "up_proj.weight"
    return [
        Rule(pair, ms + "linear_fc1.weight", f"{ffn}, hidden", gate_up),
        Rule(hf + "down_proj.weight", ms + "linear_fc2.weight", f"hidden, {ffn}"),
    ]


def experts(hf: str, ms: str, form: Form, gate_up: Interleave) -> list[Statement]:
    """Return the rules of a layer's router, shared experts and routed experts."""
    return [
        Rule(hf + "mlp.gate.weight", ms + "mlp.router.weight", "experts, hidden"),
        latent.router_bias(hf, ms + form.bias),
        *mlp(hf + "mlp.shared_experts.", ms + "mlp.shared_experts.", "shared*expert_ffn", gate_up),
        *joined_experts(hf + "mlp.experts.{expert}.", ms + "mlp.experts.", form.experts),
    ]
