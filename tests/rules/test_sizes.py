"""The numbers of a model: from its config, from shapes, and in agreement."""

from __future__ import annotations

import pytest

from streamconv.errors import InternalError, UsageError
from streamconv.rules.sizes import Ranges, ShapeConflictError, Sizes

TABLE = {
    "hidden": "hidden_size | n_embd",
    "heads": "num_attention_heads",
    "kv": "num_key_value_heads | =heads",
    "head_dim": "head_dim | =hidden//heads",
}


def test_alternatives_are_tried_in_their_order() -> None:
    assert Sizes(TABLE, {"n_embd": 7}).get("hidden") == 7
    assert Sizes(TABLE, {"n_embd": 7, "hidden_size": 8}).get("hidden") == 8


@pytest.mark.parametrize("value", [None, 0, -4, True, 4.0, "4", [4], {}])
def test_what_is_no_positive_whole_number_counts_as_not_said(value) -> None:
    sizes = Sizes(TABLE, {"num_attention_heads": 8, "num_key_value_heads": value, "hidden_size": 32, "head_dim": value})
    assert (sizes.get("kv"), sizes.get("head_dim")) == (8, 4)


def test_what_the_config_says_goes_before_what_is_derived() -> None:
    assert Sizes(TABLE, {"hidden_size": 32, "num_attention_heads": 8, "head_dim": 16}).get("head_dim") == 16


@pytest.mark.parametrize(
    ("expression", "value"), [("heads*head_dim + 2*kv*head_dim", 48), ("heads//kv", 4), ("heads - 1", 7), ("3", 3)]
)
def test_expressions(expression, value) -> None:
    sizes = Sizes(TABLE, {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 2})
    assert sizes.number(expression) == value


@pytest.mark.parametrize("expression", ["heads**2", "f(heads)", "-heads", "heads/2", "1.5", "heads if heads else 1"])
def test_a_table_cannot_compute_anything_else(expression) -> None:
    with pytest.raises(InternalError, match=r"^internal error: .*table"):
        Sizes(TABLE, {"num_attention_heads": 8}).number(expression)


def test_a_number_that_nothing_tells_names_its_config_key_and_what_to_do() -> None:
    with pytest.raises(
        UsageError, match=r"needs num_attention_heads, num_key_value_heads, (.|\n)*config=\"FILE\""
    ) as caught:
        Sizes(TABLE, {}).number("heads*kv")
    assert "hidden" not in str(caught.value)


def test_shapes_teach_what_the_config_does_not_say() -> None:
    sizes = Sizes({**TABLE, "vocab": "vocab_size"}, {"num_attention_heads": 6})
    sizes.fit((11, 20), "vocab, hidden")
    sizes.fit((24, 20), "heads*head_dim, hidden")
    assert [sizes.get(n) for n in ("vocab", "hidden", "head_dim", "kv")] == [11, 20, 4, 6]


def test_a_product_of_which_a_factor_is_known_has_to_be_a_multiple_of_it() -> None:
    sizes = Sizes(TABLE, {"num_attention_heads": 6})
    with pytest.raises(ShapeConflictError, match=r"25 is not a multiple .*config: num_attention_heads"):
        sizes.fit((25, 20), "heads*head_dim, hidden")
    assert sizes.get("head_dim") is None


@pytest.mark.parametrize(
    ("symbol", "size", "learned"),
    [("(heads+2*kv)*hd", 60, 3), ("2*kv+4", 10, 3), ("3*kv", 9, 3), ("kv", 1, 1), ("kv-1", 6, 7)],
)
def test_any_line_teaches_its_unknown(symbol, size, learned) -> None:
    sizes = Sizes({"heads": "n", "hd": "d", "kv": "k"}, {"n": 6, "d": 5})
    sizes.fit((size,), symbol)
    assert sizes.get("kv") == learned


