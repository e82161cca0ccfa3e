"""Mixtral: Llama's attention, experts stacked per projection."""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.statements import Rule, Statement
from ..rules.transforms import Identity, Transpose
from .parts.decoder import DECODER_SIZES, TRAINING_STATE, L, attention, decoder_ends, layer_norms, rotary_buffers

_MOE = L + "block_sparse_moe."


def rules(config: Config, options: Options) -> list[Statement]:
    """The table."""
    before, after = decoder_ends(config)
    layout = Transpose((0, 2, 1)) if options["use_gmm"] else Identity()
    experts = [
        Rule(_MOE + f"experts.{{expert}}.{w}.weight", L + f"feed_forward.ffn.{w}.weight", shape, layout)
        for w, shape in (("w1", "ffn, hidden"), ("w2", "hidden, ffn"), ("w3", "ffn, hidden"))
    ]
    router = Rule(_MOE + "gate.weight", L + "feed_forward.router.dense.weight", "experts, hidden")
    return [
        *before,
        *attention(),
        router,
        *experts,
        *layer_norms(),
        rotary_buffers(),
        *after,
        *TRAINING_STATE,
    ]


FAMILY = Family(
    name="mixtral",
    title="Mixtral mixtures of experts, any number of experts",
    repositories=("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x22B-v0.1"),
    model_types=("mixtral",),
    sizes={**DECODER_SIZES, "experts": "num_local_experts"},
    options=(
        Option(
            "use_gmm",
            (False, True),
            "experts as [E, in, out] for the grouped matrix product, not [E, out, in]",
        ),
    ),
    rules=rules,
    differs=(
        "any number of experts; MindFormers takes 8 for granted, and otherwise mixes layers up or drops experts",
        "in reverse, use_gmm is undone; MindFormers leaves the experts transposed",
    ),
)
