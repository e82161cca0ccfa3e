"""Masked autoencoders, encoder and decoder, as MAE's repository trains them (`{"model": …}`, timm's names).

From MindFormers' `models/mae/convert_weight.py`: as ViT, but the final norms keep their names.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.statements import Rule, Statement
from .parts.decoder import norm
from .parts.encoder import SIZES, biased_block, patches, unchanged


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the encoder, and the decoder if the option asks for it."""
    return [
        *patches("", "vit."),
        *biased_block("blocks.{layer}.", "vit.blocks.{layer}.", "hidden", "ffn"),
        *norm("norm", "vit.norm", "hidden"),
        *(_decoder() if options["decoder"] else []),
    ]


def _decoder() -> list[Statement]:
    deep, deep_ms = "decoder_blocks.{decoder}.", "vit.decoder_blocks.{decoder}."
    return [
        Rule("mask_token", "vit.mask_tokens", "1, 1, narrow"),
        Rule("decoder_pos_embed", "vit.decoder_pos_embed", "1, tokens, narrow"),
        *unchanged("decoder_embed", "vit.decoder_embed", "narrow", "hidden"),
        *biased_block(deep, deep_ms, "narrow", "narrow_ffn"),
        *norm("decoder_norm", "vit.decoder_norm", "narrow"),
        *unchanged("decoder_pred", "vit.decoder_pred", "pixels", "narrow"),
    ]


FAMILY = Family(
    name="mae",
    title="MAE as pre-trained by MAE's repository, with its decoder or without",
    sizes={
        **SIZES,
        "narrow": "decoder_hidden_size",
        "narrow_ffn": "decoder_intermediate_size",
        "decoders": "decoder_num_hidden_layers",
        "pixels": "=patch*patch*channels",
    },
    ranges={"layer": "layers", "decoder": "decoders"},
    options=(
        Option("decoder", (True, False), "with mask token and decoder, or only the encoder", infer_from_names=True),
    ),
    rules=rules,
    torch_root="model",
)
