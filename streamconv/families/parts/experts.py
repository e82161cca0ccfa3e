"""Experts stacked for MindFormers' grouped matrix product, or not."""

from __future__ import annotations

from ...rules.family import Option, Options
from ...rules.fused import Fused
from ...rules.transforms import Identity, Transform, Transpose

USE_GMM = Option(
    "use_gmm",
    (False, True),
    "experts as [E, in, out] for the grouped matrix product, not [E, out, in]",
)


def transform(options: Options) -> Transform:
    """Transpose each expert of a stack where `use_gmm` is set."""
    return Transpose((0, 2, 1)) if options["use_gmm"] else Identity()


def fused_experts(fused: str, separate: str, names: tuple[str, str, str]) -> tuple[Fused, ...]:
    """Return how transformers 5 fuses experts: gate and up rows in one tensor, down in another.

    Args:
        fused: what the names of the fused tensors begin with, `model.layers.{layer}.mlp.experts.`.
        separate: what those of the separate ones do, `model.layers.{layer}.mlp.experts.{expert}.`.
        names: what gate, up and down are called there.
    """
    gate, up, down = (f"{separate}{name}.weight" for name in names)
    return Fused(f"{fused}gate_up_proj", (gate, up)), Fused(f"{fused}down_proj", (down,))


#: For families whose separate experts have the same names.
FUSED_EXPERTS = fused_experts(
    "model.layers.{layer}.mlp.experts.",
    "model.layers.{layer}.mlp.experts.{expert}.",
    ("gate_proj", "up_proj", "down_proj"),
)
