"""Interleave and deinterleave: fused tensors, such as q, k and v per KV group, or gate and up row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from ..errors import UnsupportedError
from ..tensors import views
from ..tensors.view_nodes import View
from .sizes import Sizes
from .transforms import Transform

#: How tables say by which groups views are interleaved.
_GROUPS: dict[str | None, str] = {
    "1": "",
    "heads": " per head",
    "vision_heads": " per head",
    "kv": " per KV group",
    None: " row by row",
}


class Interleave(Transform, Struct, frozen=True):
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


class Deinterleave(Transform, Struct, frozen=True):
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
