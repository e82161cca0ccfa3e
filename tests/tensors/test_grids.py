"""Grids against their definition: the list of coordinates and places that they stand for."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.tensors.grids import (
    Box,
    Grid,
    Loop,
    box_grid,
    box_parts,
    box_shape,
    clip,
    flat_index,
    joined,
    runs,
    unmerge,
    whole,
    without,
)
from support.helpers import indices


@st.composite
def grids(draw: st.DrawFn, axes: int = 2) -> Grid:
    """A grid as views make them: on every axis loops of growing steps that do not overlap."""
    loops = []
    for axis in range(axes):
        step = draw(st.integers(1, 3))
        for _ in range(draw(st.integers(0, 2))):
            count = draw(st.integers(2, 4))
            loops.append((count, axis, step))
            step = step * count + draw(st.integers(0, 3))
    order, stride = draw(st.permutations(loops)), 1
    strided = []
    for count, axis, step in order:
        strided.append(Loop(count, axis, step, stride))
        stride *= count
    start = tuple(draw(st.integers(0, 9)) for _ in range(axes))
    return Grid(start, tuple(draw(st.permutations(strided))), draw(st.integers(0, 5)))


@st.composite
def boxes_in(draw: st.DrawFn) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    return tuple((a, draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True)), shape


def elements(grid: Grid) -> list[tuple[tuple[int, ...], int]]:
    return sorted(zip(*indices(grid), strict=True))


@settings(deadline=None)
@given(boxes_in())
def test_the_grid_of_a_box_is_its_elements_in_row_major_order(drawn) -> None:
    box, _ = drawn
    grid = box_grid(box)
    coordinates = list(product(*(range(*b) for b in box)))
    assert elements(grid) == [(c, i) for i, c in enumerate(coordinates)]
    assert grid.count == len(coordinates)
    assert grid.bounds() == box


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(grids())
def test_bounds_span_and_count_are_those_of_its_elements(grid) -> None:
    coordinates, places = indices(grid)
    assert grid.count == len(coordinates) == len(set(places))
    for axis in (0, 1):
        low, high = min(c[axis] for c in coordinates), max(c[axis] for c in coordinates)
        assert (low, high + 1) == grid.bounds()[axis]
        assert grid.span(axis) == high - low


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(grids(), st.integers(0, 1), st.integers(0, 40), st.integers(0, 20))
def test_clipping_keeps_just_what_lies_inside(grid, axis, low, length) -> None:
    kept = [element for part in clip(grid, axis, low, low + length) for element in elements(part)]
    assert sorted(kept) == [(c, p) for c, p in elements(grid) if low <= c[axis] < low + length]


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(grids(), st.integers(0, 1), st.integers(1, 9))
def test_a_merged_axis_comes_apart_in_quotient_and_rest(grid, axis, size) -> None:
    parts = [element for part in unmerge(grid, axis, size) for element in elements(part)]
    expected = [((*c[:axis], *divmod(c[axis], size), *c[axis + 1 :]), p) for c, p in elements(grid)]
    assert sorted(parts) == sorted(expected)


@settings(deadline=None)
@given(grids(), st.data())
def test_a_part_of_a_loop_is_a_part_of_the_elements(grid, data) -> None:
    for loop in grid.loops:
        first = data.draw(st.integers(0, loop.count - 1))
        stop = data.draw(st.integers(first + 1, loop.count))
        cuts = [(0, first), (first, stop), (stop, loop.count)]
        parts = [e for a, b in cuts if a < b for e in elements(grid.part(loop, a, b))]
        assert sorted(parts) == elements(grid)


@settings(max_examples=200, deadline=None)
@given(boxes_in())
def test_runs_tile_the_box_and_cannot_be_longer(drawn) -> None:
    box, shape = drawn
    run, starts = runs(box, shape)
    flat = [flat_index(c, shape) for c in product(*(range(*b) for b in box))]
    begins = list(starts)
    assert [first + i for first in begins for i in range(run)] == flat
    if box and all(n > 1 for n in box_shape(box)):
        assert all(b != a + run for a, b in pairwise(begins))


def test_a_whole_tensor_is_one_run() -> None:
    run, starts = runs(whole((3, 4, 5)), (3, 4, 5))
    assert (run, list(starts)) == (60, [0])
    run, starts = runs((), ())
    assert (run, list(starts)) == (1, [0])


@pytest.mark.parametrize("rows", [2, 5, 1000])
def test_rows_of_a_merged_axis_stay_few_grids(rows) -> None:
    """Head, body and tail, however long it is."""
    grid = box_grid(((3, rows * 7 - 2), (0, 4)))
    assert len(list(unmerge(grid, 0, 7))) <= 3


@st.composite
def boxes_of(draw: st.DrawFn, rank: int) -> Box:
    pairs = [sorted(draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))) for _ in range(rank)]
    return tuple((low, high + 1) for low, high in pairs)


def points(box: Box) -> set[tuple[int, ...]]:
    return set(product(*(range(low, high) for low, high in box)))


@pytest.mark.slow
@given(st.integers(0, 3).flatmap(lambda rank: st.tuples(boxes_of(rank), boxes_of(rank))))
def test_what_of_a_box_lies_outside_another(pair) -> None:
    one, other = pair
    parts = [points(part) for part in without(one, other)]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert set().union(*parts) == points(one) - points(other)


@given(st.integers(1, 3).flatmap(lambda rank: st.tuples(boxes_of(rank), boxes_of(rank))))
def test_two_boxes_that_make_one(pair) -> None:
    one, other = pair
    both = joined(one, other)
    if both is not None:
        assert points(both) == points(one) | points(other)
        assert not points(one) & points(other)


@given(st.integers(0, 3).flatmap(boxes_of), st.integers(1, 40))
def test_the_parts_of_a_box_are_runs_of_a_box_in_its_order(box, most) -> None:
    parts = list(box_parts(box, most))
    assert [point for part in parts for point in sorted(points(part))] == sorted(points(box))
    assert all(len(points(part)) <= most for part in parts)