@pytest.mark.parametrize(("symbol", "size"), [("kv*kv", 9), ("hd//kv", 5), ("6//kv", 2)])
def test_what_is_no_line_teaches_nothing_and_refuses_nothing(symbol, size) -> None:
    sizes = Sizes({"hd": "d", "kv": "k"}, {"d": 5})
    sizes.fit((size,), symbol)
    assert sizes.get("kv") is None


def test_a_line_that_has_no_such_point() -> None:
    sizes = Sizes({"kv": "k"}, {})
    with pytest.raises(ShapeConflictError):
        sizes.fit((3,), "2*kv+4")
    with pytest.raises(ShapeConflictError):
        sizes.fit((7,), "2*kv+4")


def test_nested_keys_and_conditions() -> None:
    table = {"heads": "n", "eyes": "vision.heads", "kv": "groups if grouped | =heads"}
    config = {"n": 8, "groups": 2, "vision": {"heads": 5}}
    assert Sizes(table, {**config, "grouped": True}).get("kv") == 2
    assert Sizes(table, {**config, "grouped": False}).get("kv") == 8
    assert Sizes(table, config).get("eyes") == 5
    assert Sizes(table, {"vision": 3}).get("eyes") is None


def test_a_symbol_may_be_derived_from_one_further_down() -> None:
    assert Sizes({"ffn": "=twice//2", "twice": "intermediate_size"}, {"intermediate_size": 22}).get("ffn") == 11


def test_a_number_by_hand() -> None:
    assert Sizes({"heads": "n"}, {}, {"heads": ("n_head", 4)}).get("heads") == 4
    assert Sizes({"hd": "=h//heads", "h": "h", "heads": "n"}, {"h": 8}, {"heads": ("n_head", 4)}).get("hd") == 2
    with pytest.raises(UsageError, match=r'options={"n_head": 4} contradicts the model: heads is 3 \(config: n\)'):
        Sizes({"heads": "n"}, {"n": 3}, {"heads": ("n_head", 4)})


def test_two_unknown_factors_teach_nothing_and_refuse_nothing() -> None:
    sizes = Sizes(TABLE, {})
    sizes.fit((24, 20), "heads*head_dim, hidden")
    assert (sizes.get("heads"), sizes.get("head_dim"), sizes.get("hidden")) == (None, None, 20)


def test_a_conflict_names_the_config_key_the_shape_and_both_numbers() -> None:
    sizes = Sizes(TABLE, {"num_attention_heads": 6, "head_dim": 4, "hidden_size": 20})
    with pytest.raises(ShapeConflictError) as caught:
        sizes.fit((32, 20), "heads*head_dim, hidden")
    for word in ("[32, 20]", "is 24", "not 32", "config: num_attention_heads", "config: head_dim"):
        assert word in str(caught.value)


def test_a_conflict_between_two_shapes_says_that_shapes_told_it() -> None:
    sizes = Sizes(TABLE, {})
    sizes.fit((20,), "hidden")
    with pytest.raises(ShapeConflictError, match=r"hidden is 20 \(the shapes\), not 21"):
        sizes.fit((21,), "hidden")


@pytest.mark.parametrize(("shape", "spec"), [((4, 4), "hidden"), ((), "hidden"), ((4,), ""), ((4,), "hidden, kv")])
def test_the_number_of_axes_counts(shape, spec) -> None:
    with pytest.raises(ShapeConflictError, match="axes"):
        Sizes(TABLE, {}).fit(shape, spec)


def test_a_shape_of_no_axes_fits_an_empty_spec() -> None:
    Sizes(TABLE, {}).fit((), "")


def test_an_empty_axis_teaches_nothing() -> None:
    sizes = Sizes(TABLE, {})
    sizes.fit((0,), "hidden")
    assert sizes.get("hidden") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3), (1, 1), (0, 0), (None, 0), (-1, 0), (True, 0), (2.0, 0), ("2", 0), ([], 0)],
)
def test_what_may_be_zero_is_zero_where_no_number_is_said(value, expected) -> None:
    assert Sizes({"dense": "first_k_dense_replace | =0"}, {"first_k_dense_replace": value}).get("dense") == expected


