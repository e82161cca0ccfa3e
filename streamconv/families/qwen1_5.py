"""Qwen1.5: the same as Qwen2, but a tied head is not written."""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.statements import Statement
from . import llama
from .parts.decoder import DECODER_SIZES, decoder_ends, layer_norms, rotary_buffers


def rules(config: Config, options: Options) -> list[Statement]:
    """Map Llama's names; a tied head is not written."""
    before, after = decoder_ends(config, stored_twice=False)
    return [*before, *llama.separate(), *layer_norms(), rotary_buffers(), *after]


FAMILY = Family(
    name="qwen1_5",
    title="Qwen1.5",
    repositories=("Qwen/Qwen1.5-{0.5B,7B,14B,72B}{,-Chat}",),
    sizes=DECODER_SIZES,
    rules=rules,
    differs_from_mindformers=(
        "the dtype is the one asked; MindFormers' script always writes float16: large values overflow",
    ),
)
