"""Padding with zeros: rows, or whole tensors that only one side has."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ..errors import UnsupportedError
from ..tensors import views
from ..tensors.view_nodes import View
from .sizes import Sizes
from .transforms import Transform


class Pad(Transform, Struct, frozen=True):
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


class Unpad(Transform, Struct, frozen=True):
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


class InsertZeros(Transform, Struct, frozen=True):
    """Insert a view of zeros at `index`, with the shape and dtype of the first view."""

    index: int

    def __str__(self) -> str:
        return f"insert zeros as tensor {self.index}"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [*parts[: self.index], views.zeros(parts[0].shape, parts[0].dtype), *parts[self.index :]]

    @property
    def inverse(self) -> Transform:
        return DropZeros(self)


class DropZeros(Transform, Struct, frozen=True):
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
