"""BLIP-2, first stage, as LAVIS stores it (`{"model": …}`): an EVA image encoder and a Q-Former.

From MindFormers' `models/blip2/convert_weight.py`. EVA's attention has no bias for k; MindFormers has one that is zero.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.padding import InsertZeros
from ..rules.statements import Rule, Statement
from .parts.decoder import norm
from .parts.encoder import SIZES, block, patches, qkv, unchanged

_VISION, _BLOCK = "visual_encoder.", "visual_encoder.blocks.{layer}."
_WORDS = ("bert.embeddings.", "bert.encoder.layer.{deep}.", "bert.encoder.layer.{cross}.crossattention.")


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the image encoder, the Q-Former and the heads of the first stage."""
    biases = tuple(f"{_BLOCK}attn.{name}_bias" for name in "qv")
    return [
        Rule("query_tokens", "query_tokens", "1, queries, text"),
        *patches(_VISION, _VISION),
        *block(_BLOCK, _BLOCK, "hidden", "ffn"),
        Rule(biases, qkv("bias", _BLOCK + "attention."), "hidden", InsertZeros(1)),
        *norm("ln_vision", "ln_vision", "hidden"),
        *_q_former("Qformer.", "qformer."),
        *unchanged("vision_proj", "vision_proj", "joint", "text"),
        *unchanged("text_proj", "text_proj", "joint", "text"),
        *unchanged("itm_head", "itm_head", "2", "text"),
        Rule("temp", "temp", "", optional=True),
    ]


def _q_former(hf: str, ms: str) -> list[Statement]:
    """Return the rules of a BERT with cross-attention in some layers and a separate network for queries."""
    (words, words_ms), (deep, deep_ms), (cross, cross_ms) = ((hf + part, ms + part) for part in _WORDS)
    head, head_ms = hf + "cls.predictions.", ms + "cls.predictions."
    embeddings = (("word", "vocab"), ("position", "positions"))
    return [
        Rule(words + "position_ids", words_ms + "position_ids", "1, positions", optional=True),
        *(
            Rule(f"{words}{name}_embeddings.weight", f"{words_ms}{name}_embeddings.embedding_table", f"{rows}, text")
            for name, rows in embeddings
        ),
        *norm(words + "LayerNorm", words_ms + "layernorm", "text"),
        *_attention(deep + "attention.", deep_ms + "attention.", "text"),
        *_attention(cross, cross_ms, "hidden"),
        *_network(deep, deep_ms, ""),
        *_network(deep, deep_ms, "_query"),
        Rule(head + "bias", head_ms + "bias", "vocab"),
        *_dense_and_norm(head + "transform.", head_ms + "transform.", "text"),
        *unchanged(head + "decoder", head_ms + "decoder", "vocab", "text"),
    ]


def _attention(hf: str, ms: str, seen: str) -> list[Statement]:
    columns = {"query": "text", "key": seen, "value": seen}
    heads = [unchanged(f"{hf}self.{name}", f"{ms}self_att.{name}", "text", width) for name, width in columns.items()]
    return [*(rule for pair in heads for rule in pair), *_dense_and_norm(hf + "output.", ms + "output.", "text")]


def _network(hf: str, ms: str, kind: str) -> list[Statement]:
    wide, narrow = f"intermediate{kind}.dense", f"output{kind}."
    return [
        *unchanged(hf + wide, ms + wide, "text_ffn", "text"),
        *_dense_and_norm(hf + narrow, ms + narrow, "text_ffn"),
    ]


def _dense_and_norm(hf: str, ms: str, columns: str) -> list[Statement]:
    return [*unchanged(hf + "dense", ms + "dense", "text", columns), *norm(hf + "LayerNorm", ms + "layernorm", "text")]


FAMILY = Family(
    name="blip2",
    title="BLIP-2, first stage, LAVIS' checkpoint (not HuggingFace's)",
    sizes=SIZES,
    ranges={"layer": "layers", "deep": "text_layers"},
    rules=rules,
    torch_root="model",
    differs_from_mindformers=(
        "fc1 is output.mapping and fc2 output.projection; MindFormers swaps the two weights, which then do not fit",
        "in reverse, q, k and v are fused again; MindFormers leaves them separate under its own names",
        "position_ids stay integers whatever dtype is asked",
    ),
)
