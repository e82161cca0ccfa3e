"""Skywork: Llama's names."""

from __future__ import annotations

from ..rules.family import Family
from . import deepseek
from .parts.decoder import DECODER_SIZES

FAMILY = Family(
    name="skywork",
    title="Skywork-13B, as a Llama model",
    repositories=("Skywork/Skywork-13B-base",),
    model_types=("skywork",),
    architectures=("SkyworkForCausalLM",),
    sizes=DECODER_SIZES,
    rules=deepseek.rules,
)