def test_a_number_by_hand_counts_more_than_one_derived() -> None:
    table, config, given = {"heads": "n", "kv": "k | =heads"}, {"n": 8}, {"kv": ("kv", 4)}
    assert Sizes(table, config, given).get("kv") == 4
    with pytest.raises(UsageError, match=r'options={"kv": 4} contradicts the model: kv is 8 \(config: k\)'):
        Sizes(table, {**config, "k": 8}, given)


def test_zero_is_known_and_said_to_be_the_default() -> None:
    sizes = Sizes({"mtp": "num_nextn_predict_layers | =0", "dense": "first_k_dense_replace"}, {})
    assert (sizes.get("mtp"), sizes.get("dense")) == (0, None)
    with pytest.raises(ShapeConflictError, match=r"mtp is 0 \(by default 0\), not 4"):
        sizes.fit((4,), "mtp")


@pytest.mark.parametrize("config", [{"n": 0}, {"n": -7}, {}])
def test_only_the_word_for_zero_gives_zero(config) -> None:
    sizes = Sizes({"n": "n", "m": "m | =n", "k": "k | =heads - heads", "heads": "heads"}, {"heads": 2, **config})
    assert [sizes.get(name) for name in "nmk"] == [None, None, None]


# Ranges ---------------------------------------------------------------------------------------------------------------

HOLES = {"layer": "layers", "dense": "dense", "moe": "dense..layers", "mtp": "mtp", "extra": ""}
COUNTS = {
    "layers": "num_hidden_layers",
    "dense": "first_k_dense_replace | =0",
    "mtp": "num_nextn_predict_layers | =0",
}


def ranges(**config: int) -> Ranges:
    return Ranges(HOLES, Sizes(COUNTS, config))


@pytest.mark.parametrize(
    ("hole", "limits", "numbers"),
    [
        ("layer", (0, 5), [0, 1, 2, 3, 4]),
        ("dense", (0, 3), [0, 1, 2]),
        ("moe", (3, 5), [3, 4]),
        ("mtp", (0, 0), []),
        ("extra", (0, None), []),
        ("nobody", (0, None), []),
    ],
)
def test_the_range_of_a_hole(hole, limits, numbers) -> None:
    known = ranges(num_hidden_layers=5, first_k_dense_replace=3)
    assert known.bounds(hole) == limits
    assert list(known.values(hole)) == numbers
    assert known.unknown(hole) is None


def test_what_is_not_known_is_no_limit_until_it_is_learned() -> None:
    sizes = Sizes({"layers": "num_hidden_layers", "dense": "first_k_dense_replace"}, {})
    unknown = Ranges(HOLES, sizes)
    assert [unknown.bounds(hole) for hole in ("layer", "moe")] == [(0, None), (0, None)]
    assert [unknown.unknown(hole) for hole in ("layer", "moe", "extra", "nobody")] == ["layers", "layers", None, None]
    sizes.learn("layers", 7, "the tensors' names")
    sizes.learn("dense", 2, "the tensors' names")
    assert [unknown.bounds(hole) for hole in ("layer", "moe")] == [(0, 7), (2, 7)]
    assert [unknown.unknown(hole) for hole in ("layer", "moe")] == [None, None]


def test_a_count_that_is_computed_is_not_learned_from_names() -> None:
    assert Ranges({"pair": "heads//2"}, Sizes({}, {})).unknown("pair") is None


def test_where_numbers_are_counted_from() -> None:
    known = ranges(num_hidden_layers=61)
    assert [known.origin(symbol) for symbol in (None, "layers", "mtp", "vocab")] == [0, 61, 0, None]


@pytest.mark.parametrize(
    ("hole", "words"),
    [
        ("layer", "5 (config: num_hidden_layers)"),
        ("moe", "3 … 4 (config: first_k_dense_replace; config: num_hidden_layers)"),
    ],
)
def test_a_range_in_words(hole, words) -> None:
    assert ranges(num_hidden_layers=5, first_k_dense_replace=3).described(hole) == words
