"""Rules that several families share: mostly those of Llama-like decoders."""

from __future__ import annotations

from msgspec.structs import replace

from ...rules.family import Config, Option
from ...rules.interleaving import Interleave
from ...rules.statements import TIED, Drop, Rule, Side, Statement, Tied
from ...rules.transforms import Identity, Transform

LAYER = "model.layers.{layer}."
_IDENTITY = Identity()

#: The sizes of Llama and its relatives.
DECODER_SIZES = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv": "num_key_value_heads | =heads",
    "head_dim": "head_dim | =hidden//heads",
}

#: For MCore layouts, where gate and up are one tensor.
INTERLEAVE_MLP = Option(
    "interleave_mlp",
    (True, False),
    "true: rows of gate and up alternate; false: gate, then up (MindFormers' use_interleaved_weight_layout_mlp)",
    yaml_key="use_interleaved_weight_layout_mlp",
)


def decoder_ends(
    config: Config, fp32: tuple[Side, ...] = (), stored_twice: bool = True
) -> tuple[list[Statement], list[Statement]]:
    """Return the rules before and after the layers of a Llama-like decoder.

    Args:
        config: the model's config; it says whether the head is tied.
        fp32: sides on which the last norm is float32.
        stored_twice: MindFormers stores a tied head as well.
    """
    embedding, lm_head = "model.embed_tokens.weight", "lm_head.weight"
    before: list[Statement] = [Rule(embedding, "model.tok_embeddings.embedding_weight", "vocab, hidden")]
    after: list[Statement] = [
        Rule("model.norm.weight", "model.norm_out.weight", "hidden", fp32=fp32),
        head(config, lm_head, lm_head, embedding, stored_twice),
    ]
    return before, after


def head(config: Config, hf: str, ms: str, embedding: str, stored_twice: bool = True) -> Statement:
    """Return the rule of the head: a tensor of its own, or tied to the embedding if the config says so."""
    shape = "vocab, hidden"
    return Tied(hf, ms, embedding, shape, stored_twice) if config.get(TIED) else Rule(hf, ms, shape)


def gate_and_up(by_turns: bool) -> Interleave:
    """Return how gate and up are fused: rows alternating, or one after the other."""
    return Interleave(("1", "1"), groups=None if by_turns else "1")


def layer_norms(layer: str = LAYER, fp32: tuple[Side, ...] = ()) -> list[Statement]:
    """Return the rules of the two norms of a layer."""
    return [
        Rule(layer + "input_layernorm.weight", layer + "attention_norm.weight", "hidden", fp32=fp32),
        Rule(layer + "post_attention_layernorm.weight", layer + "ffn_norm.weight", "hidden", fp32=fp32),
    ]


def attention() -> list[Statement]:
    """Return the rules of separate q, k, v and o. MindFormers keeps HF's rotary order: no row moves."""
    table = (
        ("q_proj", "wq", "heads*head_dim", "hidden"),
        ("k_proj", "wk", "kv*head_dim", "hidden"),
        ("v_proj", "wv", "kv*head_dim", "hidden"),
        ("o_proj", "wo", "hidden", "heads*head_dim"),
    )
    return [
        statement
        for hf, ms, rows, columns in table
        for statement in linear("self_attn." + hf, "attention." + ms, rows, columns)
    ]


def feed_forward() -> list[Statement]:
    """Return the rules of separate gate, down and up: w1, w2 and w3."""
    return [
        *linear("mlp.gate_proj", "feed_forward.w1", "ffn", "hidden"),
        *linear("mlp.down_proj", "feed_forward.w2", "hidden", "ffn"),
        *linear("mlp.up_proj", "feed_forward.w3", "ffn", "hidden"),
    ]


def norm(hf: str, ms: str, shape: str | None, optional: bool = False) -> list[Statement]:
    """Return the rules of a layer norm: weight and bias are MindSpore's gamma and beta."""
    return [
        Rule(f"{hf}.{theirs}", f"{ms}.{ours}", shape, optional=optional)
        for theirs, ours in (("weight", "gamma"), ("bias", "beta"))
    ]


def same_name(name: str, shape: str | None, transform: Transform = _IDENTITY, optional: bool = False) -> Rule:
    """Return the rule of a tensor with the same name on both sides."""
    return Rule(name, name, shape, transform, optional)


def linear(hf: str, ms: str, rows: str, columns: str) -> list[Statement]:
    """Return the rules of a linear of a layer: its weight, and its bias if there is one."""
    return [
        Rule(f"{LAYER}{hf}.weight", f"{LAYER}{ms}.weight", f"{rows}, {columns}"),
        Rule(f"{LAYER}{hf}.bias", f"{LAYER}{ms}.bias", rows, optional=True),
    ]


def rotary_buffers(*attentions: str) -> Drop:
    """Drop the rotary frequencies that old repositories store; both sides compute them from the config."""
    hf = tuple(attention + "rotary_emb.inv_freq" for attention in attentions or (LAYER + "self_attn.",))
    return Drop("computed from rope_theta", hf=hf)


def llama_under(top: str) -> list[Statement]:
    """Return the rules of a Llama whose names start with `top` on both sides."""
    before, after = decoder_ends({})
    rules = [*before, *attention(), *feed_forward(), *layer_norms(), *after]
    rotary = Drop(rotary_buffers().why, hf=tuple(top + name for name in rotary_buffers().hf))
    return [*(replace(r, hf=f"{top}{r.hf}", ms=f"{top}{r.ms}") for r in rules if isinstance(r, Rule)), rotary]


def nested_sizes(section: str) -> dict[str, str]:
    """Return the sizes of a Llama whose config is in a section of the whole model's, such as `text_config`."""
    return {
        "vocab": f"{section}.vocab_size",
        "hidden": f"{section}.hidden_size",
        "ffn": f"{section}.intermediate_size",
        "layers": f"{section}.num_hidden_layers",
        "heads": f"{section}.num_attention_heads",
        "kv": f"{section}.num_key_value_heads | =heads",
        "head_dim": f"{section}.head_dim | =hidden//heads",
    }
