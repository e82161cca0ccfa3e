"""Baichuan2, 7B (rotary) and 13B (ALiBi): `W_pack` is q, k and v concatenated.

The model normalises its head when it runs; checkpoints of both sides hold it unnormalised.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.statements import Rule, Statement
from .parts.decoder import (
    DECODER_SIZES,
    LAYER,
    decoder_ends,
    feed_forward,
    layer_norms,
    linear,
    rotary_buffers,
)

_THIRDS = Deinterleave(Interleave(("1", "1", "1")))


def rules(config: Config, options: Options) -> list[Statement]:
    """Map Llama-like layers whose W_pack is split into q, k and v."""
    before, after = decoder_ends(config)
    names = tuple(LAYER + f"attention.w{p}.weight" for p in "qkv")
    return [
        *before,
        Rule(LAYER + "self_attn.W_pack.weight", names, "3*hidden, hidden", _THIRDS),
        *linear("self_attn.o_proj", "attention.wo", "hidden", "hidden"),
        *feed_forward(),
        *layer_norms(),
        rotary_buffers(),
        *after,
    ]


FAMILY = Family(
    name="baichuan2",
    title="Baichuan2, 7B and 13B",
    repositories=("baichuan-inc/Baichuan2-{7B,13B}-{Base,Chat}",),
    model_types=("baichuan",),
    architectures=("BaichuanForCausalLM",),
    sizes=DECODER_SIZES,
    rules=rules,
    differs_from_mindformers=(
        "a W_pack that is not three times the hidden size is refused; MindFormers splits it at the wrong rows",
    ),
)
