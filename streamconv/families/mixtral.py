"""Mixtral: Llama's attention, experts stacked per projection."""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.fused import Fused
from ..rules.statements import Rule, Statement
from .parts import experts
from .parts.decoder import DECODER_SIZES, LAYER, attention, decoder_ends, layer_norms, rotary_buffers

_MOE = LAYER + "block_sparse_moe."

#: Of transformers 5: experts fused, under another name, like that of the router.
_FUSED = (
    *experts.fused_experts(LAYER + "mlp.experts.", _MOE + "experts.{expert}.", ("w1", "w3", "w2")),
    Fused(LAYER + "mlp.gate.weight", (_MOE + "gate.weight",)),
)


def rules(config: Config, options: Options) -> list[Statement]:
    """Map Llama's attention, the router and the stacked experts."""
    before, after = decoder_ends(config)
    transform = experts.transform(options)
    projections = [
        Rule(_MOE + f"experts.{{expert}}.{w}.weight", LAYER + f"feed_forward.ffn.{w}.weight", shape, transform)
        for w, shape in (("w1", "ffn, hidden"), ("w2", "hidden, ffn"), ("w3", "ffn, hidden"))
    ]
    router = Rule(_MOE + "gate.weight", LAYER + "feed_forward.router.dense.weight", "experts, hidden")
    return [
        *before,
        *attention(),
        router,
        *projections,
        *layer_norms(),
        rotary_buffers(),
        *after,
    ]


FAMILY = Family(
    name="mixtral",
    title="Mixtral mixtures of experts, any number of experts",
    repositories=("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x22B-v0.1"),
    model_types=("mixtral",),
    architectures=("MixtralForCausalLM",),
    sizes={**DECODER_SIZES, "experts": "num_local_experts"},
    options=(experts.USE_GMM, experts.WRITTEN),
    fused=_FUSED,
    rules=rules,
    differs_from_mindformers=(
        "any number of experts; MindFormers assumes 8, and otherwise mixes up layers or drops experts",
        "in reverse, use_gmm is undone; MindFormers leaves the experts transposed",
    ),
)
