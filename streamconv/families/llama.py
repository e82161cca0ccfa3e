"""Llama and all other LlamaForCausalLM models.

Fused layouts, from MindFormers' `convert_to_qkv_concat` and its models' forward pass: `true` is what MindFormers 1.5
and later read (q, k, v per KV group, gate and up rows alternating), `blocks` what 1.3 reads under the same names and
shapes.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Interleave
from ..rules.statements import Rule, Statement
from .parts import lora
from .parts.decoder import (
    DECODER_SIZES,
    LAYER,
    attention,
    decoder_ends,
    feed_forward,
    gate_and_up,
    layer_norms,
    linear,
    rotary_buffers,
)

QKV_CONCAT = Option(
    "qkv_concat",
    (False, True, "blocks"),
    "fuse q, k, v and gate, up: per KV group as MindFormers 1.5 and later (true), in blocks as 1.3 (blocks), or not",
)


def rules(config: Config, options: Options) -> list[Statement]:
    """Map a Llama-like model, with q, k, v and gate, up fused or separate."""
    before, after = decoder_ends(config)
    concat = options["qkv_concat"]
    layer = fused(by_group=concat is True) if concat else separate()
    return [*before, *layer, *layer_norms(), rotary_buffers(), *after]


def separate() -> list[Statement]:
    """Return the rules of a layer with separate projections."""
    return [*attention(), *feed_forward()]


def fused(by_group: bool) -> list[Statement]:
    """Return the rules of a layer with q, k, v fused in one tensor, gate and up in another."""
    gate_up = gate_and_up(by_turns=by_group)
    gate, up = LAYER + "mlp.gate_proj", LAYER + "mlp.up_proj"
    w_gate_hidden = LAYER + "feed_forward.w_gate_hidden"
    return [
        *fused_attention(by_group),
        Rule(_all(".weight", gate, up), w_gate_hidden + ".weight", "ffn, hidden", gate_up),
        Rule(_all(".bias", gate, up), w_gate_hidden + ".bias", "ffn", gate_up, optional=True),
        *linear("mlp.down_proj", "feed_forward.w2", "hidden", "ffn"),
    ]


def fused_attention(by_group: bool) -> list[Statement]:
    """Return the rules of attention with q, k, v fused, weights and biases in the same order."""
    qkv = Interleave(("heads", "kv", "kv"), groups="kv" if by_group else "1")
    q, k, v = (LAYER + f"self_attn.{p}_proj" for p in "qkv")
    w_qkv = LAYER + "attention.w_qkv"
    rows = ("heads*head_dim", "kv*head_dim", "kv*head_dim")
    return [
        Rule(_all(".weight", q, k, v), w_qkv + ".weight", tuple(f"{r}, hidden" for r in rows), qkv),
        Rule(_all(".bias", q, k, v), w_qkv + ".bias", rows, qkv, optional=True),
        *linear("self_attn.o_proj", "attention.wo", "hidden", "heads*head_dim"),
    ]


def _all(suffix: str, *modules: str) -> tuple[str, ...]:
    return tuple(module + suffix for module in modules)


FAMILY = Family(
    name="llama",
    title="Llama 2, 3, 3.1, 3.2, CodeLlama and other LlamaForCausalLM models",
    repositories=(
        "meta-llama/Llama-2-{7b,13b,70b}-hf",
        "meta-llama/Meta-Llama-3-{8B,70B}",
        "meta-llama/Llama-3.1-{8B,70B,405B}",
        "meta-llama/Llama-3.2-{1B,3B}",
        "codellama/CodeLlama-34b-hf",
    ),
    model_types=("llama",),
    architectures=("LlamaForCausalLM", "LlamaModel"),
    sizes=DECODER_SIZES,
    options=(QKV_CONCAT, *lora.OPTIONS),
    rules=lora.with_adapters(rules),
    manual_sizes=lora.MANUAL_SIZES,
    differs_from_mindformers=(
        "biases of the fused q, k and v are interleaved like their weights; MindFormers leaves them in blocks",
        "head_dim need not be hidden / heads",
        "in reverse, fused tensors are split; MindFormers passes them through",
        "in reverse, global_step and other training state are dropped; MindFormers writes it, cast to float",
        "a missing tensor is an error; MindFormers writes random values in its place",
        "adapters become a PEFT directory; MindFormers' names for them are not PEFT's",
    ),
)
