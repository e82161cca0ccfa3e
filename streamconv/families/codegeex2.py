"""CodeGeeX2: ChatGLM2, with the name that MindFormers' converter for it gives the embedding; nothing is split.

MindFormers 1.3.2's ChatGLM2 model looks for `embedding_weight` (proven by loading): for that, convert as `glm-n`.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.statements import Statement
from . import glm_n
from .parts.decoder import same_name


def rules(config: Config, options: Options) -> list[Statement]:
    """Map ChatGLM2's tensors, with q, k, v and gate, up fused."""
    qkv, up = glm_n.LAYER + "self_attention.query_key_value.", glm_n.LAYER + "mlp.dense_h_to_4h."
    projections: list[Statement] = [
        same_name(qkv + "weight", "(heads+2*kv)*head_dim, hidden"),
        same_name(qkv + "bias", "(heads+2*kv)*head_dim", optional=True),
        same_name(up + "weight", "2*ffn, hidden"),
    ]
    return glm_n.table("transformer.embedding.embedding_table", projections)


FAMILY = Family(
    name="codegeex2",
    title="CodeGeeX2, with its converter's name for the embedding; MindFormers 1.3 and later load glm-n's",
    repositories=("THUDM/codegeex2-6b",),
    sizes=glm_n.SIZES,
    rules=rules,
)
