"""How MindSpore cuts a tensor for the devices of a pipeline stage: which slice each rank holds.

Devices form a matrix; a rank's coordinates in it are its number in mixed radix, the last axis fastest. A dimension of a
tensor that is mapped to axis `a`, counted from the right, is cut into as many equal parts as that axis is long, and a
rank has the part of its coordinate. Several axes on one dimension: the first listed is the most significant. Axes that
no dimension names hold copies, unless optimizer sharding cuts dimension 0 once more, over the coordinates of these free
axes, the leftmost the most significant.

Source: MindSpore 2.10, `DeviceMatrix::GetDevicesByTensorMap`, `CreateGroupForOptShard`, and
`mindspore.parallel._tensor._load_tensor_by_layout` (measured). `transform_checkpoints` differs in one case, one free
axis at position 0 with a tensor map that does not descend; what a training saves follows the rule here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property


@dataclass(frozen=True)
class DeviceLayout:
    """How one tensor is cut for the ranks of a stage.

    Attributes:
        devices: the device matrix.
        axes: per dimension of the tensor, the device axes that cut it, counted from the right, the most significant
            first; empty where it is not cut.
        optimizer_shards: into how many parts optimizer sharding cuts dimension 0 of a slice: 0 for not at all, -1 for
            as many as the free axes have.
        shape: the whole tensor's shape, where that is stated.
        may_be_list: whether `axes` come from one list of numbers, with which a strategy says one axis for each of
            several dimensions, and also several axes of one dimension; `for_dims` settles it. Not compared.
    """

    devices: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    optimizer_shards: int = 0
    shape: tuple[int, ...] | None = None
    may_be_list: bool = field(default=False, compare=False)

    def for_dims(self, dims: int) -> DeviceLayout | None:
        """Return the layout as it is for a tensor of so many dimensions, `None` if it is for another number.

        Args:
            dims: how many the tensor has, whole or in slices.
        """
        if dims == len(self.axes):
            return replace(self, may_be_list=False) if self.may_be_list else self
        if dims == 0 and not any(self.axes):
            return replace(self, axes=(), may_be_list=False)
        if dims != 1 or not self.may_be_list:
            return None
        return replace(self, axes=(tuple(axis for axes in self.axes for axis in axes),), may_be_list=False)

    @property
    def ranks(self) -> int:
        """How many ranks the stage has."""
        return math.prod(self.devices)

    @cached_property
    def pieces(self) -> tuple[int, ...]:
        """Into how many equal parts each dimension is cut, by tensor maps and by optimizer sharding."""
        cut = [math.prod(self._sizes(axes)) for axes in self.axes]
        if self.shards > 1:
            cut[0] *= self.shards
        return tuple(cut)

    @cached_property
    def free(self) -> tuple[int, ...]:
        """Positions in the device matrix that no dimension names."""
        named = {self._position(axis) for axes in self.axes for axis in axes}
        return tuple(p for p, size in enumerate(self.devices) if size > 1 and p not in named)

    @cached_property
    def shards(self) -> int:
        """Into how many parts optimizer sharding cuts dimension 0 of a slice, 1 where it does not."""
        if not self.axes or not self.optimizer_shards:
            return 1
        if self.optimizer_shards < 0:
            return math.prod(self.devices[position] for position in self.free)
        return self.optimizer_shards

    def piece_of(self, rank: int) -> tuple[int, ...]:
        """Return which part of each dimension a rank holds.

        Args:
            rank: its number in the stage, from 0.
        """
        at = self._coordinates(rank)
        index = [
            _mixed_radix(((at[self._position(axis)]), self.devices[self._position(axis)]) for axis in axes)
            for axes in self.axes
        ]
        if self.shards > 1:
            part = _mixed_radix((at[position], self.devices[position]) for position in self.free) % self.shards
            index[0] = index[0] * self.shards + part
        return tuple(index)

    def _position(self, axis: int) -> int:
        return len(self.devices) - 1 - axis

    def _sizes(self, axes: Iterable[int]) -> Iterable[int]:
        return (self.devices[self._position(axis)] for axis in axes)

    def _coordinates(self, rank: int) -> tuple[int, ...]:
        found = []
        for size in reversed(self.devices):
            rank, at = divmod(rank, size)
            found.append(at)
        return tuple(reversed(found))


def _mixed_radix(digits: Iterable[tuple[int, int]]) -> int:
    """Return the number of these digits, each with its base, the first the most significant."""
    number = 0
    for digit, base in digits:
        number = number * base + digit
    return number
