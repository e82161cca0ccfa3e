"""Experts stacked for MindFormers' grouped matrix product, or not."""

from __future__ import annotations

from ...rules.family import Option, Options
from ...rules.transforms import Identity, Transform, Transpose

USE_GMM = Option(
    "use_gmm",
    (False, True),
    "experts as [E, in, out] for the grouped matrix product, not [E, out, in]",
)


def transform(options: Options) -> Transform:
    """Transpose each expert of a stack where `use_gmm` is set."""
    return Transpose((0, 2, 1)) if options["use_gmm"] else Identity()
