"""Swin as Microsoft's repository stores it, fine-tuned or pre-trained by SimMIM (`{"model": …}`); not HuggingFace's.

From MindFormers' `models/swin/convert_weight.py`: q, k and v separate, the linears of the MLP transposed.
Pre-trained names begin with `encoder.` already.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.statements import Rule, Statement
from .parts.decoder import norm
from .parts.encoder import THIRDS, linear_transposed, unchanged

_MS = "encoder."
_BIAS = "relative_position_bias"


def rules(config: Config, options: Options) -> list[Statement]:
    """Map patch embedding, stages and their merging layers, and the head or the decoder."""
    pretrain = options["is_pretrain"]
    top = _MS if pretrain else ""
    down, down_ms = (t + "layers.{merging}.downsample." for t in (top, _MS))
    mask = Rule(top + "mask_token", _MS + "mask_token", "1, 1, hidden")
    return [
        *([mask] if pretrain else []),
        *unchanged(top + "patch_embed.proj", _MS + "patch_embed.projection", "hidden", "channels, patch, patch"),
        *norm(top + "patch_embed.norm", _MS + "patch_embed.norm", "hidden", optional=True),
        *_block(top + "layers.{stage}.blocks.{block}.", _MS + "layers.{stage}.blocks.{block}."),
        Rule(down + "reduction.weight", down_ms + "reduction.weight"),
        *norm(down + "norm", down_ms + "norm", None),
        *norm(top + "norm", _MS + "norm", "last"),
        *(
            unchanged("decoder.0", "decoder", "pixels", "last, 1, 1")
            if pretrain
            else unchanged("head", "head", "classes", "last")
        ),
    ]


def _block(hf: str, ms: str) -> list[Statement]:
    """Return the rules of a block; its width depends on its stage."""
    attn, attn_ms = hf + "attn.", ms + "attn."
    return [
        *norm(hf + "norm1", ms + "norm1", None),
        Rule(f"{attn}{_BIAS}_table", f"{attn_ms}{_BIAS}.{_BIAS}_table"),
        Rule(f"{attn}relative_position_index", f"{attn_ms}{_BIAS}.relative_position_index", "area, area"),
        *(Rule(f"{attn}qkv.{k}", tuple(f"{attn_ms}{p}.{k}" for p in "qkv"), None, THIRDS) for k in ("weight", "bias")),
        *unchanged(attn + "proj", attn_ms + "proj"),
        *norm(hf + "norm2", ms + "norm2", None),
        *linear_transposed(hf + "mlp.fc1", ms + "mlp.mapping"),
        *linear_transposed(hf + "mlp.fc2", ms + "mlp.projection"),
        Rule(hf + "attn_mask", ms + "attn_mask", optional=True, any_layer=True),
    ]


FAMILY = Family(
    name="swin",
    title="Swin, Microsoft's checkpoints and SimMIM's (not HuggingFace's Swin)",
    sizes={"hidden": "embed_dim"},
    ranges={"stage": "stages", "merging": "stages-1"},
    options=(
        Option(
            "is_pretrain", (False, True), "pre-trained by SimMIM: with mask token and decoder", infer_from_names=True
        ),
    ),
    rules=rules,
    torch_root="model",
    differs_from_mindformers=(
        "relative_position_index stays an integer; MindFormers casts it, and FP16 cannot hold the values",
    ),
)
