"""Experts: stacked for MindFormers' grouped matrix product or not, joined under MCore names, fused in HuggingFace."""

from __future__ import annotations

from ...rules.family import Option, Options
from ...rules.fused import EXPERTS, SEPARATE, TOGETHER, Fused
from ...rules.interleaving import Interleave
from ...rules.statements import Rule, Statement
from ...rules.transforms import Identity, Transform, Transpose

#: Of stacks of experts: rows and columns change places; the rows of gate, then those of up.
SWAPPED = Transpose((0, 2, 1))
GATE_THEN_UP = Interleave(("1", "1"), axis=1)

HF_NAMES = ("gate_proj", "up_proj", "down_proj")

USE_GMM = Option(
    "use_gmm",
    (False, True),
    "experts as [E, in, out] for the grouped matrix product, not [E, out, in]",
)

#: How experts are written in reverse; whatever it says, both are read.
WRITTEN = Option(
    EXPERTS,
    (SEPARATE, TOGETHER),
    "in reverse: a tensor for each expert's projection, or all fused as transformers 5 holds them",
    is_preference=True,
)


def transform(options: Options) -> Transform:
    """Transpose each expert of a stack where `use_gmm` is set."""
    return SWAPPED if options["use_gmm"] else Identity()


def joined_experts(hf: str, ms: str, form: Transform, names: tuple[str, str, str] = HF_NAMES) -> list[Statement]:
    """Return the rules of experts under MCore names: gate and up [E, in, 2 out] in one tensor, down in another.

    Args:
        hf: what HuggingFace's names begin with, up to `{expert}.`.
        ms: what MindFormers' do.
        form: what the network does with the three dimensions.
        names: what gate, up and down are called.
    """
    gate, up, down = (f"{hf}{name}.weight" for name in names)
    return [
        Rule((gate, up), ms + "weight1", "expert_ffn, hidden", GATE_THEN_UP >> SWAPPED >> form),
        Rule(down, ms + "weight2", "hidden, expert_ffn", SWAPPED >> form),
    ]


def fused_experts(fused: str, separate: str, names: tuple[str, str, str]) -> tuple[Fused, ...]:
    """Return how transformers 5 fuses experts: gate and up rows in one tensor, down in another.

    Args:
        fused: what the names of the fused tensors begin with, `model.layers.{layer}.mlp.experts.`.
        separate: what those of the separate ones do, `model.layers.{layer}.mlp.experts.{expert}.`.
        names: what gate, up and down are called there.
    """
    gate, up, down = (f"{separate}{name}.weight" for name in names)
    both, last = f"{fused}gate_up_proj", f"{fused}down_proj"
    return Fused(both, (gate, up), last), Fused(last, (down,), both)


#: For families whose separate experts have the same names.
FUSED_EXPERTS = fused_experts(
    "model.layers.{layer}.mlp.experts.",
    "model.layers.{layer}.mlp.experts.{expert}.",
    HF_NAMES,
)
