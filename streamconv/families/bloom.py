"""BLOOM and BLOOMZ: q, k and v are fused per head; MindFormers has them separate, and most linears transposed.

From MindFormers 1.3.2, `models/bloom/convert_weight.py`. A `transformer.` before HuggingFace's names stays.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.statements import Rule, Statement
from .parts.decoder import norm
from .parts.encoder import linear_transposed, qkv

_TOP = "{prefix:|transformer.}"
_HF, _MS = _TOP + "h.{layer}.", _TOP + "blocks.{layer}."
_BY_HEAD = Deinterleave(Interleave(("1", "1", "1"), groups="heads"))


def rules(config: Config, options: Options) -> list[Statement]:
    """Map embedding, layers with q, k and v fused per head, and the head if there is one."""
    fused, dense, word = _HF + "self_attention.query_key_value.", _MS + "attention.", "embedding.word_embedding."
    return [
        Rule(_TOP + "word_embeddings.weight", _TOP + word + "embedding_table", "vocab, hidden"),
        *norm(_TOP + "word_embeddings_layernorm", _TOP + "embedding.norm", "hidden"),
        *norm(_HF + "input_layernorm", _MS + "layernorm1", "hidden"),
        Rule(fused + "weight", qkv("weight", dense), "3*hidden, hidden", _BY_HEAD),
        Rule(fused + "bias", qkv("bias", dense), "3*hidden", _BY_HEAD),
        *linear_transposed(_HF + "self_attention.dense", dense + "projection", "hidden", "hidden"),
        *norm(_HF + "post_attention_layernorm", _MS + "layernorm2", "hidden"),
        *linear_transposed(_HF + "mlp.dense_h_to_4h", _MS + "output.mapping", "4*hidden", "hidden"),
        *linear_transposed(_HF + "mlp.dense_4h_to_h", _MS + "output.projection", "hidden", "4*hidden"),
        *norm(_TOP + "ln_f", _TOP + "ln_f", "hidden"),
        Rule("lm_head.weight", "head.weight", "vocab, hidden", optional=True),
        Rule("lm_head.bias", "head.bias", "vocab", optional=True),
    ]


FAMILY = Family(
    name="bloom",
    title="BLOOM, BLOOMZ, all sizes",
    repositories=("bigscience/bloom{-560m,-1b1,-1b7,-3b,-7b1,}", "bigscience/bloomz{-560m,-1b1,-1b7,-3b,-7b1,}"),
    model_types=("bloom",),
    architectures=("BloomForCausalLM", "BloomModel"),
    sizes={
        "vocab": "vocab_size",
        "hidden": "hidden_size | n_embed",
        "layers": "n_layer | num_hidden_layers",
        "heads": "n_head | num_attention_heads",
    },
    manual_sizes={"n_head": "heads", "hidden_size": "hidden"},
    rules=rules,
    differs_from_mindformers=(
        "names that start with transformer. are read in reverse too; MindFormers fails on them",
        "an n_head other than the config's is refused; MindFormers silently mixes up rows",
    ),
)
