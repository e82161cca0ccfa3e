"""TeleChat3, a mixture of experts: DeepSeek-V3's MCore names, as MindFormers 1.8 and later train it in graph mode."""

from __future__ import annotations

from collections.abc import Sequence

from ..rules.family import Config, Family, Options
from ..rules.statements import Statement
from . import deepseek3
from .parts import latent_attention as latent
from .parts.decoder import INTERLEAVE_MLP


def rules(config: Config, options: Options) -> Sequence[Statement]:
    """Map the model as DeepSeek-V3's is for MindFormers' graph mode."""
    return deepseek3.rules(config, {**options, "layout": "mcore", "use_gmm": False})


FAMILY = Family(
    name="telechat3_moe",
    title="TeleChat3-105B-A4.7B, a mixture of experts",
    repositories=("Tele-AI/TeleChat3-105B-A4.7B-Thinking",),
    model_types=("telechat3_moe",),
    architectures=("TeleChat3MoeForCausalLM",),
    sizes=latent.SIZES,
    ranges=deepseek3.RANGES,
    options=(latent.KEEP_MTP, INTERLEAVE_MLP),
    rules=rules,
    example={"q_lora_rank": 1536, "num_nextn_predict_layers": 1},
    differs_from_mindformers=(
        "MindFormers has no converter; the names are those of its network (1.8 to 2.1, graph mode)",
        "heads are as wide as config.json says; MindFormers' own network always takes 128 and 64 rows",
    ),
)
