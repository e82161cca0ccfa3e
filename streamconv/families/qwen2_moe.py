"""Qwen2-MoE: Qwen2's attention, routed experts stacked, one shared expert with a gate of its own."""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.statements import Rule, Statement
from . import llama
from .parts import experts
from .parts.decoder import DECODER_SIZES, LAYER, attention, decoder_ends, layer_norms, rotary_buffers

_ROUTED, _SHARED = LAYER + "feed_forward.routed_experts.", LAYER + "feed_forward.shared_experts."
_PROJECTIONS = (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3"))


def rules(config: Config, options: Options) -> list[Statement]:
    """Map attention, routed experts as stacks, and the shared expert with its gate."""
    before, after = decoder_ends(config)
    concat = options["qkv_concat"]
    transform = experts.transform(options)
    return [
        *before,
        *(llama.fused_attention(by_group=concat is True) if concat else attention()),
        Rule(LAYER + "mlp.gate.weight", _ROUTED + "router.dense.weight", "experts, hidden"),
        *(
            Rule(
                LAYER + f"mlp.experts.{{expert}}.{hf}.weight",
                _ROUTED + f"ffn.{ms}.weight",
                _shape(ms, "expert"),
                transform,
            )
            for hf, ms in _PROJECTIONS
        ),
        *(
            Rule(LAYER + f"mlp.shared_expert.{hf}.weight", f"{_SHARED}{ms}.weight", _shape(ms, "shared"))
            for hf, ms in _PROJECTIONS
        ),
        Rule(LAYER + "mlp.shared_expert_gate.weight", LAYER + "feed_forward.shared_experts_gate.weight", "1, hidden"),
        *layer_norms(),
        rotary_buffers(),
        *after,
    ]


def _shape(projection: str, of: str) -> str:
    return f"hidden, {of}_ffn" if projection == "w2" else f"{of}_ffn, hidden"


FAMILY = Family(
    name="qwen2_moe",
    title="Qwen2-57B-A14B, Qwen1.5-MoE-A2.7B",
    repositories=("Qwen/Qwen2-57B-A14B{,-Instruct}", "Qwen/Qwen1.5-MoE-A2.7B{,-Chat}"),
    model_types=("qwen2_moe",),
    architectures=("Qwen2MoeForCausalLM",),
    sizes={
        **DECODER_SIZES,
        "experts": "num_experts",
        "expert_ffn": "moe_intermediate_size",
        "shared_ffn": "shared_expert_intermediate_size",
    },
    options=(
        experts.USE_GMM,
        Option(
            "qkv_concat",
            (False, True, "blocks"),
            "fuse q, k and v: per KV group as MindFormers 1.5 and later (true), in blocks (blocks), or not",
        ),
        experts.WRITTEN,
    ),
    fused=experts.FUSED_EXPERTS,
    rules=rules,
    differs_from_mindformers=(
        "any number of experts; MindFormers 1.3 stacks 64, and mixes up layers if there are 60",
        "biases of the fused q, k and v are interleaved like their weights",
    ),
)
