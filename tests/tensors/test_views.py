"""The algebra against NumPy: random trees of operations, random boxes, element by element."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.errors import UnsupportedError
from streamconv.tensors import views
from streamconv.tensors.grids import whole
from support.helpers import indices, read, ref, trees


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(trees(), st.data())
def test_any_box_of_any_tree_is_what_numpy_gives(tree, data) -> None:
    view, array, leaves = tree
    assert view.shape == array.shape
    starts = [data.draw(st.integers(0, n - 1)) for n in view.shape]
    box = tuple((a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, view.shape, strict=True))
    np.testing.assert_array_equal(read(view, box, leaves), array[tuple(slice(*b) for b in box)])
    np.testing.assert_array_equal(read(view, whole(view.shape), leaves), array)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(trees())
def test_parts_on_the_two_sides_of_a_seam_share_no_source_element(tree) -> None:
    view, _, _ = tree
    seen: dict[tuple, tuple] = {}
    edges = [(0, *s, n) for s, n in zip(view.seams(), view.shape, strict=True)]
    cells = [()]
    for e in edges:
        assert list(e) == sorted(set(e)), "seams lie inside, in order"
        cells = [(*c, pair) for c in cells for pair in pairwise(e)]
    for cell in cells:
        for piece in view.box(cell):
            if piece.leaf.refs():
                for c in indices(piece.grid)[0]:
                    assert seen.setdefault((piece.leaf.refs()[0].name, c), cell) == cell


def test_kv_groups_are_few_strided_copies() -> None:
    """Eight groups of (4 q heads, k, v) rows: three pieces, not one a row."""
    q, k, v = (views.leaf(ref(n, (rows, 16))) for n, rows in (("q", 32 * 8), ("k", 8 * 8), ("v", 8 * 8)))
    parts = [views.split(part, 0, 8) for part in (q, k, v)]
    fused = views.merge(views.concat(parts, 1), 0)
    assert len(list(fused.box(whole(fused.shape)))) == 3


def test_alternate_rows_come_back_as_one_piece() -> None:
    fused = views.leaf(ref("w_gate_hidden", (2000, 16)))
    gate = views.merge(views.cut(views.split(fused, 0, 1000), 1, 0, 1), 0)
    pieces = list(gate.box(((1, 999), (0, 16))))
    assert len(pieces) == 1
    assert pieces[0].grid.start == (2, 0)


def test_a_stacked_and_merged_tensor_is_cut_at_its_experts() -> None:
    experts = [views.leaf(ref(f"e{i}", (6, 4))) for i in range(3)]
    merged = views.merge(views.permute(views.stack(experts), (0, 2, 1)), 0)
    assert merged.shape == (12, 6)
    assert merged.seams() == ((4, 8), ())


@pytest.mark.parametrize(
    "build",
    [
        lambda a, b: views.concat([a, b], 0),
        lambda a, b: views.stack([a, b]),
        lambda a, b: views.split(a, 0, 5),
        lambda a, b: views.split(a, 0, 0),
        lambda a, b: views.cut(a, 0, 2, 9),
        lambda a, b: views.squeeze(a, 0),
        lambda a, b: views.permute(a, (0, 0)),
        lambda a, b: views.pad(a, 0, 1),
        lambda a, b: views.concat([a, views.leaf(ref("c", (4, 3), "F32"))], 0),
    ],
)
def test_what_does_not_fit_is_refused(build) -> None:
    with pytest.raises(UnsupportedError):
        build(views.leaf(ref("a", (4, 3))), views.leaf(ref("b", (4, 2))))
