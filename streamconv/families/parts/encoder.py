"""Rules of encoders built from MindFormers' own layers: weights of linears transposed; q, k and v separate."""

from __future__ import annotations

from ...rules.interleaving import Deinterleave, Interleave
from ...rules.statements import Rule, Statement
from ...rules.transforms import Transpose
from .decoder import norm

#: Sizes of a vision tower that has a section of the config to itself.
VISION_SIZES = {
    "width": "vision_config.hidden_size",
    "wide": "vision_config.intermediate_size",
    "blocks": "vision_config.num_hidden_layers",
    "patch": "vision_config.patch_size",
    "channels": "vision_config.num_channels",
}

THIRDS = Deinterleave(Interleave(("1", "1", "1")))


def linear_transposed(hf: str, ms: str, rows: str | None = None, columns: str | None = None) -> list[Statement]:
    """Return the rules of a linear with its weight transposed, its bias unchanged; without `rows`, of any shape."""
    shape = f"{rows}, {columns}" if rows else None
    return [Rule(hf + ".weight", ms + ".weight", shape, Transpose()), Rule(hf + ".bias", ms + ".bias", rows)]


def unchanged(hf: str, ms: str, rows: str | None = None, others: str = "", optional: bool = False) -> list[Statement]:
    """Return the rules of a weight of `rows` and `others` axes with its bias, both unchanged."""
    weight = f"{rows}, {others}" if rows else None
    return [
        Rule(f"{hf}.{kind}", f"{ms}.{kind}", shape, optional=optional)
        for kind, shape in (("weight", weight), ("bias", rows))
    ]


def kept(name: str, rows: str, others: str) -> list[Statement]:
    """Return the rules of a weight of `rows` and `others` axes with its bias, under the same names on both sides."""
    return unchanged(name, name, rows, others)


def qkv(kind: str, attention: str) -> tuple[str, ...]:
    """Return MindFormers' names for q, k and v of an attention."""
    return tuple(f"{attention}dense{i}.{kind}" for i in (1, 2, 3))


def block(hf: str, ms: str, hidden: str, ffn: str) -> list[Statement]:
    """Return the rules of a vision transformer's block, without the biases of q, k and v."""
    dense = qkv("weight", ms + "attention.")
    return [
        *norm(hf + "norm1", ms + "layernorm1", hidden),
        Rule(hf + "attn.qkv.weight", dense, f"3*{hidden}, {hidden}", THIRDS),
        *linear_transposed(hf + "attn.proj", ms + "attention.projection", hidden, hidden),
        *norm(hf + "norm2", ms + "layernorm2", hidden),
        *linear_transposed(hf + "mlp.fc1", ms + "output.mapping", ffn, hidden),
        *linear_transposed(hf + "mlp.fc2", ms + "output.projection", hidden, ffn),
    ]


def biased_block(hf: str, ms: str, hidden: str, ffn: str) -> list[Statement]:
    """Return the rules of a vision transformer's block whose q, k and v share one bias."""
    bias = Rule(hf + "attn.qkv.bias", qkv("bias", ms + "attention."), f"3*{hidden}", THIRDS)
    return [*block(hf, ms, hidden, ffn), bias]


def patches(hf: str, ms: str) -> list[Statement]:
    """Return the rules of the tensors before a vision transformer's blocks."""
    return [
        Rule(hf + "cls_token", ms + "cls_tokens", "1, 1, hidden"),
        Rule(hf + "pos_embed", ms + "pos_embed", "1, tokens, hidden"),
        *unchanged(hf + "patch_embed.proj", ms + "patch_embed.proj", "hidden", "channels, patch, patch"),
    ]


#: Sizes of an image encoder. Such checkpoints seldom have a config: names and shapes give the sizes.
SIZES = {
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "channels": "num_channels",
    "patch": "patch_size",
    "tokens": "num_positions",
}
