"""Transforms: invertible operations between a rule's HuggingFace tensors and its MindFormers tensors.

A transform maps the views of the left side, in order, to those of the right; its `inverse` is a transform too. Numbers
are expressions over the model's sizes (`"heads//kv"`), so a table is written before any config is read. Families are
written with these; a new one is added here, with its inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ..errors import UnsupportedError
from ..tensors import views
from ..tensors.dtypes import INTEGER, DType, from_safetensors
from ..tensors.view_nodes import View
from .sizes import Sizes


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


class Identity(Transform, Struct, frozen=True):
    """No change."""

    def __str__(self) -> str:
        return "unchanged"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return list(parts)

    @property
    def inverse(self) -> Transform:
        return self


class Chain(Transform, Struct, frozen=True):
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


class PerTensor(Transform, Struct, frozen=True):
    """One transform for each view; each maps one view to one view."""

    steps: tuple[Transform, ...]

    def __str__(self) -> str:
        return f"per tensor: ({'; '.join(map(str, self.steps))})"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [view for step, part in zip(self.steps, parts, strict=True) for view in step.apply([part], sizes)]

    @property
    def inverse(self) -> Transform:
        return PerTensor(tuple(step.inverse for step in self.steps))


class Transpose(Transform, Struct, frozen=True):
    """Transpose every view: axis i of the result is axis `axes[i]`."""

    axes: tuple[int, ...] = (1, 0)

    def __str__(self) -> str:
        return f"transpose ({', '.join(map(str, self.axes))})"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.permute(part, self.axes) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Transpose(tuple(self.axes.index(i) for i in range(len(self.axes))))


class Unflatten(Transform, Struct, frozen=True):
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


class Flatten(Transform, Struct, frozen=True):
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


class Unsqueeze(Transform, Struct, frozen=True):
    """Insert an axis of size one into every view."""

    axis: int

    def __str__(self) -> str:
        return f"unsqueeze axis {self.axis}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.unsqueeze(part, self.axis) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Squeeze(self.axis)


class Squeeze(Transform, Struct, frozen=True):
    """Remove an axis of size one from every view."""

    axis: int

    def __str__(self) -> str:
        return f"squeeze axis {self.axis}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.squeeze(part, self.axis) for part in parts]

    @property
    def inverse(self) -> Transform:
        return Unsqueeze(self.axis)


class UnsqueezeOf(Transform, Struct, frozen=True):
    """Insert an axis of size one into every view of `axes` axes; others are unchanged, so none may have it already."""

    axes: int
    axis: int

    def __str__(self) -> str:
        return f"unsqueeze axis {self.axis} of what has {self.axes} axes"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [views.unsqueeze(part, self.axis) if len(part.shape) == self.axes else part for part in parts]

    def may_have_made(self, shape: Sequence[int]) -> bool:
        """Whether a view of this shape may have the axis that this inserts."""
        return len(shape) == self.axes + 1 and shape[self.axis] == 1

    @property
    def inverse(self) -> Transform:
        return SqueezeOf(self)


class SqueezeOf(Transform, Struct, frozen=True):
    """Remove the axis of size one that `unsqueeze` inserts; views that lack it are unchanged."""

    unsqueeze: UnsqueezeOf

    def __str__(self) -> str:
        return f"squeeze axis {self.unsqueeze.axis} of size one of what has {self.unsqueeze.axes + 1} axes"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        one = self.unsqueeze
        return [views.squeeze(part, one.axis) if one.may_have_made(part.shape) else part for part in parts]

    @property
    def inverse(self) -> Transform:
        return self.unsqueeze


class ToInteger(Transform, Struct, frozen=True):
    """Cast integers to the dtype `to`, and in reverse to `back`, by safetensors' names; `--dtype` is for floats only.

    A number that does not fit ends the conversion.
    """

    to: str
    back: str

    def __str__(self) -> str:
        return f"cast to {self.to}, in reverse to {self.back}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        dtype = _named(self.to)
        for part in parts:
            if part.dtype.kind != INTEGER:
                raise UnsupportedError(f"{part.dtype} are no integers, and the model has {dtype} here")
        return [views.cast(part, dtype) for part in parts]

    @property
    def left(self) -> DType:
        """The dtype on the left side."""
        return _named(self.back)

    @property
    def inverse(self) -> Transform:
        return ToInteger(self.back, self.to)


def _named(name: str) -> DType:
    return from_safetensors(name, "a family's table")
