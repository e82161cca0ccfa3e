"""LLaVA 1.5: a CLIP image encoder whose q, k and v are fused, an adapter, and a Llama.

From MindFormers 1.5's `research/llava/convert_weight.py`; the names are those of transformers 4.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.interleaving import Interleave
from ..rules.statements import Drop, Rule, Statement
from .parts.decoder import llama_under, nested_sizes, norm
from .parts.encoder import VISION_SIZES, unchanged

_VISION, _VISION_MS = "vision_tower.vision_model.", "vision_encoder."
_LAYER, _LAYER_MS = _VISION + "encoder.layers.{block}.", _VISION_MS + "transformer.resblocks.{block}."


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the image encoder, the projector and the language model."""
    embeddings = _VISION + "embeddings."
    return [
        Rule(embeddings + "class_embedding", _VISION_MS + "class_embedding", "width"),
        Rule(embeddings + "patch_embedding.weight", _VISION_MS + "conv1.weight", "width, channels, patch, patch"),
        Rule(embeddings + "position_embedding.weight", _VISION_MS + "positional_embedding", "tokens, width"),
        Drop("the numbers from 0 up", hf=(embeddings + "position_ids",)),
        *norm(_VISION + "pre_layrnorm", _VISION_MS + "ln_pre", "width"),
        *_image_layer(),
        *norm(_VISION + "post_layernorm", _VISION_MS + "ln_post", "width"),
        *unchanged("multi_modal_projector.linear_1", "adapter.adapter", "hidden", "width"),
        *unchanged("multi_modal_projector.linear_2", "adapter.adapter_2", "hidden", "hidden"),
        *llama_under("language_model."),
    ]


def _image_layer() -> list[Statement]:
    q, k, v, out = (f"{_LAYER}self_attn.{p}_proj" for p in ("q", "k", "v", "out"))
    joined, qkv = _LAYER_MS + "attn.in_proj.", Interleave(("1", "1", "1"))
    return [
        *norm(_LAYER + "layer_norm1", _LAYER_MS + "ln_1", "width"),
        Rule((q + ".weight", k + ".weight", v + ".weight"), joined + "weight", "width, width", qkv),
        Rule((q + ".bias", k + ".bias", v + ".bias"), joined + "bias", "width", qkv),
        *unchanged(out, _LAYER_MS + "attn.out_proj", "width", "width"),
        *norm(_LAYER + "layer_norm2", _LAYER_MS + "ln_2", "width"),
        *unchanged(_LAYER + "mlp.fc1", _LAYER_MS + "mlp.c_fc", "wide", "width"),
        *unchanged(_LAYER + "mlp.fc2", _LAYER_MS + "mlp.c_proj", "width", "wide"),
    ]


FAMILY = Family(
    name="llava",
    title="LLaVA 1.5",
    repositories=("llava-hf/llava-1.5-{7b,13b}-hf",),
    model_types=("llava",),
    architectures=("LlavaForConditionalGeneration",),
    sizes={
        **nested_sizes("text_config"),
        **VISION_SIZES,
    },
    ranges={"layer": "layers", "block": "blocks"},
    rules=rules,
    differs_from_mindformers=("the reverse direction exists; MindFormers has none",),
)
