"""Yi: Llama under its own name."""

from __future__ import annotations

from ..rules.family import Family
from . import llama
from .parts.decoder import DECODER_SIZES

FAMILY = Family(
    name="yi",
    title="Yi (a Llama model; its config recognises it as llama, with the same result)",
    repositories=("01-ai/Yi-{6B,34B}{,-Chat}",),
    sizes=DECODER_SIZES,
    options=(llama.QKV_CONCAT,),
    rules=llama.rules,
    differs_from_mindformers=("qkv_concat in both directions; MindFormers has it only for other models",),
)
