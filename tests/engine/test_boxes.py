"""Boxes: they tile, they fit, and their runs are long on both sides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.engine.boxes import boxes, cells, is_scattered, source_position
from streamconv.tensors import views
from streamconv.tensors.extents import SourceFile
from streamconv.tensors.grids import Box, box_shape, runs, whole
from support.helpers import arrays, indices, ref, trees

MIB = 1 << 20


def filled(shape: tuple[int, ...], parts: list[Box]) -> np.ndarray:
    """How often each element is covered."""
    count = np.zeros(shape, np.int64)
    for box in parts:
        assert all(a < b for a, b in box)
        count[tuple(slice(*b) for b in box)] += 1
    return count


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(trees(), st.sampled_from([1, 2, 4, 8]), st.integers(8, 400))
def test_boxes_tile_every_view_just_once_and_fit_the_region(tree, itemsize, region) -> None:
    view, _, _ = tree
    found = [box for cell in cells(view) for box in boxes(view, cell, itemsize, region)]
    assert (filled(view.shape, found) == 1).all()
    assert max(math.prod(box_shape(box)) for box in found) * itemsize <= region


@settings(deadline=None)
@given(st.lists(st.integers(1, 16), max_size=3), st.integers(8, 3000))
def test_boxes_of_a_plain_tensor_are_contiguous_and_in_order(shape, region) -> None:
    shape = tuple(shape)
    view, end = views.leaf(ref("t", shape)), 0
    for box in boxes(view, whole(shape), 8, region):
        run, starts = runs(box, shape)
        assert run == math.prod(box_shape(box))
        assert list(starts) == [end]
        end += run
    assert end == math.prod(shape)


def source_runs(view: views.View, box: Box) -> list[int]:
    """Lengths, in elements, of the contiguous source runs that a box is read from."""
    found = []
    for piece in view.box(box):
        run, starts = runs(piece.grid.bounds(), piece.leaf.shape)
        found += [run for _ in starts]
    return found


def test_a_transposed_stack_has_runs_of_a_page_on_both_sides() -> None:
    """Two of Mixtral's experts, [14336, 4096] in bf16, as [E, in, out], 16 MiB at a time."""
    experts = [views.leaf(ref(f"e{i}", (14336, 4096), "BF16")) for i in range(2)]
    view = views.permute(views.stack(experts), (0, 2, 1))
    found = [box for cell in cells(view) for box in boxes(view, cell, 2, 16 * MIB)]
    assert sum(math.prod(box_shape(box)) for box in found) == math.prod(view.shape)
    for box in found:
        assert len(list(view.box(box))) == 1
        assert math.prod(box_shape(box)) * 2 <= 16 * MIB
    regular = [box for box in found if box_shape(box) == box_shape(found[0])]
    assert len(regular) > len(found) * 0.8
    for box in regular:
        assert min(source_runs(view, box)) * 2 >= 4096
        assert runs(box, view.shape)[0] * 2 >= 4096


@pytest.mark.parametrize("region", [8 * MIB, 16 * MIB, 128 * MIB])
def test_boxes_of_a_transpose_follow_the_source(region) -> None:
    view = views.permute(views.leaf(ref("w", (14336, 4096), "BF16")), (1, 0))
    (cell,) = cells(view)
    firsts = [next(view.box(box)).grid.start for box in boxes(view, cell, 2, region)]
    assert firsts == sorted(firsts)


def test_what_is_transposed_is_scattered_until_it_fits() -> None:
    weight = views.leaf(ref("w", (7168, 2048), "BF16"))
    turned = views.permute(weight, (1, 0))
    assert is_scattered(turned, 2, 22 * MIB)
    assert not is_scattered(turned, 2, 28 * MIB)
    assert not is_scattered(weight, 2, 1 * MIB)
    assert is_scattered(views.stack([turned, turned]), 2, 22 * MIB)
    assert not is_scattered(views.stack([turned, turned]), 2, 28 * MIB), "its experts are cells"
    assert not is_scattered(views.leaf(ref("none", (0, 3))), 2, 1)


def test_a_region_of_one_element_is_enough() -> None:
    (part,), _ = arrays((3, 2))
    view = views.permute(part, (1, 0))
    found = [box for cell in cells(view) for box in boxes(view, cell, 8, 8)]
    assert len(found) == 6


def test_experts_are_cells_of_their_own() -> None:
    parts, _ = arrays(*[(4, 3)] * 5)
    assert [cell[0] for cell in cells(views.stack(parts))] == [(i, i + 1) for i in range(5)]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_a_tensor_without_elements_has_no_work(shape) -> None:
    assert list(cells(views.leaf(ref("t", shape)))) == []


def test_a_number_is_one_box() -> None:
    view = views.leaf(ref("t", ()))
    assert list(cells(view)) == [()]
    assert list(boxes(view, (), 8, 8)) == [()]
    assert list(view.box(())) == list(view.box(()))
    assert indices(next(view.box(())).grid) == ([()], [0])


def test_the_position_is_that_of_the_first_element_on_disk() -> None:
    files = [SourceFile(ref("x", ()).extents[0].file.path.with_name(name), 1 << 40) for name in ("b", "a")]
    one, two = (views.leaf(ref(f"t{i}", (4, 3), "BF16", file, 1000)) for i, file in enumerate(files))
    view = views.permute(views.stack([one, two]), (0, 2, 1))
    assert source_position(view, ((0, 1), (0, 3), (0, 4))) == ("b", 1000)
    assert source_position(view, ((1, 2), (2, 3), (1, 4))) == ("a", 1000 + 2 * (1 * 3 + 2))
    assert source_position(views.zeros((2,), one.dtype), ((0, 2),)) == ("", 0)
