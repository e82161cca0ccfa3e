"""DeepSeek-Coder and DeepSeek-Coder-7B v1.5: Llama models with separate projections."""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.statements import Statement
from .llama import separate
from .parts.decoder import DECODER_SIZES, decoder_ends, layer_norms, rotary_buffers


def rules(config: Config, options: Options) -> list[Statement]:
    """Map a Llama-like model with separate projections."""
    before, after = decoder_ends(config)
    return [*before, *separate(), *layer_norms(), rotary_buffers(), *after]


FAMILY = Family(
    name="deepseek",
    title="DeepSeek-Coder and DeepSeek-Coder-7B v1.5; with the config of a V2 or V3, deepseek2 or deepseek3",
    repositories=(
        "deepseek-ai/deepseek-coder-{1.3b,6.7b,33b}-{base,instruct}",
        "deepseek-ai/deepseek-coder-7b-{base,instruct}-v1.5",
    ),
    sizes=DECODER_SIZES,
    rules=rules,
    successors={"deepseek_v2": "deepseek2", "deepseek_v3": "deepseek3"},
    differs_from_mindformers=(
        "in reverse, files as HuggingFace has them; MindFormers writes one .bin",
        "no file next to the source is touched; MindFormers (v1.5) replaces and then deletes its pytorch_model.bin",
    ),
)
