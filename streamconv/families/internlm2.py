"""InternLM2: q, k and v fused per KV group, which MindFormers keeps or splits."""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.statements import Rule, Statement
from .parts.decoder import DECODER_SIZES, LAYER, head, rotary_buffers

_QKV_ROWS = "(heads+2*kv)*head_dim"
_HF, _MS = LAYER + "attention.wqkv.", LAYER + "attention."
_EMBEDDING = "model.tok_embeddings.weight"


def rules(config: Config, options: Options) -> list[Statement]:
    """Map a Llama-like model whose q, k and v are fused per KV group."""
    return [
        Rule(_EMBEDDING, "model.tok_embeddings.embedding_weight", "vocab, hidden"),
        *_qkv("weight", f"{_QKV_ROWS}, hidden", bool(options["qkv_concat"])),
        *_qkv("bias", _QKV_ROWS, bool(options["qkv_concat"])),
        Rule(_MS + "wo.weight", _MS + "wo.weight", "hidden, heads*head_dim"),
        Rule(_MS + "wo.bias", _MS + "wo.bias", "hidden", optional=True),
        *(
            Rule(LAYER + f"feed_forward.{w}.weight", LAYER + f"feed_forward.{w}.weight", shape)
            for w, shape in (("w1", "ffn, hidden"), ("w3", "ffn, hidden"), ("w2", "hidden, ffn"))
        ),
        *(Rule(LAYER + f"{n}.weight", LAYER + f"{n}.weight", "hidden") for n in ("attention_norm", "ffn_norm")),
        rotary_buffers(_MS),
        Rule("model.norm.weight", "model.norm_out.weight", "hidden"),
        head(config, "output.weight", "lm_head.weight", _EMBEDDING, stored_twice=False),
    ]


def _qkv(kind: str, shape: str, concat: bool) -> list[Statement]:
    optional = kind == "bias"
    if concat:
        return [Rule(_HF + kind, f"{_MS}w.{kind}", shape, optional=optional)]
    names = tuple(f"{_MS}w{p}.{kind}" for p in "qkv")
    return [Rule(_HF + kind, names, shape, Deinterleave(Interleave(("heads", "kv", "kv"), groups="kv")), optional)]


FAMILY = Family(
    name="internlm2",
    title="InternLM2",
    repositories=("internlm/internlm2{,-chat}-{7b,20b}",),
    model_types=("internlm2",),
    architectures=("InternLM2ForCausalLM",),
    sizes=DECODER_SIZES,
    options=(Option("qkv_concat", (True, False), "q, k and v fused as in HuggingFace, or separate"),),
    rules=rules,
    differs_from_mindformers=(
        "in reverse, wq, wk and wv are fused to wqkv; MindFormers leaves them separate: transformers finds none",
        "in reverse, MindFormers 1.3.2 replaces every letter w in a name",
        "biases (config: bias) are split like their weights; MindFormers cannot split them",
    ),
)
