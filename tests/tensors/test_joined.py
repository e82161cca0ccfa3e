"""streamconv.tensors.joined: tensors in slices under any operations are what NumPy gives for the whole ones."""

import math
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.tensors import dtypes, views
from streamconv.tensors.extents import SourceFile
from streamconv.tensors.grids import box_shape
from streamconv.tensors.joined import Joined, Part
from streamconv.tensors.refs import TensorRef
from streamconv.tensors.slices import Slices
from support.helpers import indices, ref

I64 = dtypes.from_safetensors("I64", "w")


def in_slices(name, shape, pieces, itemsize=8):
    """A tensor whose slice k is all of file k; its parts have these shapes."""
    count, size = math.prod(pieces), math.prod(shape) * itemsize
    files = tuple(SourceFile(Path(f"{name}_{number}.ckpt"), size) for number in range(count))
    table = array("q", [value for number in range(count) for value in (number, number, 0, size)])
    slices = Slices(tuple(pieces), tuple(shape), files, table, array("q", range(count + 1)))
    whole = tuple(n * k for n, k in zip(shape, pieces, strict=True))
    return TensorRef(name, I64, whole, (), None, slices)


def read(view, box, data):
    """A box of a view, element by element, out of the slices; every element has to be written just once."""
    out = np.full(math.prod(box_shape(box)), -1, np.int64)
    for piece in view.box(box):
        low = piece.leaf.slices.origin(piece.leaf.number) if isinstance(piece.leaf, Part) else (0,) * 9
        coordinates, places = indices(piece.grid)
        for c, p in zip(coordinates, places, strict=True):
            assert out[p] == -1
            assert all(0 <= i < n for i, n in zip(c, piece.leaf.shape, strict=True)), "outside of its slice"
            whole = tuple(i + o for i, o in zip(c, low, strict=False))
            out[p] = data[piece.leaf.refs()[0].name][whole] if piece.leaf.refs() else 0
    return out.reshape(box_shape(box))


@st.composite
def joined_trees(draw):
    data = {}

    def fresh(shape):
        name = f"t{len(data)}"
        data[name] = np.arange(math.prod(shape), dtype=np.int64).reshape(shape) + 10_000 * (len(data) + 1)
        pieces = [draw(st.sampled_from([k for k in range(1, n + 1) if n % k == 0])) for n in shape]
        if draw(st.booleans()):
            return views.leaf(in_slices(name, [n // k for n, k in zip(shape, pieces, strict=True)], pieces)), data[name]
        return views.leaf(ref(name, shape)), data[name]

    view, array_ = fresh(tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 6))):
        axis = draw(st.integers(0, array_.ndim - 1))
        n = array_.shape[axis]
        word = draw(st.sampled_from(["permute", "cut", "concat", "split", "merge", "pad"]))
        if word == "permute":
            axes = draw(st.permutations(range(array_.ndim)))
            view, array_ = views.permute(view, axes), array_.transpose(axes)
        elif word == "cut":
            start = draw(st.integers(0, n - 1))
            stop, step = draw(st.integers(start + 1, n)), draw(st.integers(1, 3))
            view = views.cut(view, axis, start, stop, step)
            array_ = array_[(slice(None),) * axis + (slice(start, stop, step),)]
        elif word == "concat" and array_.size < 400:
            other, more = fresh((*array_.shape[:axis], draw(st.integers(1, 4)), *array_.shape[axis + 1 :]))
            view, array_ = views.concat([view, other], axis), np.concatenate([array_, more], axis)
        elif word == "split" and array_.ndim < 6:
            outer = draw(st.sampled_from([k for k in range(1, n + 1) if n % k == 0]))
            view = views.split(view, axis, outer)
            array_ = array_.reshape(*array_.shape[:axis], outer, n // outer, *array_.shape[axis + 1 :])
        elif word == "merge" and axis + 1 < array_.ndim:
            view = views.merge(view, axis)
            array_ = array_.reshape(*array_.shape[:axis], n * array_.shape[axis + 1], *array_.shape[axis + 2 :])
        elif word == "pad" and array_.size < 400:
            size = n + draw(st.integers(0, 2))
            view = views.pad(view, axis, size)
            array_ = np.pad(array_, [(0, size - n if a == axis else 0) for a in range(array_.ndim)])
    return view, array_, data


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(joined_trees(), st.data())
def test_any_box_of_any_tree_is_what_numpy_gives(tree, data):
    view, expected, leaves = tree
    starts = [data.draw(st.integers(0, n - 1)) for n in view.shape]
    box = tuple((a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, view.shape, strict=True))
    np.testing.assert_array_equal(read(view, box, leaves), expected[tuple(slice(*b) for b in box)])


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=4))
def test_seams_are_where_slices_meet(axes):
    view = views.leaf(in_slices("w", [n for n, _ in axes], [k for _, k in axes]))
    assert isinstance(view, Joined)
    assert view.seams() == tuple(tuple(range(n, n * k, n)) for n, k in axes)
    assert [leaf.refs() for leaf in view.leaves()] == [(view.ref,)]


def test_a_piece_for_each_slice_that_a_box_touches():
    view = views.leaf(in_slices("w", (4, 3), (2, 5)))
    pieces = list(view.box(((3, 8), (2, 7))))
    assert sorted(piece.leaf.number for piece in pieces) == [0, 1, 2, 5, 6, 7]
    assert {piece.leaf.ref.shape for piece in pieces} == {(4, 3)}


def test_positions_keep_the_slices_of_a_tensor_together():
    """Work is sorted by them: rows of all slices come before the next rows of any."""
    view = views.leaf(in_slices("w", (4, 3), (1, 2)))
    at = [next(view.box(((row, row + 1), (column, column + 1)))) for row in range(4) for column in (0, 3)]
    positions = [piece.leaf.position(piece.grid.start) for piece in at]
    assert positions == sorted(positions)
    assert {path for path, _ in positions} == {"w_0.ckpt"}


def test_a_tensor_without_elements():
    view = views.leaf(in_slices("w", (0, 3), (1, 2)))
    assert view.shape == (0, 6)
    part = next(iter(views.leaf(in_slices("v", (2,), (2,))).box(((0, 1),)))).leaf
    assert part.position((1,)) == ("v_0.ckpt", 0)
