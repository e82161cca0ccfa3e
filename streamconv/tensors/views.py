"""Views: lazy tensors. A view has a shape and a dtype, and answers any grid of its elements with grids over leaves.

The functions here are the words of the algebra: each checks its arguments and builds one node of `view_nodes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ..errors import UnsupportedError
from ..text import setting
from .dtypes import BF16, DType
from .joined import Joined
from .quantised import QuantisedRef
from .refs import TensorRef
from .view_nodes import (
    Array,
    Cast,
    Concat,
    Dequantised,
    Merge,
    Permute,
    Shape,
    Slice,
    Split,
    Squeeze,
    Stored,
    Unsqueeze,
    View,
    Zeros,
    with_axis,
)


def leaf(ref: TensorRef) -> View:
    """Return a tensor on disk as it is used.

    One with a `cutout` is cut out of the array that holds it, one in slices is joined, and a quantised one dequantised.
    """
    if isinstance(ref, QuantisedRef):
        return _dequantised(ref)
    if ref.slices is not None:
        return Joined(ref.shape, ref.dtype, ref, ref.slices)
    if ref.cutout is None:
        return Stored(ref.shape, ref.dtype, ref)
    array = TensorRef(ref.name, ref.dtype, ref.cutout.shape, ref.extents)
    view: View = Array(array.shape, array.dtype, array, ref)
    sizes = [size for size in ref.shape if size > 1]
    for size, axis in zip(sizes, ref.cutout.order, strict=True):
        view = cut(view, axis, 0, (size - 1) * ref.cutout.steps[axis] + 1, ref.cutout.steps[axis])
    view = permute(view, ref.cutout.order)
    for axis, size in enumerate(ref.shape):
        view = unsqueeze(view, axis) if size == 1 else view
    return view


def _dequantised(ref: QuantisedRef) -> View:
    view: View = Dequantised(ref.parts.scheme.codes_shape, BF16, ref.parts)
    for axis, (low, high) in enumerate(ref.box):
        if (low, high) != (0, view.shape[axis]):
            view = cut(view, axis, low, high)
    view = permute(view, ref.order) if ref.order else view
    while len(view.shape) > len(ref.shape):
        view = squeeze(view, 0)
    return view


def zeros(shape: Shape, dtype: DType) -> View:
    """Return a tensor of zeros."""
    return Zeros(shape, dtype)


def cast(view: View, dtype: DType) -> View:
    """Return the same values in another dtype, each rounded once."""
    return view if view.dtype == dtype else Cast(view.shape, dtype, view)


def length(view: View, axis: int) -> int:
    """Return the number of elements along `axis`.

    Raises:
        UnsupportedError: the view has no such axis.
    """
    if axis >= len(view.shape):
        raise UnsupportedError(f"shape {list(view.shape)} has no axis {axis}")
    return view.shape[axis]


def permute(view: View, axes: Sequence[int]) -> View:
    """Return the view with its axes in another order: axis i of the result is axis `axes[i]` of `view`.

    Raises:
        UnsupportedError: `axes` does not name each axis once.
    """
    if sorted(axes) != list(range(len(view.shape))):
        raise UnsupportedError(f"axes {list(axes)} do not fit a tensor of shape {list(view.shape)}")
    return Permute(tuple(view.shape[a] for a in axes), view.dtype, view, tuple(axes))


def cut(view: View, axis: int, start: int, stop: int, step: int = 1) -> View:
    """Return every `step`-th of the elements `start` … `stop` along `axis`.

    Raises:
        UnsupportedError: the view does not have that axis or those elements.
    """
    if not (0 <= start <= stop <= length(view, axis) and step > 0):
        raise UnsupportedError(f"[{start}:{stop}:{step}] does not fit axis {axis} of shape {list(view.shape)}")
    count = len(range(start, stop, step))
    return Slice(with_axis(view.shape, axis, (count,)), view.dtype, view, axis, start, step)


def concat(parts: Sequence[View], axis: int) -> View:
    """Return the parts one after the other along `axis`.

    Raises:
        UnsupportedError: they differ in dtype, or in shape on another axis.
    """
    first = parts[0]
    for part in parts[1:]:
        if with_axis(part.shape, axis, ()) != with_axis(first.shape, axis, ()):
            raise UnsupportedError(
                f"shapes {list(first.shape)} and {list(part.shape)} cannot be concatenated on axis {axis}"
            )
        if part.dtype != first.dtype:
            raise UnsupportedError(
                f"dtypes {first.dtype} and {part.dtype} cannot be concatenated",
                f"give one dtype with {setting('dtype')}",
            )
    if len(parts) == 1:
        return first
    ends = tuple(accumulate(part.shape[axis] for part in parts))
    return Concat(with_axis(first.shape, axis, (ends[-1],)), first.dtype, tuple(parts), axis, ends)


def stack(parts: Sequence[View], axis: int = 0) -> View:
    """Return the parts, all of one shape, along a new axis."""
    return concat([unsqueeze(part, axis) for part in parts], axis)


def unsqueeze(view: View, axis: int) -> View:
    """Return `view` with a new axis of size one at `axis`."""
    return Unsqueeze((*view.shape[:axis], 1, *view.shape[axis:]), view.dtype, view, axis)


def squeeze(view: View, axis: int) -> View:
    """Return `view` without its axis `axis` of size one.

    Raises:
        UnsupportedError: there is no such axis.
    """
    if length(view, axis) != 1:
        raise UnsupportedError(f"axis {axis} of shape {list(view.shape)} is not of size one")
    return Squeeze(with_axis(view.shape, axis, ()), view.dtype, view, axis)


def split(view: View, axis: int, outer: int) -> View:
    """Return `view` with axis `axis` of n elements as two: [outer, n / outer].

    Raises:
        UnsupportedError: there is no such axis, or `outer` does not divide n.
    """
    size, rest = divmod(length(view, axis), outer) if outer > 0 else (0, 1)
    if rest:
        raise UnsupportedError(f"axis {axis} of shape {list(view.shape)} cannot be split in {outer} equal parts")
    return Split(with_axis(view.shape, axis, (outer, size)), view.dtype, view, axis)


def merge(view: View, axis: int) -> View:
    """Return `view` with axes `axis` and `axis + 1` as one.

    Raises:
        UnsupportedError: there are no two such axes.
    """
    outer, inner = length(view, axis), length(view, axis + 1)
    shape = (*view.shape[:axis], outer * inner, *view.shape[axis + 2 :])
    return Merge(shape, view.dtype, view, axis)


def pad(view: View, axis: int, size: int) -> View:
    """Return `view` followed by zeros, so that `axis` has `size` elements.

    Raises:
        UnsupportedError: it has more already.
    """
    missing = size - length(view, axis)
    if missing < 0:
        raise UnsupportedError(f"axis {axis} of shape {list(view.shape)} is longer than {size}")
    return concat([view, zeros(with_axis(view.shape, axis, (missing,)), view.dtype)], axis) if missing else view
