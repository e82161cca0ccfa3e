"""Transforms: invertible operations between a rule's HuggingFace tensors and its MindFormers tensors.

A transform maps the views of the left side, in order, to those of the right; its `inverse` is a transform too. Numbers
are expressions over the model's sizes (`"heads//kv"`), so a table is written before any config is read. Families are
written with these; a new one is added here, with its inverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UnsupportedError
from ..tensors import views
from ..tensors.view_nodes import View
from .sizes import Sizes

#: How tables say by which groups views are interleaved.
_GROUPS: dict[str | None, str] = {
    "1": "",
    "heads": " per head",
    "vision_heads": " per head",
    "kv": " per KV group",
    None: " row by row",
}


class Transform:
    """An operation on n views that gives m views, and has an inverse. `str` names it for tables."""

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        """Return the right side's views.

        Args:
            parts: the left side's views.
            sizes: the model's sizes.

        Raises:
            UnsupportedError: the shapes do not fit.
            UsageError: a size is needed that neither config nor shapes give.
        """
        raise NotImplementedError

    @property
    def inverse(self) -> Transform:
        """The transform from the right side to the left side."""
        raise NotImplementedError

    def must_be_zero(self, parts: Sequence[View]) -> list[View]:
        """Return those of the left side's views that `apply` drops because they hold only zeros."""
        return []

    def __rshift__(self, after: Transform) -> Transform:
        """Return this transform followed by `after`."""
        return Chain((self, after))


@dataclass(frozen=True)
class Identity(Transform):
    """No change."""

    def __str__(self) -> str:
        return "unchanged"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return list(parts)

    @property
    def inverse(self) -> Transform:
        return self


@dataclass(frozen=True)
class Chain(Transform):
    """Transforms applied one after the other."""

    steps: tuple[Transform, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.steps))

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        result = list(parts)
        for step in self.steps:
            result = step.apply(result, sizes)
        return result

    @property
    def inverse(self) -> Transform:
        return Chain(tuple(step.inverse for step in reversed(self.steps)))


@dataclass(frozen=True)
class PerTensor(Transform):
    """One transform for each view; each maps one view to one view."""

    steps: tuple[Transform, ...]

    def __str__(self) -> str:
        return f"per tensor: ({'; '.join(map(str, self.steps))})"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [view for step, part in zip(self.steps, parts, strict=True) for view in step.apply([part], sizes)]

    @property
    def inverse(self) -> Transform:
        return PerTensor(tuple(step.inverse for step in self.steps))


@dataclass(frozen=True)
class Transpose(Transform):
    """Transpose every view: axis i of the result is axis `axes[i]`."""

    axes: tuple[int, ...] = (1, 0)

    def __str__(self) -> str:
        return f"transpose ({', '.join(map(str, self.axes))})"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.permute(part, self.axes) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Transpose(tuple(self.axes.index(i) for i in range(len(self.axes))))


