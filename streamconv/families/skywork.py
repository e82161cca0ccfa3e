"""Skywork: Llama's names."""

from __future__ import annotations

from . import deepseek
from .base import Family
from .common import DECODER_SIZES

FAMILY = Family(
    name="skywork",
    title="Skywork-13B, as a Llama model",
    repositories=("Skywork/Skywork-13B-base",),
    model_types=("skywork",),
    sizes=DECODER_SIZES,
    rules=deepseek.rules,
)
