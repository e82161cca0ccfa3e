"""Tensors with strides, such as those of torch and parts of fused ones, described as cutouts of row-major arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import UnsupportedError
from .refs import Cutout


def cutout(shape: Sequence[int], strides: Sequence[int], where: str) -> Cutout | None:
    """Return how a tensor of this shape and these strides (in elements) lies in an array; `None` for a row-major one.

    Args:
        shape, strides: of the tensor; both in elements.
        where: the beginning of error messages.

    Raises:
        UnsupportedError: elements overlap (an expanded tensor), or interleave as no slice does.
    """
    if 0 in shape:
        return None
    axes = [(size, stride) for size, stride in zip(shape, strides, strict=True) if size > 1]
    by_stride = sorted(range(len(axes)), key=lambda axis: axes[axis][1], reverse=True)
    units = _units([axes[axis][1] for axis in by_stride])
    dense, steps = [], []
    for number, (axis, unit) in enumerate(zip(by_stride, units, strict=True)):
        size, stride = axes[axis]
        step = stride // unit if unit else 0
        span = (size - 1) * step + 1
        room = units[number - 1] // unit if number and unit else span
        if not 0 < step <= span <= room:
            raise UnsupportedError(
                f"{where} has shape {list(shape)} and strides {list(strides)}: its elements share memory, as those "
                "of an expanded tensor do",
                "load the file with torch, call .contiguous() on the tensor, and save it again",
            )
        dense.append(room)
        steps.append(step)
    order = tuple(by_stride.index(axis) for axis in range(len(axes)))
    plain = dense == [size for size, _ in axes] and set(steps) <= {1} and order == tuple(range(len(axes)))
    return None if plain else Cutout(tuple(dense), tuple(steps), order)


def _units(strides: Sequence[int]) -> list[int]:
    """Return per axis the elements from one row of the array to the next: each divides the one before it."""
    units, common = [], 0
    for stride in strides:
        common = math.gcd(common, stride)
        units.append(common)
    return [*units[:-1], 1] if units else []


def last_element(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how far the last element of a non-empty tensor lies behind its first, in elements."""
    return sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
