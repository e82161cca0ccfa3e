"""TeleChat2, dense and with experts: TeleChat 12B's names; experts stacked, their biases as [1, E, 1, out].

From MindFormers' `research/telechat2/convert_weight.py`; experts as on its master branch.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.statements import Rule, Statement
from ..rules.transforms import Unsqueeze
from . import telechat
from .parts.decoder import LAYER

_HF = "transformer.h.{layer}."


def rules(config: Config, options: Options) -> list[Statement]:
    """Map TeleChat 12B's names, with a feed-forward network or stacked experts."""
    network = _experts() if options["moe"] else telechat.network(_HF)
    ends = telechat.ends("transformer.", "word_embeddings")
    return [*ends, *telechat.attention(_HF), *network]


def _experts() -> list[Statement]:
    expert, stack = _HF + "mlp.local_experts.{expert}.", LAYER + "feed_forward.ffn."
    bias = Unsqueeze(1) >> Unsqueeze(0)
    return [
        Rule(_HF + "mlp.router.weight", LAYER + "feed_forward.router.dense.weight", "experts, hidden"),
        Rule(expert + "gate_proj.weight", stack + "w1.weight", "ffn, hidden"),
        Rule(expert + "up_proj.weight", stack + "w3.weight", "ffn, hidden"),
        Rule(expert + "down_proj.weight", stack + "w2.weight", "hidden, ffn"),
        Rule(expert + "down_proj.bias", stack + "w2.bias", "hidden", bias, optional=True),
    ]


FAMILY = Family(
    name="telechat2",
    title="TeleChat2, dense and with experts",
    repositories=("Tele-AI/TeleChat2-{3B,7B,35B,115B,39B-A12B}",),
    model_types=("telechat",),
    architectures=("TelechatForCausalLM",),
    required_keys=("num_experts",),
    sizes={**telechat.SIZES, "experts": "num_experts"},
    options=(Option("moe", (False, True), "experts in place of the feed-forward network", infer_from_names=True),),
    rules=rules,
    differs_from_mindformers=(
        "in reverse, experts are unstacked and the router renamed; MindFormers keeps its own names",
        "a missing expert is an error; MindFormers stacks those that are there",
    ),
)
