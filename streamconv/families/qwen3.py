"""Qwen3, dense, under the MCore names of MindFormers 1.6 and later.

q, k and v are fused per KV group; gate and up alternate row by row (MindFormers' use_interleaved_weight_layout_mlp), or
are concatenated.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Interleave
from ..rules.statements import TIED, Copy, Rule, Statement
from .parts.decoder import DECODER_SIZES, INTERLEAVE_MLP, LAYER, gate_and_up, head, rotary_buffers

MS = "decoder.layers.{layer}."
_EMBEDDING, _HEAD, _HEAD_MS = "model.embed_tokens.weight", "lm_head.weight", "output_layer.weight"


def rules(config: Config, options: Options) -> list[Statement]:
    """Map a dense model to MCore names, q, k, v and gate, up fused."""
    gate_up = gate_and_up(by_turns=options["interleave_mlp"] is True)
    names = tuple(LAYER + f"mlp.{p}_proj.weight" for p in ("gate", "up"))
    return [
        Rule(_EMBEDDING, "embedding.word_embeddings.weight", "vocab, hidden"),
        *attention(options),
        Rule(names, MS + "mlp.linear_fc1.weight", "ffn, hidden", gate_up),
        Rule(LAYER + "mlp.down_proj.weight", MS + "mlp.linear_fc2.weight", "hidden, ffn"),
        *ends(config),
    ]


def attention(options: Options) -> list[Statement]:
    """Return the rules of attention and of a layer's norms."""
    hf, ms = LAYER + "self_attn.", MS + "self_attention."
    qkv = Interleave(("heads", "kv", "kv"), groups="1" if options["contiguous_qkv"] else "kv")
    weights, biases = (tuple(f"{hf}{p}_proj.{kind}" for p in "qkv") for kind in ("weight", "bias"))
    rows, fused = ("heads*head_dim", "kv*head_dim", "kv*head_dim"), "(heads+2*kv)*head_dim"
    shapes = tuple(f"{r}, hidden" for r in rows)
    return [
        Rule(LAYER + "input_layernorm.weight", MS + "input_layernorm.weight", "hidden"),
        Rule(weights, ms + "linear_qkv.weight", shapes, qkv, ms_shape=fused + ", hidden"),
        Rule(biases, ms + "linear_qkv.bias", rows, qkv, optional=True, ms_shape=fused),
        Rule(hf + "q_norm.weight", ms + "q_layernorm.weight", "head_dim"),
        Rule(hf + "k_norm.weight", ms + "k_layernorm.weight", "head_dim"),
        Rule(hf + "o_proj.weight", ms + "linear_proj.weight", "hidden, heads*head_dim"),
        Rule(LAYER + "post_attention_layernorm.weight", MS + "pre_mlp_layernorm.weight", "hidden"),
        rotary_buffers(),
    ]


def ends(config: Config) -> list[Statement]:
    """Return the rules of last norm and head; if no config says whether it is tied, HF gets a copy of the embedding."""
    heads: list[Statement] = [head(config, _HEAD, _HEAD_MS, _EMBEDDING, stored_twice=False)]
    if config.get(TIED) is None:
        heads = [
            Rule(_HEAD, _HEAD_MS, "vocab, hidden", optional=True),
            Copy(_HEAD, _EMBEDDING, "tied to the embedding"),
        ]
    return [Rule("model.norm.weight", "decoder.final_layernorm.weight", "hidden"), *heads]


# head_dim is not hidden/heads: if config.json lacks it, it is learned from the norms of q and k.
SIZES = {**DECODER_SIZES, "head_dim": "head_dim"}

CONTIGUOUS_QKV = Option(
    "contiguous_qkv",
    (False, True),
    "false: q, k, v per KV group; true: all q, then k, then v (MindFormers' use_contiguous_weight_layout_attention)",
    yaml_key="use_contiguous_weight_layout_attention",
)


FAMILY = Family(
    name="qwen3",
    title="Qwen3, dense",
    repositories=("Qwen/Qwen3-{0.6B,1.7B,4B,8B,14B,32B}{,-Base}",),
    model_types=("qwen3",),
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    sizes=SIZES,
    options=(INTERLEAVE_MLP, CONTIGUOUS_QKV),
    rules=rules,
    differs_from_mindformers=(
        "biases of q, k and v are fused too; MindFormers 2.1 cannot do that with KV groups",
        "contiguous_qkv in both directions; MindFormers 2.1 silently loads KV groups into such a model",
    ),
)
