"""YiZhao-12B: ChatGLM's tensors, laid out as the YAML files of MindFormers' `research/yizhao` say."""

from __future__ import annotations

from ..rules.family import Family, Option
from . import glm_n

FAMILY = Family(
    name="yizhao",
    title="YiZhao-12B, on ModelScope (a ChatGLM; its config recognises it as glm-n, whose defaults are other layouts)",
    repositories=("CMB_AILab/YiZhao-12B-Chat",),
    sizes=glm_n.SIZES,
    options=(
        Option("qkv_concat", (False, True), "q, k and v separate, or fused", yaml_key="qkv_concat"),
        Option("mlp_concat", (False, True), "gate and up separate, or fused", yaml_key="mlp_concat"),
        Option(
            "rearrange_rope",
            (True, False),
            "put the even rows of each head of q and k before the odd ones (MindFormers' use_llama_rope)",
            yaml_key="use_llama_rope",
        ),
    ),
    rules=glm_n.rules,
    differs_from_mindformers=(
        "in reverse, fused and rearranged, v stays as it is; MindFormers reorders it too, in this direction alone",
        "names and config are taken to be ChatGLM's, as MindFormers' converter reads them; the repository was not seen",
    ),
)
