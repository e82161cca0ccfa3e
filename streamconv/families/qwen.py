"""Qwen v1: `c_attn` is q, k and v concatenated; `w1` is the gate's partner, so w2 and w3 change names."""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.statements import Drop, Rule, Statement
from .parts.decoder import DECODER_SIZES

_HF, _MS = "transformer.h.{layer}.", "transformer.layers.{layer}."

SIZES = {
    **DECODER_SIZES,
    "twice_ffn": "intermediate_size",
    "ffn": "ffn_hidden_size | =twice_ffn//2",  # MindFormers' YAML says the width itself
    "head_dim": "kv_channels | =hidden//heads",
}


def rules(config: Config, options: Options) -> list[Statement]:
    """Map embedding, layers with c_attn split into q, k and v, and the head."""
    wte, head = "transformer.wte.", "lm_head.weight"
    return [
        Rule(wte + "weight", wte + "embedding_weight", "vocab, hidden"),
        *layer(_HF, _MS),
        Drop("computed from the config", hf=(_HF + "attn.rotary_emb.inv_freq", "transformer.rotary_emb.inv_freq")),
        Rule("transformer.ln_f.weight", "transformer.ln_f.weight", "hidden"),
        Rule(head, head, "vocab, hidden"),
    ]


def layer(hf: str, ms: str, concat: bool = False) -> list[Statement]:
    """Return the rules of a layer under these prefixes; with `concat`, q, k and v stay fused."""
    parts = ("w",) if concat else ("wq", "wk", "wv")
    shapes = {"weight": "3*heads*head_dim, hidden", "bias": "3*heads*head_dim"}
    return [
        Rule(hf + "ln_1.weight", ms + "attention_norm.weight", "hidden"),
        *(
            Rule(
                f"{hf}attn.c_attn.{kind}",
                tuple(f"{ms}attention.{part}.{kind}" for part in parts),
                shape,
                Deinterleave(Interleave(("1",) * len(parts))),
            )
            for kind, shape in shapes.items()
        ),
        Rule(hf + "attn.c_proj.weight", ms + "attention.wo.weight", "hidden, heads*head_dim"),
        Rule(hf + "ln_2.weight", ms + "ffn_norm.weight", "hidden"),
        Rule(hf + "mlp.w1.weight", ms + "feed_forward.w1.weight", "ffn, hidden"),
        Rule(hf + "mlp.w2.weight", ms + "feed_forward.w3.weight", "ffn, hidden"),
        Rule(hf + "mlp.c_proj.weight", ms + "feed_forward.w2.weight", "hidden, ffn"),
    ]


FAMILY = Family(
    name="qwen",
    title="Qwen (v1); with the config of a Qwen1.5, 2, 2.5 or 3, that family",
    repositories=("Qwen/Qwen-{7B,14B}{,-Chat}",),
    model_types=("qwen",),
    architectures=("QWenLMHeadModel",),
    sizes=SIZES,
    rules=rules,
    successors={"qwen2": "qwen2", "qwen2_moe": "qwen2_moe", "qwen3": "qwen3", "qwen3_moe": "qwen3_moe"},
    differs_from_mindformers=(
        "in reverse, weights are joined to c_attn as biases are; MindFormers leaves wq, wk and wv in the file",
    ),
)
