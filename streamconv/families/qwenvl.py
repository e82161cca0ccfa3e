"""Qwen-VL: Qwen's decoder under `llm_model.`, and a CLIP-like encoder whose q, k and v are fused per head.

From MindFormers 1.5's `research/qwenvl/convert_weight.py`. With `enable_emb_opt`, embedding and head are
padded with zero rows to a multiple of 512 for each of `emb_strategy` devices.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.padding import Pad
from ..rules.statements import Drop, Rule, Statement
from ..rules.transforms import Identity
from . import qwen
from .parts.decoder import norm
from .parts.encoder import THIRDS, linear_transposed, qkv, unchanged

_LLM, _HF, _VISION, _VISION_MS = "llm_model.", "transformer.h.{layer}.", "transformer.visual.", "vision_encoder."
_BLOCK = "transformer.resblocks.{block}."
_BY_HEAD = Deinterleave(Interleave(("1", "1", "1"), groups="vision_heads"))


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the decoder under `llm_model.`, the image encoder and its resampler."""
    rows = Pad(0, "vocab", f"512*{options['emb_strategy']}") if options["enable_emb_opt"] else Identity()
    wte, head, last = "transformer.wte.", "lm_head.weight", "transformer.ln_f.weight"
    return [
        Rule(wte + "weight", _LLM + wte + "embedding_weight", "vocab, hidden", rows),
        *qwen.layer(_HF, _LLM + "transformer.layers.{layer}.", concat=options["qkv_concat"] is True),
        Drop("computed from the config", hf=(_HF + "attn.rotary_emb.inv_freq", "transformer.rotary_emb.inv_freq")),
        Rule(last, _LLM + last, "hidden"),
        *_vision(),
        Rule(head, _LLM + head, "vocab, hidden", rows),
    ]


def _vision() -> list[Statement]:
    shapes = {"positional_embedding": "tokens, width", "proj": "out, out"}
    return [
        *(Rule(_VISION + name, _VISION_MS + name, shape) for name, shape in shapes.items()),
        Rule(_VISION + "conv1.weight", _VISION_MS + "conv1.weight", "width, channels, patch, patch"),
        *norm(_VISION + "ln_pre", _VISION_MS + "ln_pre", "width"),
        *_block(_VISION + _BLOCK, _VISION_MS + _BLOCK),
        *_resampler(_VISION + "attn_pool.", _VISION_MS + "attn_pool."),
        *norm(_VISION + "ln_post", _VISION_MS + "ln_post", "out"),
    ]


def _block(hf: str, ms: str) -> list[Statement]:
    return [
        *norm(hf + "ln_1", ms + "ln_1", "width"),
        *norm(hf + "ln_2", ms + "ln_2", "width"),
        Rule(hf + "attn.in_proj.weight", qkv("weight", ms + "attn."), "3*width, width", _BY_HEAD),
        Rule(hf + "attn.in_proj.bias", qkv("bias", ms + "attn."), "3*width", _BY_HEAD),
        *linear_transposed(hf + "attn.out_proj", ms + "attn.projection", "width", "width"),
        *unchanged(hf + "mlp.c_fc", ms + "mlp.c_fc", "wide", "width"),
        *unchanged(hf + "mlp.c_proj", ms + "mlp.c_proj", "width", "wide"),
    ]


def _resampler(hf: str, ms: str) -> list[Statement]:
    """Return the rules of the queries that attend to the image; their q, k and v are concatenated, as torch does."""
    return [
        *(Rule(hf + name, ms + name, "queries, out") for name in ("query", "pos_embed")),
        Rule(hf + "kv_proj.weight", ms + "kv_proj.weight", "out, width"),
        Rule(hf + "attn.in_proj_weight", qkv("weight", ms + "attn."), "3*out, out", THIRDS),
        Rule(hf + "attn.in_proj_bias", qkv("bias", ms + "attn."), "3*out", THIRDS),
        *linear_transposed(hf + "attn.out_proj", ms + "attn.projection", "out", "out"),
        *norm(hf + "ln_q", ms + "ln_q", "out"),
        *norm(hf + "ln_kv", ms + "ln_kv", "out"),
    ]


FAMILY = Family(
    name="qwenvl",
    title="Qwen-VL, Qwen-VL-Chat",
    repositories=("Qwen/Qwen-VL{,-Chat}",),
    model_types=("qwen",),
    architectures=("QWenLMHeadModel",),
    required_keys=("visual",),
    sizes={
        **qwen.SIZES,
        "width": "visual.width",
        "out": "visual.output_dim",
        "patch": "visual.patch_size",
        "blocks": "visual.layers",
        "vision_heads": "visual.heads",
    },
    manual_sizes={"vit_num_head": "vision_heads"},
    ranges={"layer": "layers", "block": "blocks"},
    options=(
        Option("qkv_concat", (False, True), "fuse the decoder's q, k and v"),
        Option("enable_emb_opt", (False, True), "pad embedding and head with zero rows, to divide them among devices"),
        Option(
            "emb_strategy",
            (1, 2, 4, 8),
            "number of devices: rows are padded to a multiple of 512 for each",
            any_positive=True,
        ),
    ),
    rules=rules,
    differs_from_mindformers=(
        "BF16 is cast once, or stays; MindFormers goes through FP16, which overflows above 65504",
        "the reverse direction exists",
    ),
)
