"""KnowLM: Llama's names."""

from __future__ import annotations

from . import deepseek
from .base import Family
from .common import DECODER_SIZES

FAMILY = Family(
    name="knowlm",
    title="KnowLM (ZhiXi) 13B, a Llama model",
    repositories=("zjunlp/knowlm-13b-{base-v1.0,zhixi}",),
    sizes=DECODER_SIZES,
    rules=deepseek.rules,
)
