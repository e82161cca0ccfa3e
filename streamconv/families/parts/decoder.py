"""Rules that several families share."""

from __future__ import annotations

from ...rules.family import Config, Option
from ...rules.statements import TIED, Drop, Rule, Statement, Tied
from ...rules.transforms import Interleave

L = "model.layers.{layer}."

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

#: Of the MCore layouts: gate and up are one tensor.
INTERLEAVE_MLP = Option(
    "interleave_mlp",
    (True, False),
    "rows of gate and up by turns, or one after the other (MindFormers' use_interleaved_weight_layout_mlp)",
    decides=False,
    said="use_interleaved_weight_layout_mlp",
)

#: What MindSpore's training callbacks and optimizers add to a checkpoint.
TRAINING_STATE: tuple[Statement, ...] = (
    Drop(
        "state of the optimizer",
        ms=tuple(f"{p}.{{rest:*}}" for p in ("adam_m", "adam_v", "moments", "moment1", "moment2", "accu_grads")),
    ),
    Drop(
        "state of the training run",
        ms=(
            "global_step",
            "epoch_num",
            "step_num",
            "batch_num",
            "learning_rate",
            "beta1_power",
            "beta2_power",
            "loss_scale",
            "scale_sense",
            "current_iterator_step",
            "last_overflow_iterator_step",
            "network",
        ),
    ),
)


def decoder_ends(
    config: Config, fp32: tuple[str, ...] = (), again: bool = True
) -> tuple[list[Statement], list[Statement]]:
    """What stands before and after a Llama-like decoder's layers; `fp32` is that of its norm, `again` its head's."""
    embedding, lm_head = "model.embed_tokens.weight", "lm_head.weight"
    before: list[Statement] = [Rule(embedding, "model.tok_embeddings.embedding_weight", "vocab, hidden")]
    after: list[Statement] = [
        Rule("model.norm.weight", "model.norm_out.weight", "hidden", fp32=fp32),
        head(config, lm_head, lm_head, embedding, again),
    ]
    return before, after


def head(config: Config, hf: str, ms: str, embedding: str, again: bool = True) -> Statement:
    """The head: a tensor of its own or, where the config says so, the embedding, which MindFormers may have `again`."""
    shape = "vocab, hidden"
    return Tied(hf, ms, embedding, shape, again) if config.get(TIED) else Rule(hf, ms, shape)


def gate_and_up(by_turns: bool) -> Interleave:
    """Gate and up in one tensor: a row of each by turns, or one after the other."""
    return Interleave(("1", "1"), groups=None if by_turns else "1")


def layer_norms(layer: str = L, fp32: tuple[str, ...] = ()) -> list[Statement]:
    """The two norms of a layer."""
    return [
        Rule(layer + "input_layernorm.weight", layer + "attention_norm.weight", "hidden", fp32=fp32),
        Rule(layer + "post_attention_layernorm.weight", layer + "ffn_norm.weight", "hidden", fp32=fp32),
    ]


def attention() -> list[Statement]:
    """Separate q, k, v and o, as HuggingFace has them. MindFormers keeps HF's rotary order: no rows move."""
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
    """Gate, down and up, apart, as w1, w2 and w3."""
    return [
        *linear("mlp.gate_proj", "feed_forward.w1", "ffn", "hidden"),
        *linear("mlp.down_proj", "feed_forward.w2", "hidden", "ffn"),
        *linear("mlp.up_proj", "feed_forward.w3", "ffn", "hidden"),
    ]


def norm(hf: str, ms: str, shape: str | None, optional: bool = False) -> list[Statement]:
    """A layer norm: weight and bias are MindSpore's gamma and beta."""
    return [
        Rule(f"{hf}.{theirs}", f"{ms}.{ours}", shape, optional=optional)
        for theirs, ours in (("weight", "gamma"), ("bias", "beta"))
    ]


def linear(hf: str, ms: str, rows: str, columns: str) -> list[Statement]:
    """A layer's linear under two names: its weight, and its bias where there is one."""
    return [
        Rule(f"{L}{hf}.weight", f"{L}{ms}.weight", f"{rows}, {columns}"),
        Rule(f"{L}{hf}.bias", f"{L}{ms}.bias", rows, optional=True),
    ]


def rotary_buffers(*attentions: str) -> Drop:
    """Old repositories store the rotary frequencies; both sides compute them from the config."""
    hf = tuple(attention + "rotary_emb.inv_freq" for attention in attentions or (L + "self_attn.",))
    return Drop("computed from rope_theta", hf=hf)