@dataclass(frozen=True)
class Interleave(Transform):
    """Interleave n views into one, group by group along `axis`.

    Each view is cut into `groups` equal parts; the result is the first part of each view, then the second of each, and
    so on. One group is plain concatenation; `groups="kv"` gives MindFormers' fused q, k, v; `groups=None`, as many
    groups as fit, alternates the views row by row. `ratio` relates the views' lengths: (`"heads"`, `"kv"`, `"kv"`) for
    q, k and v.
    """

    ratio: tuple[str, ...]
    groups: str | None = "1"
    axis: int = 0

    def __str__(self) -> str:
        return f"{'concatenate' if self.groups == '1' else 'interleave'} {self.how}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        ratio = self._lowest(sizes)
        lengths = [views.length(part, self.axis) for part in parts]
        total = sum(lengths)
        if lengths != _shares(total, ratio):
            shapes = ", ".join(str(list(part.shape)) for part in parts)
            raise UnsupportedError(
                f"shapes {shapes} on axis {self.axis} are not in the ratio {':'.join(map(str, ratio))}"
            )
        groups = self._groups(total, ratio, sizes)
        if groups == 1:
            return [views.concat(parts, self.axis)]
        grouped = [views.split(part, self.axis, groups) for part in parts]
        return [views.merge(views.concat(grouped, self.axis + 1), self.axis)]

    @property
    def how(self) -> str:
        """The ratio, the groups and the axis, in words."""
        axis = f" on axis {self.axis}" if self.axis else ""
        return f"{':'.join(self.ratio)}{_GROUPS.get(self.groups, f' in {self.groups} groups')}{axis}"

    def _lowest(self, sizes: Sizes) -> list[int]:
        """Return the ratio in lowest terms."""
        ratio = [sizes.number(r) for r in self.ratio]
        return [r // math.gcd(*ratio) for r in ratio]

    def _groups(self, total: int, ratio: Sequence[int], sizes: Sizes) -> int:
        return total // sum(ratio) if self.groups is None else sizes.number(self.groups)

    @property
    def inverse(self) -> Transform:
        return Deinterleave(self)


@dataclass(frozen=True)
class Deinterleave(Transform):
    """Split one view into the n views that `interleave` makes it from."""

    interleave: Interleave

    def __str__(self) -> str:
        return f"split {self.interleave.how}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        (whole,), axis = parts, self.interleave.axis
        ratio = self.interleave._lowest(sizes)
        total = views.length(whole, axis)
        groups = self.interleave._groups(total, ratio, sizes)
        if groups == 1:
            return _cuts(whole, axis, _shares(total, ratio))
        grouped = views.split(whole, axis, groups)
        pieces = _cuts(grouped, axis + 1, _shares(total // groups, ratio))
        return [views.merge(piece, axis) for piece in pieces]

    @property
    def inverse(self) -> Transform:
        return self.interleave


@dataclass(frozen=True)
class Unflatten(Transform):
    """Unflatten axis `axis` of every view into two, [`outer`, the rest]."""

    axis: int
    outer: str

    def __str__(self) -> str:
        return f"unflatten axis {self.axis} ({self.outer}, -1)"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.split(part, self.axis, sizes.number(self.outer)) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Flatten(self.axis, self.outer)


@dataclass(frozen=True)
class Flatten(Transform):
    """Flatten axes `axis` (of `outer` elements) and `axis + 1` of every view into one."""

    axis: int
    outer: str

    def __str__(self) -> str:
        return f"flatten axes {self.axis} and {self.axis + 1}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.merge(part, self.axis) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Unflatten(self.axis, self.outer)


@dataclass(frozen=True)
class Unsqueeze(Transform):
    """Insert an axis of size one into every view."""

    axis: int

    def __str__(self) -> str:
        return f"unsqueeze axis {self.axis}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.unsqueeze(part, self.axis) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Squeeze(self.axis)


@dataclass(frozen=True)
class Squeeze(Transform):
    """Remove an axis of size one from every view."""

    axis: int

    def __str__(self) -> str:
        return f"squeeze axis {self.axis}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.squeeze(part, self.axis) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Unsqueeze(self.axis)


@dataclass(frozen=True)
class Pad(Transform):
    """Pad axis `axis` (of `size` elements) of every view with zeros, up to the next multiple of `multiple`."""

    axis: int
    size: str
    multiple: str

    def __str__(self) -> str:
        return f"pad axis {self.axis} with zeros to a multiple of {self.multiple}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.pad(part, self.axis, self.padded(views.length(part, self.axis), sizes)) for part in parts]

    def padded(self, length: int, sizes: Sizes) -> int:
        """Return the smallest multiple that is not below `length`."""
        unit = sizes.number(self.multiple)
        return -(-length // unit) * unit

    @property
    def inverse(self) -> Transform:
        return Unpad(self)


@dataclass(frozen=True)
class Unpad(Transform):
    """Remove the padding that `pad` adds from every view."""

    pad: Pad

    def __str__(self) -> str:
        return f"cut axis {self.pad.axis} to {self.pad.size}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        axis, size = self.pad.axis, sizes.number(self.pad.size)
        padded = self.pad.padded(size, sizes)
        for part in parts:
            if views.length(part, axis) != padded:
                raise UnsupportedError(f"axis {axis} of shape {list(part.shape)} is not {size} padded to {padded}")
        return [views.cut(part, axis, 0, size) for part in parts]

    @property
    def inverse(self) -> Transform:
        return self.pad


@dataclass(frozen=True)
class InsertZeros(Transform):
    """Insert a view of zeros at `index`, with the shape and dtype of the first view."""

    index: int

    def __str__(self) -> str:
        return f"insert zeros as tensor {self.index}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [*parts[: self.index], views.zeros(parts[0].shape, parts[0].dtype), *parts[self.index :]]

    @property
    def inverse(self) -> Transform:
        return DropZeros(self)


@dataclass(frozen=True)
class DropZeros(Transform):
    """Drop the view at the index of `insert`, which has to hold only zeros."""

    insert: InsertZeros

    def __str__(self) -> str:
        return f"drop tensor {self.insert.index}, which is zeros"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [part for index, part in enumerate(parts) if index != self.insert.index]

    @property
    def inverse(self) -> Transform:
        return self.insert

    def must_be_zero(self, parts: Sequence[View]) -> list[View]:
        return [parts[self.insert.index]]


def _shares(total: int, ratio: Sequence[int]) -> list[int]:
    """Divide `total` in the ratio.

    Raises:
        UnsupportedError: it does not divide.
    """
    unit, rest = divmod(total, sum(ratio))
    if rest:
        raise UnsupportedError(f"{total} rows cannot be divided in the ratio {':'.join(map(str, ratio))}")
    return [unit * share for share in ratio]


def _cuts(view: View, axis: int, lengths: Sequence[int]) -> list[View]:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [views.cut(view, axis, end - length, end) for end, length in zip(ends, lengths, strict=True)]
