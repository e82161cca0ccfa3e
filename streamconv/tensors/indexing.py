"""Indices as NumPy takes them, as far as they are read from disk: whole numbers, slices and `...`."""

from __future__ import annotations

import operator
from types import EllipsisType

Index = int | slice | EllipsisType


def expanded(index: Index | tuple[Index, ...], ndim: int) -> list[int | slice]:
    """Return one index for every axis.

    Raises:
        IndexError: more indices than axes, more than one `...`, or an index of another kind.
    """
    indices = index if isinstance(index, tuple) else (index,)
    given = [one for one in indices if one is not Ellipsis]
    if len(indices) - len(given) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if len(given) > ndim:
        raise IndexError(f"too many indices: the tensor is {ndim}-dimensional, and {len(given)} were indexed")
    place = next((axis for axis, one in enumerate(indices) if one is Ellipsis), len(indices))
    filled = [*indices[:place], *[slice(None)] * (ndim - len(given)), *indices[place + 1 :]]
    return [_checked(one) for one in filled if one is not Ellipsis]


def _checked(index: object) -> int | slice:
    if isinstance(index, slice):
        return index
    try:
        if not isinstance(index, bool):
            return operator.index(index)  # type: ignore[arg-type]
    except TypeError:  # an array has __index__, and says so only when it is called
        pass
    raise IndexError(
        f"only whole numbers, slices and '...' are read from disk, not {index!r}: index the array that you get"
    )


def as_range(index: int | slice, size: int) -> range:
    """Return the elements of an axis of `size` that an index takes.

    Raises:
        IndexError: it is out of bounds.
    """
    if isinstance(index, slice):
        return range(size)[index]
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of bounds for an axis of size {size}")
    return range(index % size, index % size + 1)
