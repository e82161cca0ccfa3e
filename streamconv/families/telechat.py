"""TeleChat 7B, 12B and 52B.

From MindFormers 1.5's `research/telechat`: `convert_weight.py` (7B, 12B: names only) and
`convert_weight_torch_to_ms.py` (52B: GPT-2's names and `Conv1D` weights; q, k and v head by head, or in blocks for each
of `mp` devices).
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.statements import Drop, Rule, Statement
from ..rules.transforms import Flatten, Transpose, Unflatten
from .parts.decoder import LAYER

SIZES = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "ffn": "ffn_hidden_size | intermediate_size",
    "layers": "n_layer | num_hidden_layers",
    "heads": "n_head | num_attention_heads",
    "head_dim": "=hidden//heads",
    "kv": "num_key_value_heads",
}


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the variant that `telechat_type` names."""
    if options["telechat_type"] == "telechat_52b":
        return [*ends("transformer.", "wte"), *_conv_layer(options["mp"])]
    small = options["telechat_type"] == "telechat_7b"
    top = "" if small else "transformer."
    layer = [*attention(top + "h.{layer}."), *network(top + "h.{layer}.")]
    return [*ends(top, "word_embeddings", optional_head=small), *layer]


def ends(top: str, embedding: str, optional_head: bool = False) -> list[Statement]:
    """Return the rules before and after the layers."""
    return [
        Rule(f"{top}{embedding}.weight", "model.tok_embeddings.embedding_weight", "vocab, hidden"),
        Rule(top + "ln_f.weight", "model.norm_out.weight", "hidden"),
        Rule("lm_head.weight", "lm_head.weight", "vocab, hidden", optional=optional_head),
    ]


def attention(hf: str) -> list[Statement]:
    """Return the rules of a layer's attention and norms; key and value stay fused."""
    inner = hf + "self_attention."
    return [
        Rule(hf + "input_layernorm.weight", LAYER + "attention_norm.weight", "hidden"),
        Rule(inner + "query.weight", LAYER + "attention.wq.weight", "heads*head_dim, hidden"),
        Rule(inner + "key_value.weight", LAYER + "attention.wk_v.weight", "2*kv*head_dim, hidden"),
        Rule(inner + "dense.weight", LAYER + "attention.wo.weight", "hidden, heads*head_dim"),
        Rule(inner + "dense.bias", LAYER + "attention.wo.bias", "hidden", optional=True),
        Rule(hf + "post_attention_layernorm.weight", LAYER + "ffn_norm.weight", "hidden"),
    ]


def network(hf: str) -> list[Statement]:
    """Return the rules of a layer's feed-forward network."""
    return [
        Rule(hf + "mlp.gate_proj.weight", LAYER + "feed_forward.w1.weight", "ffn, hidden"),
        Rule(hf + "mlp.up_proj.weight", LAYER + "feed_forward.w3.weight", "ffn, hidden"),
        Rule(hf + "mlp.down_proj.weight", LAYER + "feed_forward.w2.weight", "hidden, ffn"),
        Rule(hf + "mlp.down_proj.bias", LAYER + "feed_forward.w2.bias", "hidden", optional=True),
    ]


def _conv_layer(devices: object) -> list[Statement]:
    hf, per_device = "transformer.h.{layer}.", str(devices)
    by_head = Interleave(("1", "1", "1"), groups="heads" if devices == 1 else per_device)
    thirds = Deinterleave(Interleave(("1", "1", "1")))
    qkv = Transpose() >> thirds >> Unflatten(0, "heads") >> by_head >> Flatten(0, "3*heads")
    gate_hidden = Transpose() >> Deinterleave(Interleave(("1", "1"))) >> Interleave(("1", "1"), groups=per_device)
    return [
        Rule(hf + "ln_1.weight", LAYER + "attention_norm.weight", "hidden"),
        Rule(hf + "attn.c_attn.weight", LAYER + "attention.w_qkv.weight", "hidden, 3*hidden", qkv),
        Rule(hf + "attn.c_proj.weight", LAYER + "attention.wo.weight", "hidden, hidden", Transpose()),
        Rule(hf + "ln_2.weight", LAYER + "ffn_norm.weight", "hidden"),
        Rule(hf + "mlp.c_fc.weight", LAYER + "feed_forward.w_gate_hidden.weight", "hidden, 2*ffn", gate_hidden),
        Rule(hf + "mlp.c_proj.weight", LAYER + "feed_forward.w2.weight", "ffn, hidden", Transpose()),
        Drop("the causal mask, which is computed", hf=(hf + "attn.bias", hf + "attn.masked_bias")),
    ]


FAMILY = Family(
    name="telechat",
    title="TeleChat 7B, 12B and 52B",
    repositories=("Tele-AI/telechat-7B", "Tele-AI/TeleChat-{12B,52B}"),
    model_types=("telechat",),
    architectures=("TelechatForCausalLM",),
    sizes=SIZES,
    options=(
        Option(
            "telechat_type", ("telechat_7b", "telechat_12b", "telechat_52b"), "which TeleChat", infer_from_names=True
        ),
        Option("mp", (1, 2, 4, 8), "number of devices that share the 52B's q, k, v and gate", any_positive=True),
    ),
    rules=rules,
    manual_sizes={"num_heads": "heads", "hidden_size": "hidden"},
    differs_from_mindformers=(
        "the 12B's layers are transformer.h.N, as published; MindFormers reads and writes h.N, which is not read here",
        "the 52B keeps its dtype; MindFormers writes float32",
        "in reverse, the 52B is read too, and tensors of layers are tensors; MindFormers writes names in their place",
    ),
)
