"""DeepSeek-V3.2: V3's tensors, and in every layer an indexer that chooses the tokens to attend to.

Only for the pynative network of MindFormers 2.x, whose indexer takes its rows in HuggingFace's order: of each head the
rotary ones first, as two halves. The graph network's takes the rotary rows last, by neighbors: with rows as they are it
would choose other tokens. Whether that is its layout or a mistake cannot be told, so it is refused.
"""

from __future__ import annotations

from ..errors import UsageError
from ..rules.family import Config, Family, Option, Options
from ..rules.statements import Rule, Statement
from ..text import setting
from .deepseek3 import RANGES, no_mtp
from .parts import deepseek_mcore as mcore
from .parts import latent_attention as latent
from .parts.decoder import LAYER, norm, rotary_buffers
from .parts.experts import FUSED_EXPERTS, WRITTEN
from .parts.latent_attention import MTP

_SHAPES = {"wq_b": "index_heads*index_dim, q_rank", "wk": "index_dim, hidden", "weights_proj": "index_heads, hidden"}


def rules(config: Config, options: Options) -> list[Statement]:
    """Map V3's tensors and the indexers, with or without the MTP layers.

    Raises:
        UsageError: layout=mcore.
    """
    if options["layout"] == "mcore":
        raise UsageError(
            "layout=mcore is not written for this model: the indexer of MindFormers' graph network takes rotary rows "
            "in another order than HuggingFace's, and would choose other tokens",
            f"convert for MindFormers 2.x in PyNative mode: {setting('options.layout', 'pynative')}",
        )
    kept = bool(options["mtp"]) and config.get("num_nextn_predict_layers") != 0
    return [
        *mcore.rules(config, mcore.PYNATIVE, kept, by_turns=True),
        *_indexer(LAYER, "decoder.layers.{layer}."),
        *(_indexer(MTP, mcore.MTP_LAYER) if kept else no_mtp(config)),
        rotary_buffers(*(layer + "self_attn." for layer in (LAYER, MTP))),
    ]


def _indexer(hf_layer: str, ms_layer: str) -> list[Statement]:
    hf, ms = hf_layer + "self_attn.indexer.", ms_layer + "self_attention.core_attention.indexer."
    return [
        *(Rule(f"{hf}{name}.weight", f"{ms}linear_{name}.weight", shape) for name, shape in _SHAPES.items()),
        *norm(hf + "k_norm", ms + "k_norm", "index_dim"),
    ]


FAMILY = Family(
    name="deepseek32",
    title="DeepSeek-V3.2, for MindFormers 2.x in PyNative mode: FP8 or BF16",
    repositories=("deepseek-ai/DeepSeek-V3.2{,-Exp,-Speciale}",),
    model_types=("deepseek_v32",),
    architectures=("DeepseekV32ForCausalLM",),
    sizes={**latent.SIZES, "index_heads": "index_n_heads", "index_dim": "index_head_dim"},
    ranges=RANGES,
    options=(
        Option("layout", ("pynative", "mcore"), "MindFormers 2.x in PyNative mode; its graph mode (mcore) is refused"),
        latent.KEEP_MTP,
        WRITTEN,
    ),
    fused=FUSED_EXPERTS,
    rules=rules,
    example={"q_lora_rank": 1536, "num_nextn_predict_layers": 1},
    differs_from_mindformers=(
        "MindFormers has no converter; names and shapes are those of its PyNative network, values those of V3's",
        "that rows of the indexer stay in their order is from reading both implementations; no forward pass was run",
    ),
)
