"""The algebra against NumPy: random trees of operations, random boxes, element by element."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv import dtypes, views
from streamconv.errors import UnsupportedError
from streamconv.grids import Grid, box_shape, whole
from streamconv.tensors import Extent, SourceFile, TensorRef

FILE = SourceFile(Path("model.safetensors"), 1 << 40)


def ref(name: str, shape: tuple[int, ...], dtype: str = "I64") -> TensorRef:
    kind = dtypes.from_safetensors(dtype, name)
    return TensorRef(name, kind, shape, (Extent(FILE, 0, math.prod(shape) * kind.itemsize),))


def indices(grid: Grid) -> tuple[list[tuple[int, ...]], list[int]]:
    """All source coordinates of a grid, and the buffer elements they go to: the definition, spelled out."""
    coordinates, places = [grid.start], [grid.offset]
    for loop in grid.loops:
        steps = range(loop.count)
        places = [p + i * loop.stride for p in places for i in steps]
        coordinates = [
            (*c[: loop.axis], c[loop.axis] + i * loop.step, *c[loop.axis + 1 :]) for c in coordinates for i in steps
        ]
    return coordinates, places


def read(view: views.View, box, data: dict[str, np.ndarray]) -> np.ndarray:
    out = np.full(math.prod(box_shape(box)), -1, np.int64)
    for piece in view.box(box):
        coordinates, places = indices(piece.grid)
        for c, p in zip(coordinates, places, strict=True):
            assert out[p] == -1, "an element was written twice"
            out[p] = 0 if isinstance(piece.leaf, views.Zeros) else data[piece.leaf.refs()[0].name][c]
    assert (out != -1).all(), "an element was not written"
    return out.reshape(box_shape(box))


@st.composite
def trees(draw) -> tuple[views.View, np.ndarray, dict[str, np.ndarray]]:
    """A view, what NumPy makes of the same operations, and the arrays on which both rest."""
    data: dict[str, np.ndarray] = {}

    def fresh(shape: tuple[int, ...]) -> tuple[views.View, np.ndarray]:
        name = f"t{len(data)}"
        array = np.arange(math.prod(shape), dtype=np.int64).reshape(shape) + 10_000 * (len(data) + 1)
        data[name] = array
        return views.leaf(ref(name, shape)), array

    view, array = fresh(tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 7))):
        axis = draw(st.integers(0, array.ndim - 1))
        n = array.shape[axis]
        word = draw(st.sampled_from(["permute", "cut", "concat", "stack", "split", "merge", "pad", "squeeze"]))
        if word == "permute":
            axes = draw(st.permutations(range(array.ndim)))
            view, array = views.permute(view, axes), array.transpose(axes)
        elif word == "cut":
            start = draw(st.integers(0, n - 1))
            stop, step = draw(st.integers(start + 1, n)), draw(st.integers(1, 3))
            view = views.cut(view, axis, start, stop, step)
            array = array[(slice(None),) * axis + (slice(start, stop, step),)]
        elif word == "concat" and array.size < 400:
            other, more = fresh((*array.shape[:axis], draw(st.integers(1, 4)), *array.shape[axis + 1 :]))
            view, array = views.concat([view, other], axis), np.concatenate([array, more], axis)
        elif word == "stack" and array.size < 400 and array.ndim < 5:
            others = [fresh(array.shape) for _ in range(draw(st.integers(0, 2)))]
            view = views.stack([view, *(o for o, _ in others)], axis)
            array = np.stack([array, *(a for _, a in others)], axis)
        elif word == "split" and array.ndim < 6:
            outer = draw(st.sampled_from([k for k in range(1, n + 1) if n % k == 0]))
            view = views.split(view, axis, outer)
            array = array.reshape(*array.shape[:axis], outer, n // outer, *array.shape[axis + 1 :])
        elif word == "merge" and axis + 1 < array.ndim:
            view = views.merge(view, axis)
            array = array.reshape(*array.shape[:axis], n * array.shape[axis + 1], *array.shape[axis + 2 :])
        elif word == "pad" and array.size < 400:
            size = n + draw(st.integers(0, 2))
            view = views.pad(view, axis, size)
            array = np.pad(array, [(0, size - n if a == axis else 0) for a in range(array.ndim)])
        elif word == "squeeze" and n == 1 and array.ndim > 1:
            view, array = views.squeeze(view, axis), array.squeeze(axis)
    return view, array, data


@settings(max_examples=400, deadline=None)
@given(trees(), st.data())
def test_any_box_of_any_tree_is_what_numpy_gives(tree, data) -> None:
    view, array, leaves = tree
    assert view.shape == array.shape
    starts = [data.draw(st.integers(0, n - 1)) for n in view.shape]
    box = tuple((a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, view.shape, strict=True))
    np.testing.assert_array_equal(read(view, box, leaves), array[tuple(slice(*b) for b in box)])
    np.testing.assert_array_equal(read(view, whole(view.shape), leaves), array)


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


@pytest.mark.parametrize("shape", [(2, 2), (3, 1), (2, 3), (6,)])
def test_scales_of_the_wrong_shape_are_named(shape) -> None:
    weight, scale = ref("w", (300, 200), "F8_E4M3"), ref("w_scale_inv", shape, "F32")
    with pytest.raises(UnsupportedError, match=r"w_scale_inv.*\[3, 2\]"):
        views.scaled(weight, scale)
    assert views.scaled(weight, ref("w_scale_inv", (3, 2), "F32")).dtype == dtypes.BF16
