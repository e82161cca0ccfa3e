"""KnowLM: Llama's names."""

from __future__ import annotations

from ..rules.family import Family
from . import deepseek
from .parts.decoder import DECODER_SIZES

FAMILY = Family(
    name="knowlm",
    title="KnowLM (ZhiXi) 13B, a Llama model",
    repositories=("zjunlp/knowlm-13b-{base-v1.0,zhixi}",),
    sizes=DECODER_SIZES,
    rules=deepseek.rules,
)
