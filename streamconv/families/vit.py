"""Vision transformers as MAE's repository fine-tunes them (`{"model": …}`, timm's names).

From MindFormers' `models/vit/convert_weight.py`: q, k and v separate, linears transposed. The final norm is `norm`, or
`fc_norm` where tokens are averaged.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.statements import Statement
from .parts.decoder import norm
from .parts.encoder import SIZES, biased_block, patches, unchanged


def rules(config: Config, options: Options) -> list[Statement]:
    """Map patch embedding, blocks, norms and head."""
    return [
        *patches("", "vit."),
        *biased_block("blocks.{layer}.", "vit.blocks.{layer}.", "hidden", "ffn"),
        *norm("norm", "vit.layernorm", "hidden", optional=True),
        *norm("fc_norm", "vit.fc_norm", "hidden", optional=True),
        *unchanged("head", "head", "classes", "hidden", optional=True),
    ]


FAMILY = Family(
    name="vit",
    title="ViT, as fine-tuned by MAE's repository (not HuggingFace's ViT)",
    sizes={**SIZES, "classes": "num_labels"},
    rules=rules,
    torch_root="model",
)
