"""Qwen2.5 and its LoRA adapters: the same as Qwen2."""

from __future__ import annotations

from ..rules.family import Family
from . import llama
from .parts import lora
from .parts.decoder import DECODER_SIZES

FAMILY = Family(
    name="qwen2_5",
    title="Qwen2.5, and LoRA adapters for it",
    repositories=("Qwen/Qwen2.5-{0.5B,1.5B,3B,7B,14B,32B,72B}{,-Instruct}",),
    sizes=DECODER_SIZES,
    options=(llama.QKV_CONCAT, *lora.OPTIONS),
    rules=lora.with_adapters(llama.rules),
    manual_sizes=lora.MANUAL_SIZES,
    differs_from_mindformers=(
        "qkv_concat converts HuggingFace's files; MindFormers needs a converted checkpoint and a YAML",
        "bfloat16 adapters convert; the source's adapter_config.json is not changed",
        "in reverse, fused checkpoints convert too, and those without biases",
    ),
)
