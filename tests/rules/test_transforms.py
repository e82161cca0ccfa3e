"""Transforms: each has an inverse, and the fused ones are what NumPy, row by row, makes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.errors import UnsupportedError, UsageError
from streamconv.rules.interleaving import Deinterleave, Interleave
from streamconv.rules.one_way import OneWay
from streamconv.rules.padding import InsertZeros, Pad
from streamconv.rules.sizes import Sizes
from streamconv.rules.transforms import (
    Chain,
    Flatten,
    Identity,
    PerTensor,
    Squeeze,
    ToInteger,
    Transform,
    Transpose,
    Unflatten,
    Unsqueeze,
    UnsqueezeOf,
)
from support.helpers import arrays, evaluate

NONE = Sizes({}, {})
GQA = Sizes({"heads": "heads", "kv": "kv"}, {"heads": 6, "kv": 3})


def shapes_after(transform: Transform, shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [view.shape for view in transform.apply(arrays(*shapes)[0], NONE)]


@st.composite
def words(draw: st.DrawFn, shape: tuple[int, ...]) -> Transform:
    """A word from one view to one that fits a shape."""
    axis = draw(st.integers(0, len(shape) - 1))
    divisors = [k for k in range(1, shape[axis] + 1) if shape[axis] % k == 0]
    choices: list[Transform] = [
        Identity(),
        Transpose(tuple(draw(st.permutations(range(len(shape)))))),
        Unflatten(axis, str(draw(st.sampled_from(divisors)))),
        Unsqueeze(draw(st.integers(0, len(shape)))),
        Pad(axis, str(shape[axis]), str(draw(st.integers(1, 5)))),
    ]
    if axis + 1 < len(shape):
        choices.append(Flatten(axis, str(shape[axis])))
    if shape[axis] == 1 and len(shape) > 1:
        choices.append(Squeeze(axis))
    return draw(st.sampled_from(choices))


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Transform, list[tuple[int, ...]]]:
    """A transform, and shapes that it fits: one view or several, interleaved, then some more transforms."""
    ratio = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    rank = draw(st.integers(1, 3))
    axis, rest = draw(st.integers(0, rank - 1)), draw(st.lists(st.integers(1, 3), min_size=rank - 1, max_size=rank - 1))
    groups = draw(st.sampled_from([None, "1", "2", "3"]))
    unit = draw(st.integers(1, 3)) * int(groups or "1")
    shapes: list[tuple[int, ...]] = [(*rest[:axis], r * unit, *rest[axis:]) for r in ratio]
    first = PerTensor(tuple(draw(st.sampled_from([Identity(), Pad(axis, str(s[axis]), "1")])) for s in shapes))
    layout: Transform = first >> Interleave(tuple(map(str, ratio)), groups, axis)
    for _ in range(draw(st.integers(0, 3))):
        (shape,) = shapes_after(layout, shapes)
        if len(shape) < 6:
            layout = layout >> draw(words(shape))
    return layout, shapes


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(layouts())
def test_the_inverse_gives_every_tensor_back(drawn) -> None:
    layout, shapes = drawn
    parts, data = arrays(*shapes)
    there = layout.apply(parts, NONE)
    back = layout.inverse.apply(there, NONE)
    for view, array in zip(back, data.values(), strict=True):
        np.testing.assert_array_equal(evaluate(view, data), array)
    again = layout.inverse.inverse.apply(back, NONE)
    np.testing.assert_array_equal(evaluate(again[0], data), evaluate(there[0], data))


@pytest.mark.parametrize(
    "word",
    [
        Identity(),
        Transpose(),
        Transpose((2, 0, 1)),
        Interleave(("heads", "kv", "kv"), "kv"),
        Interleave(("1", "1"), None, 1),
        Unflatten(1, "heads"),
        Flatten(0, "heads"),
        Unsqueeze(2),
        Squeeze(0),
        UnsqueezeOf(3, 2),
        OneWay("why", "hint"),
        Pad(0, "kv", "16"),
        PerTensor((Transpose(), Identity())),
        Chain((Transpose(), Pad(0, "kv", "16"))),
    ],
)
def test_the_inverse_of_the_inverse_is_the_word_itself(word) -> None:
    assert word.inverse.inverse == word


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_q_k_v_per_group(kv, queries, head_dim, hidden) -> None:
    """Against the words of the documentation: for each KV group its q heads, then its k head, then its v head."""
    heads = kv * queries
    sizes = Sizes({"heads": "heads", "kv": "kv"}, {"heads": heads, "kv": kv})
    parts, data = arrays((heads * head_dim, hidden), (kv * head_dim, hidden), (kv * head_dim, hidden))
    q, k, v = data.values()
    rows = []
    for group in range(kv):
        for head in range(group * queries, (group + 1) * queries):
            for row in range(head_dim):
                rows.append(q[head * head_dim + row])
        for tensor in (k, v):
            for row in range(head_dim):
                rows.append(tensor[group * head_dim + row])
    (fused,) = Interleave(("heads", "kv", "kv"), "kv").apply(parts, sizes)
    np.testing.assert_array_equal(evaluate(fused, data), np.array(rows))
    (blocks,) = Interleave(("heads", "kv", "kv")).apply(parts, sizes)
    np.testing.assert_array_equal(evaluate(blocks, data), np.concatenate([q, k, v]))


def test_gate_and_up_alternate_row_by_row() -> None:
    parts, data = arrays((5, 3), (5, 3))
    (fused,) = Interleave(("1", "1"), None).apply(parts, NONE)
    whole = evaluate(fused, data)
    for row in range(5):
        np.testing.assert_array_equal(whole[2 * row], data["t0"][row])
        np.testing.assert_array_equal(whole[2 * row + 1], data["t1"][row])


def test_as_many_groups_as_fit_follow_the_ratio() -> None:
    parts, data = arrays((8,), (4,))
    (fused,) = Interleave(("4", "2"), None).apply(parts, NONE)
    a, b = data["t0"], data["t1"]
    expected = [x for i in range(4) for x in (a[2 * i], a[2 * i + 1], b[i])]
    np.testing.assert_array_equal(evaluate(fused, data), expected)


def test_columns_can_be_joined_too() -> None:
    parts, data = arrays((2, 4), (2, 2))
    (fused,) = Interleave(("2", "1"), "2", axis=1).apply(parts, NONE)
    a, b = data["t0"], data["t1"]
    expected = np.concatenate([a[:, :2], b[:, :1], a[:, 2:], b[:, 1:]], 1)
    np.testing.assert_array_equal(evaluate(fused, data), expected)


def test_an_axis_is_inserted_only_where_the_number_of_axes_says_so() -> None:
    word, before = UnsqueezeOf(3, 2), [(4, 2, 3), (4, 2), (4, 2, 5, 3)]
    after = shapes_after(word, before)
    assert after == [(4, 2, 1, 3), (4, 2), (4, 2, 5, 3)]
    assert shapes_after(word.inverse, after) == before


def test_a_one_way_word_changes_nothing_on_its_way_and_says_why_it_has_no_other() -> None:
    word = OneWay("names do not tell", "ask somebody")
    parts, _ = arrays((4, 2))
    assert word.inverse.apply(parts, NONE) == parts
    with pytest.raises(UnsupportedError, match=r"names do not tell\nhint: ask somebody"):
        word.apply(parts, NONE)


def test_padding_is_zeros_up_to_the_multiple() -> None:
    parts, data = arrays((5, 2))
    (padded,) = Pad(0, "5", "4").apply(parts, NONE)
    np.testing.assert_array_equal(evaluate(padded, data), np.pad(data["t0"], ((0, 3), (0, 0))))


def test_a_number_that_nothing_tells_is_asked_for() -> None:
    parts, _ = arrays((6,), (3,), (3,))
    with pytest.raises(UsageError, match="num_heads"):
        Interleave(("heads", "kv", "kv"), "kv").apply(parts, Sizes({"heads": "num_heads", "kv": "num_kv"}, {}))


@pytest.mark.parametrize(
    ("word", "shapes"),
    [
        (Interleave(("heads", "kv", "kv"), "kv"), [(6, 2), (3, 2), (2, 2)]),
        (Interleave(("heads", "kv", "kv"), "kv"), [(6, 2), (6, 2), (6, 2)]),
        (Interleave(("heads", "kv", "kv"), "kv"), [(6, 2), (3, 2), (3, 4)]),
        (Interleave(("heads", "kv", "kv"), "kv"), [(), (), ()]),
        (Interleave(("heads", "kv", "kv"), "4"), [(6, 2), (3, 2), (3, 2)]),
        (Interleave(("1", "1"), None, axis=1), [(4,), (4,)]),
        (Interleave(("1", "1"), None), [(4, 2), (5, 2)]),
        (Interleave(("1", "1"), None), [(0, 2), (0, 2)]),
        (Interleave(("heads", "kv", "kv"), "kv").inverse, [(13, 2)]),
        (Interleave(("heads", "kv", "kv"), "kv").inverse, [(16, 2)]),
        (Interleave(("heads", "kv", "kv"), "kv").inverse, [()]),
        (Interleave(("1", "1"), None).inverse, [(7,)]),
        (Interleave(("1", "1"), None).inverse, [(3,)]),
        (Interleave(("1", "1"), axis=1).inverse, [(4,)]),
        (Transpose((0, 2, 1)), [(4, 4)]),
        (Transpose(), [(4,)]),
        (Unflatten(0, "kv"), [(4,)]),
        (Unflatten(1, "kv"), [(3,)]),
        (Unflatten(0, "kv").inverse, [(3,)]),
        (Squeeze(0), [(2, 1)]),
        (Squeeze(1), [(1,)]),
        (Pad(1, "heads", "4"), [(6,)]),
        (Pad(0, "heads", "4").inverse, [(5,)]),
        (Pad(0, "heads", "4").inverse, [(12,)]),
        (Pad(0, "heads", "4").inverse, [()]),
        (Identity() >> Transpose(), [(4,)]),
    ],
)
def test_what_does_not_fit_is_refused(word, shapes) -> None:
    with pytest.raises(UnsupportedError):
        word.apply(arrays(*shapes)[0], GQA)


def test_a_inserted_is_zeros_and_has_to_be_zeros() -> None:
    (one, two), data = arrays((2, 3), (2, 3))
    inserted = InsertZeros(1)
    first, zeros, second = inserted.apply([one, two], Sizes({}, {}))
    assert [first, second] == [one, two]
    assert not evaluate(zeros, data).any()
    assert zeros.shape == (2, 3)
    assert inserted.inverse.apply([first, zeros, second], Sizes({}, {})) == [one, two]
    assert inserted.inverse.inverse == inserted
    assert inserted.inverse.must_be_zero([first, zeros, second]) == [zeros]
    assert inserted.must_be_zero([one, two]) == []


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (Identity(), "unchanged"),
        (Interleave(("1", "1")), "concatenate 1:1"),
        (Interleave(("1", "1"), groups="2"), "interleave 1:1 in 2 groups"),
        (Interleave(("heads", "kv", "kv"), groups="kv"), "interleave heads:kv:kv per KV group"),
        (Deinterleave(Interleave(("1", "1"), groups=None)), "split 1:1 row by row"),
        (Deinterleave(Interleave(("1", "1"), axis=1)) >> Transpose(), "split 1:1 on axis 1, transpose (1, 0)"),
        (PerTensor((Identity(), Transpose())), "per tensor: (unchanged; transpose (1, 0))"),
        (Flatten(0, "experts"), "flatten axes 0 and 1"),
        (Pad(0, "vocab", "512"), "pad axis 0 with zeros to a multiple of 512"),
        (Pad(0, "vocab", "512").inverse, "cut axis 0 to vocab"),
        (InsertZeros(1), "insert zeros as tensor 1"),
        (ToInteger("I32", "I64"), "cast to I32, in reverse to I64"),
    ],
)
def test_a_transform_in_words(transform, words) -> None:
    assert str(transform) == words
