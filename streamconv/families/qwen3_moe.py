"""Qwen3-MoE under MCore names: gate and up of all experts in one tensor, [E, hidden, 2 ffn]; down in another.

MindFormers' graph network holds them in two dimensions (`mcore`), its pynative one in three; the bytes are the same.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.statements import Rule, Statement
from ..rules.transforms import Flatten, Identity, Transform
from .parts.decoder import LAYER
from .parts.experts import FUSED_EXPERTS, WRITTEN, joined_experts
from .qwen3 import CONTIGUOUS_QKV, EMBEDDING_MS, MS, SIZES, attention, ends, head_norms


def rules(config: Config, options: Options) -> list[Statement]:
    """Map attention, router and experts to MCore names, experts stacked."""
    flat: Transform = Flatten(0, "experts") if options["layout"] == "mcore" else Identity()
    return [
        Rule("model.embed_tokens.weight", EMBEDDING_MS, "vocab, hidden"),
        *attention(options, head_norms()),
        Rule(LAYER + "mlp.gate.weight", MS + "mlp.router.weight", "experts, hidden"),
        *joined_experts(LAYER + "mlp.experts.{expert}.", MS + "mlp.experts.", flat),
        *ends(config),
    ]


FAMILY = Family(
    name="qwen3_moe",
    title="Qwen3-30B-A3B, Qwen3-235B-A22B",
    repositories=("Qwen/Qwen3-{30B-A3B,235B-A22B}{,-Instruct-2507,-Thinking-2507}",),
    model_types=("qwen3_moe",),
    architectures=("Qwen3MoeForCausalLM",),
    sizes={**SIZES, "experts": "num_experts", "expert_ffn": "moe_intermediate_size"},
    options=(
        Option("layout", ("mcore", "pynative"), "experts in two dimensions, [E*in, out], or in three"),
        CONTIGUOUS_QKV,
        WRITTEN,
    ),
    fused=FUSED_EXPERTS,
    rules=rules,
    differs_from_mindformers=(
        "biases of q, k and v are fused too; MindFormers 2.1 cannot do that with KV groups",
        "contiguous_qkv in both directions; MindFormers 2.1 silently loads KV groups into such a model",
    ),
)
