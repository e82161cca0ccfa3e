"""Transforms for what only one side's names tell: from the other side there is no way."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ..errors import UnsupportedError
from ..tensors.view_nodes import View
from .sizes import Sizes
from .transforms import Transform, UnsqueezeOf


class OneWay(Transform, Struct, frozen=True):
    """No change from the right side to the left; from the left side, a refusal that says why.

    Attributes:
        why: what the left side does not tell.
        hint: what to do instead.
    """

    why: str
    hint: str

    def __str__(self) -> str:
        return "unchanged, and only in reverse"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        raise UnsupportedError(self.why, self.hint)

    @property
    def inverse(self) -> Transform:
        return WayBack(self)


class WayBack(Transform, Struct, frozen=True):
    """The direction that a one-way transform has: no change."""

    one_way: OneWay

    def __str__(self) -> str:
        return "unchanged"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return list(parts)

    @property
    def inverse(self) -> Transform:
        return self.one_way


class RefuseUnsqueezed(Transform, Struct, frozen=True):
    """No change; views that may have the axis that `unsqueeze` inserts are refused, and the refusal says why.

    Attributes:
        unsqueeze: what inserts it.
        why: why they are refused.
        hint: what to do instead.
    """

    unsqueeze: UnsqueezeOf
    why: str
    hint: str

    def __str__(self) -> str:
        return "unchanged"

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        if any(self.unsqueeze.may_have_made(part.shape) for part in parts):
            raise UnsupportedError(self.why, self.hint)
        return list(parts)

    @property
    def inverse(self) -> Transform:
        return self
