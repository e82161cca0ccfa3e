"""GLM-4.5 and GLM-4.6: Qwen3's attention and DeepSeek-V3's experts, under MCore names.

MindFormers 2.1 does not train this model (its class raises `NotImplementedError`), and its inference maps HuggingFace's
files by itself. These are the names and shapes that its graph network has when it is built for such a config.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.statements import Rule, Statement
from .deepseek3 import RANGES, no_mtp
from .parts import deepseek_mcore as mcore
from .parts import latent_attention as latent
from .parts.decoder import DECODER_SIZES, INTERLEAVE_MLP, LAYER, gate_and_up
from .parts.experts import FUSED_EXPERTS, WRITTEN
from .parts.latent_attention import DENSE, MOE, MTP
from .qwen3 import CONTIGUOUS_QKV, EMBEDDING_MS, MS, attention, ends, head_norms


def rules(config: Config, options: Options) -> list[Statement]:
    """Map attention per KV group, the dense layers, then those with experts, and the MTP layers."""
    gate_up = gate_and_up(by_turns=bool(options["interleave_mlp"]))
    mtp = bool(options["mtp"]) and config.get("num_nextn_predict_layers") != 0
    further = [
        *_attention(MTP, mcore.MTP_LAYER, config, options),
        *mcore.experts(MTP, mcore.MTP_LAYER, mcore.GRAPH, gate_up),
        *mcore.mtp_ends(),
    ]
    return [
        Rule("model.embed_tokens.weight", EMBEDDING_MS, "vocab, hidden"),
        *_attention(LAYER, MS, config, options),
        *mcore.mlp(DENSE + "mlp.", "decoder.layers.{dense}.mlp.", "ffn", gate_up),
        *mcore.experts(MOE, "decoder.layers.{moe}.", mcore.GRAPH, gate_up),
        *ends(config),
        *(further if mtp else no_mtp(config)),
    ]


def _attention(hf: str, ms: str, config: Config, options: Options) -> list[Statement]:
    """Return the rules of attention; heads have norms only if the config says so."""
    says = config.get("use_qk_norm")
    return attention(options, [] if says is False else head_norms(hf, ms, optional=says is None), hf, ms)


FAMILY = Family(
    name="glm4_moe",
    title="GLM-4.5, GLM-4.5-Air, GLM-4.6, under the names of MindFormers' graph network; MindFormers 2.1 trains none",
    repositories=("zai-org/GLM-4.5{,-Air}{,-Base}", "zai-org/GLM-4.6"),
    model_types=("glm4_moe",),
    architectures=("Glm4MoeForCausalLM",),
    sizes={
        **DECODER_SIZES,
        "experts": "n_routed_experts",
        "shared": "n_shared_experts",
        "expert_ffn": "moe_intermediate_size",
        "dense": latent.SIZES["dense"],
        "mtp": "num_nextn_predict_layers",
    },
    ranges=RANGES,
    options=(latent.KEEP_MTP, INTERLEAVE_MLP, CONTIGUOUS_QKV, WRITTEN),
    fused=FUSED_EXPERTS,
    rules=rules,
    example={"use_qk_norm": True, "num_nextn_predict_layers": 1},
    differs_from_mindformers=(
        "MindFormers 2.1 refuses to train this model: what reads the result is a network built from its GPTModel",
        "norms of q and k are kept, which GLM-4.5 and 4.6 need; MindFormers' mapping for inference leaves them out",
        "biases of q, k and v are fused like their weights (deduced: MindFormers cannot fuse them with KV groups)",
    ),
)
