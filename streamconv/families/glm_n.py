"""ChatGLM2, ChatGLM3 and GLM-4: HuggingFace's names, except for the embedding and what is split.

q, k and v are concatenated, as are gate and up. `rearrange_rope` puts the even rows of every head of q and k
before the odd ones (of the whole head, although GLM rotates only half of it), for MindFormers' `use_rearrange_rope`.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.statements import Rule, Statement
from ..rules.transforms import Identity, PerTensor, Transform
from .parts import lora
from .parts.decoder import same_name
from .parts.rotary import even_then_odd

LAYER = "transformer.encoder.layers.{layer}."
_QKV, _UP = LAYER + "self_attention.query_key_value.", LAYER + "mlp.dense_h_to_4h."
_QKV_PARTS, _UP_PARTS = Deinterleave(Interleave(("heads", "kv", "kv"))), Deinterleave(Interleave(("1", "1")))

SIZES = {
    "vocab": "padded_vocab_size",
    "hidden": "hidden_size",
    "ffn": "ffn_hidden_size",
    "layers": "num_layers",
    "heads": "num_attention_heads",
    "head_dim": "kv_channels",
    "kv": "multi_query_group_num if multi_query_attention | =heads",
}


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the model, with q, k, v and gate, up fused or split as the options say."""
    rearranged = bool(options["rearrange_rope"])
    return table(
        "transformer.embedding.embedding_weight",
        [
            *_qkv("weight", ", hidden", bool(options["qkv_concat"]), rearranged),
            *_qkv("bias", "", bool(options["qkv_concat"]), rearranged),
            *_up("weight", ", hidden", bool(options["mlp_concat"])),
            *_up("bias", "", bool(options["mlp_concat"])),
        ],
    )


def table(embedding: str, projections: list[Statement]) -> list[Statement]:
    """Return the rules of the tensors that keep their names, and `projections`."""
    return [
        Rule("transformer.embedding.word_embeddings.weight", embedding, "vocab, hidden"),
        same_name("transformer.rotary_pos_emb.inv_freq", None, optional=True),
        *_norm(LAYER + "input_layernorm"),
        *projections,
        same_name(LAYER + "self_attention.dense.weight", "hidden, heads*head_dim"),
        same_name(LAYER + "self_attention.dense.bias", "hidden", optional=True),
        *_norm(LAYER + "post_attention_layernorm"),
        same_name(LAYER + "mlp.dense_4h_to_h.weight", "hidden, ffn"),
        same_name(LAYER + "mlp.dense_4h_to_h.bias", "hidden", optional=True),
        *_norm("transformer.encoder.final_layernorm"),
        same_name("transformer.output_layer.weight", "vocab, hidden"),
    ]


def _norm(name: str) -> list[Statement]:
    return [same_name(name + ".weight", "hidden"), same_name(name + ".bias", "hidden", optional=True)]


def _qkv(kind: str, columns: str, concat: bool, rearranged: bool) -> list[Statement]:
    axes = 2 if columns else 1
    transform: Transform = _QKV_PARTS
    if rearranged:
        transform = transform >> PerTensor(
            (*(even_then_odd(heads, "head_dim//2", axes) for heads in ("heads", "kv")), Identity())
        )
    names: tuple[str, ...] = tuple(f"{LAYER}self_attention.w{p}.{kind}" for p in "qkv")
    if concat:
        names, transform = (_QKV + kind,), transform >> _QKV_PARTS.inverse if rearranged else Identity()
    return [Rule(_QKV + kind, names, "(heads+2*kv)*head_dim" + columns, transform, optional=kind == "bias")]


def _up(kind: str, columns: str, concat: bool) -> list[Statement]:
    names = (_UP + kind,) if concat else tuple(f"{LAYER}mlp.dense_{side}.{kind}" for side in ("left", "right"))
    transform = Identity() if concat else _UP_PARTS
    return [Rule(_UP + kind, names, "2*ffn" + columns, transform, optional=kind == "bias")]


FAMILY = Family(
    name="glm-n",
    title="ChatGLM2, ChatGLM3, ChatGLM3-32K, GLM-4",
    repositories=(
        "THUDM/chatglm2-6b{,-32k}",
        "THUDM/chatglm3-6b{,-base,-32k,-128k}",
        "THUDM/glm-4-9b{,-chat,-chat-1m}",
    ),
    model_types=("chatglm",),
    architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    sizes=SIZES,
    options=(
        Option("qkv_concat", (True, False), "q, k and v fused, or separate", yaml_key="qkv_concat"),
        Option("mlp_concat", (True, False), "gate and up fused, or separate", yaml_key="mlp_concat"),
        Option(
            "rearrange_rope",
            (False, True),
            "put the even rows of each head of q and k before the odd ones",
            yaml_key="use_rearrange_rope",
        ),
        *lora.OPTIONS,
    ),
    rules=lora.with_adapters(rules),
    manual_sizes=lora.MANUAL_SIZES,
    differs_from_mindformers=(
        "in reverse, rows are put back only with rearrange_rope; MindFormers always does, which breaks default models",
        "unless a dtype is asked, every tensor keeps its own; MindFormers 1.5 makes the split ones float32, 1.6 all",
        "sizes that do not fit the tensors are refused; MindFormers silently splits at the wrong rows",
        "adapters become a PEFT directory; MindFormers writes model and adapters into one file",
    ),
)
