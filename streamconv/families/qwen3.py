"""Qwen3, dense, under the MCore names of MindFormers 1.6 and later.

q, k and v are fused per KV group; gate and up alternate row by row (MindFormers' use_interleaved_weight_layout_mlp), or
are concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Interleave
from ..rules.statements import TIED, Copy, Rule, Statement
from .parts.decoder import DECODER_SIZES, INTERLEAVE_MLP, LAYER, gate_and_up, head, rotary_buffers

MS = "decoder.layers.{layer}."
EMBEDDING_MS = "embedding.word_embeddings.weight"
_EMBEDDING, _HEAD, _HEAD_MS = "model.embed_tokens.weight", "lm_head.weight", "output_layer.weight"


def rules(config: Config, options: Options) -> list[Statement]:
    """Map a dense model to MCore names, q, k, v and gate, up fused."""
    return dense(config, options, head_norms())


def dense(config: Config, options: Options, norms: Sequence[Statement] = ()) -> list[Statement]:
    """Return the rules of a dense model; `norms` are those of the norms of q and k, if it has any."""
    gate_up = gate_and_up(by_turns=options["interleave_mlp"] is True)
    names = tuple(LAYER + f"mlp.{p}_proj.weight" for p in ("gate", "up"))
    return [
        Rule(_EMBEDDING, EMBEDDING_MS, "vocab, hidden"),
        *attention(options, norms),
        Rule(names, MS + "mlp.linear_fc1.weight", "ffn, hidden", gate_up),
        Rule(LAYER + "mlp.down_proj.weight", MS + "mlp.linear_fc2.weight", "hidden, ffn"),
        *ends(config),
    ]


def attention(
    options: Options, norms: Sequence[Statement] = (), hf_layer: str = LAYER, ms_layer: str = MS
) -> list[Statement]:
    """Return the rules of attention and of a layer's norms.

    Args:
        options: whether q, k and v are contiguous.
        norms: the rules of the norms of q and k, if the model has any.
        hf_layer: what HuggingFace's names begin with.
        ms_layer: what MindFormers' names begin with.
    """
    hf, ms = hf_layer + "self_attn.", ms_layer + "self_attention."
    qkv = Interleave(("heads", "kv", "kv"), groups="1" if options["contiguous_qkv"] else "kv")
    weights, biases = (tuple(f"{hf}{p}_proj.{kind}" for p in "qkv") for kind in ("weight", "bias"))
    rows, fused = ("heads*head_dim", "kv*head_dim", "kv*head_dim"), "(heads+2*kv)*head_dim"
    shapes = tuple(f"{r}, hidden" for r in rows)
    return [
        Rule(hf_layer + "input_layernorm.weight", ms_layer + "input_layernorm.weight", "hidden"),
        Rule(weights, ms + "linear_qkv.weight", shapes, qkv, ms_shape=fused + ", hidden"),
        Rule(biases, ms + "linear_qkv.bias", rows, qkv, optional=True, ms_shape=fused),
        *norms,
        Rule(hf + "o_proj.weight", ms + "linear_proj.weight", "hidden, heads*head_dim"),
        Rule(hf_layer + "post_attention_layernorm.weight", ms_layer + "pre_mlp_layernorm.weight", "hidden"),
        rotary_buffers(hf),
    ]


def head_norms(hf_layer: str = LAYER, ms_layer: str = MS, optional: bool = False) -> list[Statement]:
    """Return the rules of the norms of the heads of q and k."""
    return [
        Rule(
            f"{hf_layer}self_attn.{name}_norm.weight",
            f"{ms_layer}self_attention.{name}_layernorm.weight",
            "head_dim",
            optional=optional,
        )
        for name in "qk"
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
