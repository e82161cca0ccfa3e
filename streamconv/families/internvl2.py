"""InternVL2-40B: InternViT-6B, a projector and a Llama, from MindFormers 1.5's `research/internvl2`."""

from __future__ import annotations

from ..errors import UsageError
from ..rules.family import Config, Family, Options
from ..rules.sizes import look_up
from ..rules.statements import Rule, Statement
from ..text import quote, setting
from .parts.decoder import llama_under, nested_sizes, norm, same_name
from .parts.encoder import VISION_SIZES, kept, unchanged

_LLM, _VISION, _LAYER = "llm_config", "vision_model.embeddings.", "vision_model.encoder.layers.{block}."


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the language model and the projector; the image encoder keeps its names.

    Raises:
        UsageError: the language model is no Llama.
    """
    inside = look_up(config, f"{_LLM}.model_type")
    if inside not in (None, "llama"):
        raise UsageError(
            f"the language model of this InternVL2 is not a Llama but {quote(inside)}: MindFormers has none such",
            f"keep all names and layouts with {setting('model', 'raw')}",
        )
    return [
        same_name(_VISION + "class_embedding", "1, 1, width"),
        same_name(_VISION + "position_embedding", "1, tokens, width"),
        *kept(_VISION + "patch_embedding", "width", "channels, patch, patch"),
        *_block(),
        *norm("mlp1.0", "mlp1.layer_norm", "joined"),
        *unchanged("mlp1.1", "mlp1.adapter1", "hidden", "joined"),
        *unchanged("mlp1.3", "mlp1.adapter2", "hidden", "hidden"),
        *llama_under("language_model."),
    ]


def _block() -> list[Statement]:
    vectors = ("norm1.weight", "norm2.weight", "attn.q_norm.weight", "attn.k_norm.weight", "ls1", "ls2")
    linears = (("attn.proj", "width", "width"), ("mlp.fc1", "wide", "width"), ("mlp.fc2", "width", "wide"))
    return [
        Rule(_LAYER + "attn.qkv.weight", _LAYER + "attn.qkv.weight", "3*width, width"),
        *(same_name(_LAYER + name, "width") for name in vectors),
        *(rule for name, rows, columns in linears for rule in kept(_LAYER + name, rows, columns)),
    ]


FAMILY = Family(
    name="internvl2",
    title="InternVL2-40B, whose language model is a Llama; the others have InternLM2, Qwen2 or Phi-3",
    repositories=("OpenGVLab/InternVL2-40B",),
    model_types=("internvl_chat",),
    architectures=("InternVLChatModel",),
    sizes={
        **nested_sizes(_LLM),
        **VISION_SIZES,
    },
    ranges={"layer": "layers", "block": "blocks"},
    rules=rules,
    differs_from_mindformers=(
        "mlp1.layer_norm.gamma is its network's name; MindFormers' converter writes mlp1.layer_norm_gamma",
        "the reverse direction exists; MindFormers has none",
    ),
)
