"""InternLM v1: Llama's names, biases on all four projections of the smaller models.

MindFormers keeps the rotary frequencies where the modelling code stores them: with `rotary.type` dynamic, and in the
first releases, whose configs have no `rotary`.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.sizes import look_up
from ..rules.statements import Drop, Rule, Statement
from . import llama
from .parts.decoder import DECODER_SIZES, LAYER, decoder_ends, layer_norms

_FREQUENCIES = LAYER + "self_attn.rotary_emb.inv_freq"


def rules(config: Config, options: Options) -> list[Statement]:
    """Map a Llama-like model with optional biases, and its rotary frequencies where they are stored."""
    before, after = decoder_ends(config)
    stored = look_up(config, "rotary.type") in (None, "dynamic")
    rotary: Statement = (
        Rule(_FREQUENCIES, _FREQUENCIES, optional=True)
        if stored
        else Drop("computed from the config's rotary", hf=(_FREQUENCIES,), ms=(_FREQUENCIES,))
    )
    return [*before, *llama.separate(), *layer_norms(), rotary, *after]


FAMILY = Family(
    name="internlm",
    title="InternLM",
    repositories=("internlm/internlm{,-chat}-{7b,20b}",),
    model_types=("internlm",),
    architectures=("InternLMForCausalLM",),
    sizes=DECODER_SIZES,
    rules=rules,
)
