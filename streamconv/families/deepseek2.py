"""DeepSeek-V2, V2-Lite, Coder-V2 and V2.5: latent attention, stacked experts.

From MindFormers' `convert_weight.py`, which only converts forward; here one table serves both directions. Norms
and the router are float32 in the model, so a cast keeps them float32 in the checkpoint. MindFormers 1.3 reads attention
as HuggingFace has it, 1.5 and later with `mla_weight_split` (proven by forward passes on both).
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.statements import Rule, Side, Statement
from .parts import experts
from .parts import latent_attention as latent
from .parts.decoder import LAYER, decoder_ends, layer_norms, rotary_buffers
from .parts.latent_attention import MOE

_FP32 = (Side.MS,)


def rules(config: Config, options: Options) -> list[Statement]:
    """Map latent attention, dense layers, and layers with routed and shared experts."""
    before, after = decoder_ends(config, _FP32)
    form = latent.SPLIT if options["mla_weight_split"] else latent.WHOLE
    router = MOE + "feed_forward.routed_experts.router.dense.weight"
    return [
        *before,
        *latent.latent_attention(LAYER, config, form, _FP32),
        *latent.dense_layers(),
        Rule(MOE + "mlp.gate.weight", router, "experts, hidden", fp32=_FP32),
        *latent.shared_experts(MOE),
        *latent.stacked_experts(MOE, experts.transform(options)),
        *layer_norms(fp32=_FP32),
        rotary_buffers(),
        *after,
    ]


FAMILY = Family(
    name="deepseek2",
    title="DeepSeek-V2, V2-Lite, Coder-V2, V2.5",
    repositories=(
        "deepseek-ai/DeepSeek-V2{,-Chat,-Lite,-Lite-Chat}",
        "deepseek-ai/DeepSeek-Coder-V2{,-Lite}-{Base,Instruct}",
        "deepseek-ai/DeepSeek-V2.5",
    ),
    model_types=("deepseek_v2",),
    architectures=("DeepseekV2ForCausalLM",),
    sizes=latent.SIZES,
    ranges=latent.RANGES,
    options=(
        Option(
            "mla_weight_split",
            (False, True),
            "split rotary rows off, even ones first, and split keys from values: MindFormers 1.5 and later",
        ),
        experts.USE_GMM,
        experts.WRITTEN,
    ),
    fused=experts.FUSED_EXPERTS,
    rules=rules,
    example={"q_lora_rank": 1536},
    differs_from_mindformers=(
        "values are the source's; MindFormers first rounds all of them to BF16, whatever dtype is asked",
        "the reverse direction exists",
        "any number of experts; MindFormers assumes 160, and otherwise mixes up layers or drops experts",
        "use_gmm is written; MindFormers transposes in memory and saves nothing",
    ),
)
