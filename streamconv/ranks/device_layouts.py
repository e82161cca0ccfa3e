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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from ..tensors.grids import flat_index, unravelled


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
    def divisions(self) -> tuple[int, ...]:
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

    def index_of(self, rank: int) -> tuple[int, ...]:
        """Return which part of each dimension a rank holds.

        Args:
            rank: its number in the stage, from 0.
        """
        at = unravelled(rank, self.devices)
        index = [self._number(at, [*map(self._position, axes)]) for axes in self.axes]
        if self.shards > 1:
            index[0] = index[0] * self.shards + self._number(at, self.free) % self.shards
        return tuple(index)

    def _number(self, at: Sequence[int], positions: Sequence[int]) -> int:
        """Return the number that some of a rank's coordinates are, the first the most significant."""
        return flat_index([at[p] for p in positions], [self.devices[p] for p in positions])

    def _position(self, axis: int) -> int:
        return len(self.devices) - 1 - axis

    def _sizes(self, axes: Iterable[int]) -> Iterable[int]:
        return (self.devices[self._position(axis)] for axis in axes)


@lru_cache(maxsize=1024)
def slice_numbers(layout: DeviceLayout) -> tuple[int, ...]:
    """Return for each rank of a stage which slice it holds; slices are numbered in row-major order."""
    return tuple(flat_index(layout.index_of(rank), layout.divisions) for rank in range(layout.ranks))
