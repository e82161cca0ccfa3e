"""Masked autoencoders, encoder and decoder, as MAE's repository trains them (`{"model": …}`, timm's names).

From MindFormers' `models/mae/convert_weight.py`: as ViT, but the final norms keep their names.
"""

from __future__ import annotations

from ..rules import Rule, Statement
from .base import Config, Family, Options
from .common import TRAINING_STATE, norm
from .encoders import SIZES, biased_block, patches, same


def rules(config: Config, options: Options) -> list[Statement]:
    """The table."""
    deep, deep_ms = "decoder_blocks.{decoder}.", "vit.decoder_blocks.{decoder}."
    return [
        *patches("", "vit."),
        Rule("mask_token", "vit.mask_tokens", "1, 1, narrow"),
        Rule("decoder_pos_embed", "vit.decoder_pos_embed", "1, tokens, narrow"),
        *biased_block("blocks.{layer}.", "vit.blocks.{layer}.", "hidden", "ffn"),
        *norm("norm", "vit.norm", "hidden"),
        *same("decoder_embed", "vit.decoder_embed", "narrow", "hidden"),
        *biased_block(deep, deep_ms, "narrow", "narrow_ffn"),
        *norm("decoder_norm", "vit.decoder_norm", "narrow"),
        *same("decoder_pred", "vit.decoder_pred", "pixels", "narrow"),
        *TRAINING_STATE,
    ]


FAMILY = Family(
    name="mae",
    title="MAE with its decoder, as pre-trained by MAE's repository",
    sizes={
        **SIZES,
        "narrow": "decoder_hidden_size",
        "narrow_ffn": "decoder_intermediate_size",
        "decoders": "decoder_num_hidden_layers",
        "pixels": "=patch*patch*channels",
    },
    ranges={"layer": "layers", "decoder": "decoders"},
    rules=rules,
    torch_root="model",
)
