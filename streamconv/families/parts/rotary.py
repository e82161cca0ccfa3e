"""Rows of rotary position embeddings, reordered from neighboring pairs to two halves."""

from __future__ import annotations

from ...rules.transforms import Flatten, Transform, Transpose, Unflatten


def even_then_odd(heads: str, half: str, axes: int = 2) -> Transform:
    """Put the even rows of every head before its odd rows.

    Args:
        heads: how many heads the rows of axis 0 belong to.
        half: half of a head's rows.
        axes: axes of the tensor.
    """
    swap = Transpose((0, 2, 1, *range(3, axes + 2)))
    return Unflatten(0, heads) >> Unflatten(1, half) >> swap >> Flatten(1, "2") >> Flatten(0, heads)
