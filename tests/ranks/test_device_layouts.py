"""streamconv.ranks.device_layouts: the slice rule, against golden checkpoints and an independent rule in NumPy."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamconv.ranks import strategies
from streamconv.ranks.device_layouts import DeviceLayout
from support import golden_ranks

LEGACY = [case for case in golden_ranks.legacy_cases() if case.strategy_files]
by_name = pytest.mark.parametrize("case", LEGACY, ids=lambda case: case.name)


def part_of(layout, rank, shape):
    """The slices of a whole tensor of this shape that a rank holds."""
    sizes = [size // divisions for size, divisions in zip(shape, layout.divisions, strict=True)]
    return tuple(slice(at * size, (at + 1) * size) for at, size in zip(layout.index_of(rank), sizes, strict=True))


def merged(held, layout, first_rank, name, shape):
    """The whole tensor, put together from whoever has a slice of it."""
    kind = next(tensors[name].dtype for tensors in held.values() if name in tensors)
    whole, seen = np.zeros(shape, kind), np.zeros(shape, bool)
    for rank in range(layout.ranks):
        if name in held.get(first_rank + rank, {}):
            part = part_of(layout, rank, shape)
            assert whole[part].shape == held[first_rank + rank][name].shape
            whole[part], seen[part] = held[first_rank + rank][name], True
    assert seen.all()
    return whole


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@by_name
def test_slices_put_together_are_the_whole_tensor_and_it_cut_is_every_slice(case):
    held = {rank: golden_ranks.arrays(path) for rank, path in case.rank_files.items()}
    strategy = strategies.read(case.strategy_files)
    compared = 0
    for stage in strategy.stages:
        for name, layout in stage.layouts.items():
            _, shape, expected = case.unified[name]
            whole = merged(held, layout, stage.first_rank, name, shape)
            assert digest(whole) == expected
            for rank in range(stage.ranks):
                found = case.slices.get(stage.first_rank + rank, {}).get(name)
                if found:
                    piece = whole[part_of(layout, rank, shape)]
                    assert (piece.shape, digest(piece)) == found[1:]
                    compared += 1
    named = {name for stage in strategy.stages for name in stage.layouts}
    assert compared == sum(name in named for tensors in case.slices.values() for name in tensors)


def numpy_index(layout, rank):
    """The same rule by fancy slicing: which of the parts [0, 1, …) of each dimension a rank has."""
    devices, axes, shards = layout.devices, layout.axes, layout.optimizer_shards
    grid = np.arange(math.prod(devices)).reshape(devices)
    at = [int(at) for at in np.argwhere(grid == rank)[0]]
    count = len(devices)
    index = []
    for dimension in axes:
        positions = [count - 1 - axis for axis in dimension]
        order = positions + [p for p in range(count) if p not in positions]
        # All devices in rows: a row for each part of the dimension, in order.
        rows = grid.transpose(order).reshape(math.prod(devices[p] for p in positions), -1)
        index.append(int(np.nonzero((rows == rank).any(axis=1))[0][0]))
    free = [p for p in range(count) if count - 1 - p not in {axis for dimension in axes for axis in dimension}]
    copies = grid[tuple(slice(None) if p in free else at[p] for p in range(count))].ravel()
    parts = (copies.size if shards == -1 else shards) or 1
    if axes and parts > 1:
        index[0] = index[0] * parts + [int(r) for r in copies].index(rank) % parts
    return tuple(index)


@st.composite
def layouts(draw):
    devices = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    unused = list(draw(st.permutations(range(len(devices)))))
    axes = []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(0, min(2, len(unused))))
        axes.append(tuple(unused[:count]))
        unused = unused[count:]
    free = math.prod(devices[len(devices) - 1 - axis] for axis in unused)
    shards = draw(st.sampled_from([0, -1, *(n for n in range(1, free + 1) if free % n == 0)]))
    return DeviceLayout(devices, tuple(axes), shards)


@given(layouts())
def test_every_rank_has_what_an_independent_rule_says(layout):
    assert [layout.index_of(r) for r in range(layout.ranks)] == [numpy_index(layout, r) for r in range(layout.ranks)]


@given(layouts())
def test_ranks_hold_every_piece_and_each_equally_often(layout):
    held = [layout.index_of(rank) for rank in range(layout.ranks)]
    assert set(held) == set(np.ndindex(layout.divisions))
    assert len({held.count(piece) for piece in held}) == 1


def test_one_list_is_a_map_of_dimensions_or_the_axes_of_one():
    layout = DeviceLayout((2, 3), ((1,), (0,)), may_be_list=True)
    assert layout.for_dims(2) == DeviceLayout((2, 3), ((1,), (0,)))
    assert layout.for_dims(1) == DeviceLayout((2, 3), ((1, 0),))
    assert layout.for_dims(1).divisions == (6,)
    assert layout.for_dims(3) is None
    assert not layout.for_dims(2).may_be_list
    assert DeviceLayout((2, 3), ((1,), (0,))).for_dims(1) is None


def test_a_scalar_is_not_cut():
    assert DeviceLayout((2,), ((),)).for_dims(0) == DeviceLayout((2,), ())
    assert DeviceLayout((2,), (), -1).divisions == DeviceLayout((2,), (), -1).index_of(1) == ()
    assert DeviceLayout((2,), ((0,),)).for_dims(0) is None
