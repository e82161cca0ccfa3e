"""Layouts as values with an inverse: what happens between the tensors of one side of a rule and those of the other.

A transform takes the views of the left side, in order, and gives those of the right; `inverse` is a transform too.
Numbers are expressions over the model's sizes (`"heads//kv"`), so that a table can be written before any config is
read. A family is made of these words; where one is missing, it is added here, with its inverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UnsupportedError
from ..tensors import views
from ..tensors.view_nodes import View
from .sizes import Sizes


class Transform:
    """n views to m views, and back."""

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        """The right side's views from the left side's.

        Raises:
            UnsupportedError: the shapes do not fit.
            UsageError: a number is needed that nothing has told.
        """
        raise NotImplementedError

    @property
    def inverse(self) -> Transform:
        """The same statement read from right to left."""
        raise NotImplementedError

    def blanks(self, parts: Sequence[View]) -> list[View]:
        """Those of the left side's views that are left out, for they hold nothing but zeros."""
        return []

    def __rshift__(self, after: Transform) -> Transform:
        """This, then `after`."""
        return Chain((self, after))


@dataclass(frozen=True)
class Same(Transform):
    """Nothing changes."""

    def __str__(self) -> str:
        return "as it is"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return list(parts)

    @property
    def inverse(self) -> Transform:
        return self


@dataclass(frozen=True)
class Chain(Transform):
    """Steps one after the other."""

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
class Each(Transform):
    """One transform for each view, every one of them from one view to one."""

    steps: tuple[Transform, ...]

    def __str__(self) -> str:
        return f"each: {'; '.join(map(str, self.steps))}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [view for step, part in zip(self.steps, parts, strict=True) for view in step.apply([part], sizes)]

    @property
    def inverse(self) -> Transform:
        return Each(tuple(step.inverse for step in self.steps))


@dataclass(frozen=True)
class Transpose(Transform):
    """Axis i of the result is axis `axes[i]`; every view alike."""

    axes: tuple[int, ...] = (1, 0)

    def __str__(self) -> str:
        return f"axes {' '.join(map(str, self.axes))}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.permute(part, self.axes) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Transpose(tuple(self.axes.index(i) for i in range(len(self.axes))))


@dataclass(frozen=True)
class Join(Transform):
    """n views to one, group by group along `axis`.

    Each view is cut in `groups` equal parts; the result is the first part of each, then the second of each, and so
    on. One group is plain concatenation; `kv` groups give MindFormers' fused q, k, v; `None`, as many groups as fit,
    alternates the views row by row. `ratio` says how the views' lengths relate: (`"heads"`, `"kv"`, `"kv"`) for q, k
    and v.
    """

    ratio: tuple[str, ...]
    groups: str | None = "1"
    axis: int = 0

    def __str__(self) -> str:
        return f"joined {self.how}"

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
        """The ratio and the groups, in words."""
        groups = {"1": "", None: ", row by row"}.get(self.groups, f", per {self.groups}")
        return f"{':'.join(self.ratio)}{groups}{f' on axis {self.axis}' if self.axis else ''}"

    def _lowest(self, sizes: Sizes) -> list[int]:
        """The ratio in lowest terms."""
        ratio = [sizes.number(r) for r in self.ratio]
        return [r // math.gcd(*ratio) for r in ratio]

    def _groups(self, total: int, ratio: Sequence[int], sizes: Sizes) -> int:
        return total // sum(ratio) if self.groups is None else sizes.number(self.groups)

    @property
    def inverse(self) -> Transform:
        return Part(self)


@dataclass(frozen=True)
class Part(Transform):
    """One view to n: what `join` put together, taken apart."""

    join: Join

    def __str__(self) -> str:
        return f"split {self.join.how}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        (whole,), axis = parts, self.join.axis
        ratio = self.join._lowest(sizes)
        total = views.length(whole, axis)
        groups = self.join._groups(total, ratio, sizes)
        if groups == 1:
            return _cuts(whole, axis, _shares(total, ratio))
        grouped = views.split(whole, axis, groups)
        pieces = _cuts(grouped, axis + 1, _shares(total // groups, ratio))
        return [views.merge(piece, axis) for piece in pieces]

    @property
    def inverse(self) -> Transform:
        return self.join


@dataclass(frozen=True)
class Fold(Transform):
    """Axis `axis` seen as two, [`outer`, the rest]; every view alike."""

    axis: int
    outer: str

    def __str__(self) -> str:
        return f"axis {self.axis} split as {self.outer}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.split(part, self.axis, sizes.number(self.outer)) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Unfold(self.axis, self.outer)


@dataclass(frozen=True)
class Unfold(Transform):
    """Axes `axis` (of `outer` elements) and `axis + 1` seen as one; every view alike."""

    axis: int
    outer: str

    def __str__(self) -> str:
        return f"axes {self.axis} and {self.axis + 1} merged"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.merge(part, self.axis) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Fold(self.axis, self.outer)


@dataclass(frozen=True)
class Unsqueeze(Transform):
    """A new axis of size one; every view alike."""

    axis: int

    def __str__(self) -> str:
        return f"a new axis {self.axis}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.unsqueeze(part, self.axis) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Squeeze(self.axis)


@dataclass(frozen=True)
class Squeeze(Transform):
    """An axis of size one less; every view alike."""

    axis: int

    def __str__(self) -> str:
        return f"without axis {self.axis}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.squeeze(part, self.axis) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Unsqueeze(self.axis)


@dataclass(frozen=True)
class Pad(Transform):
    """Zeros after axis `axis` of `size` elements, up to the next multiple of `multiple`; every view alike."""

    axis: int
    size: str
    multiple: str

    def __str__(self) -> str:
        return f"axis {self.axis} padded with zeros to a multiple of {self.multiple}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.pad(part, self.axis, self.padded(views.length(part, self.axis), sizes)) for part in parts]

    def padded(self, length: int, sizes: Sizes) -> int:
        """The next multiple from `length` up."""
        unit = sizes.number(self.multiple)
        return -(-length // unit) * unit

    @property
    def inverse(self) -> Transform:
        return Unpad(self)


@dataclass(frozen=True)
class Unpad(Transform):
    """The padding taken off; every view alike."""

    pad: Pad

    def __str__(self) -> str:
        return f"axis {self.pad.axis} cut to {self.pad.size}"

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
class Blank(Transform):
    """A view of zeros, like the first one, put in at `index`."""

    index: int

    def __str__(self) -> str:
        return f"zeros as tensor {self.index}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [*parts[: self.index], views.zeros(parts[0].shape, parts[0].dtype), *parts[self.index :]]

    @property
    def inverse(self) -> Transform:
        return Unblank(self)


@dataclass(frozen=True)
class Unblank(Transform):
    """The view of zeros left out: it has to hold zeros."""

    blank: Blank

    def __str__(self) -> str:
        return f"without tensor {self.blank.index}, which is zeros"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [part for index, part in enumerate(parts) if index != self.blank.index]

    @property
    def inverse(self) -> Transform:
        return self.blank

    def blanks(self, parts: Sequence[View]) -> list[View]:
        return [parts[self.blank.index]]


def _shares(total: int, ratio: Sequence[int]) -> list[int]:
    """`total` divided in that ratio.

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
