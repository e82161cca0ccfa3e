"""Qwen2: Llama's names with biases on q, k and v."""

from __future__ import annotations

from ..rules.family import Family
from . import llama
from .parts import lora
from .parts.decoder import DECODER_SIZES

FAMILY = Family(
    name="qwen2",
    title="Qwen2, 2.5 and other Qwen2ForCausalLM models, and LoRA adapters for them",
    repositories=("Qwen/Qwen2-{0.5B,1.5B,7B,72B}{,-Instruct}",),
    model_types=("qwen2",),
    architectures=("Qwen2ForCausalLM",),
    sizes=DECODER_SIZES,
    options=(llama.QKV_CONCAT, *lora.OPTIONS),
    rules=lora.with_adapters(llama.rules),
    manual_sizes=lora.MANUAL_SIZES,
    differs_from_mindformers=("bfloat16 sources convert; MindFormers fails with a TypeError under transformers 5",),
)
