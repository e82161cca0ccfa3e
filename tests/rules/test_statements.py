"""Rules: which names a pattern takes, and what it makes of them."""

from __future__ import annotations

import difflib

import pytest

from streamconv.rules.matcher import Matcher
from streamconv.rules.statements import Copy, Direction, Drop, Rule, Side, Tied

TABLE = [
    Rule("model.layers.{layer}.{norm:input|post}_layernorm.weight", "l.{layer}.{norm}"),
    Rule("model.layers.{layer}.experts.{expert}.w1.weight", "l.{layer}.w1"),
    Rule("model.layers.{layer}.first.weight", "l.{layer}.first"),
    Rule("model.layers.0.first.weight", "l.zero"),
    Rule("a+b.(c).weight", "plus"),
    Tied("lm_head.weight", "lm_head.weight", "embed.weight"),
    Drop("no need", hf=("rest.{rest:*}",)),
    Drop("theirs alone", ms=("adam_m.{rest:*}",)),
]
MATCHER = Matcher(TABLE, Side.HF)


@pytest.mark.parametrize(
    ("name", "number", "bindings"),
    [
        ("model.layers.0.input_layernorm.weight", 0, {"layer": 0, "norm": "input"}),
        ("model.layers.12.post_layernorm.weight", 0, {"layer": 12, "norm": "post"}),
        ("model.layers.7.experts.255.w1.weight", 1, {"layer": 7, "expert": 255}),
        ("model.layers.0.first.weight", 2, {"layer": 0}),  # a literal number has no precedence: the table's order has
        ("a+b.(c).weight", 4, {}),
        ("lm_head.weight", 5, {}),
        ("rest.of.it", 6, {"rest": "of.it"}),
        ("rest.", 6, {"rest": ""}),
        ("rest.\n\x00", 6, {"rest": "\n\x00"}),
    ],
)
def test_names_find_their_rule(name, number, bindings) -> None:
    match = MATCHER.match(name)
    assert match is not None
    assert match.number == number
    assert match.bindings == bindings


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model.layers.01.first.weight",
        "model.layers.00.first.weight",
        "model.layers.-1.first.weight",
        "model.layers.1_0.first.weight",
        "model.layers.٣.first.weight",
        "model.layers.²2.first.weight",
        "model.layers.#.first.weight",
        "model.layers.{layer}.first.weight",
        "model.layers..first.weight",
        "model.layers." + "9" * 5000 + ".first.weight",
        "model.layers.0.other_layernorm.weight",
        "model.layers.0.first.weight\n",
        " model.layers.0.first.weight",
        "model.layers.0.first_weight",
        "modelxlayers.0.first.weight",
        "aab.c.weight",
        "LM_HEAD.weight",
        "adam_m.x",
    ],
    ids=lambda name: repr(name)[:40],
)
def test_names_that_belong_to_no_rule(name) -> None:
    assert MATCHER.match(name) is None


def test_sides_are_apart() -> None:
    theirs = Matcher(TABLE, Side.MS)
    assert theirs.match("adam_m.x") is not None
    assert theirs.match("rest.x") is None
    assert theirs.match("l.zero").number == 3  # type: ignore[union-attr]


def test_one_of_several_patterns_says_which_it_is() -> None:
    rule = Rule(("l.{layer}.q", "l.{layer}.k", "l.{layer}.v"), "l.{layer}.qkv")
    match = Matcher([rule], Side.HF).match("l.3.v")
    assert match is not None
    assert (match.index, match.bindings) == (2, {"layer": 3})


def test_exact_patterns_go_before_open_ones() -> None:
    matcher = Matcher([Rule("{name:*}", "{name:*}"), Rule("x.weight", "y")], Side.HF)
    assert matcher.match("x.weight").number == 1  # type: ignore[union-attr]
    assert matcher.match("z").bindings == {"name": "z"}  # type: ignore[union-attr]


def test_a_whole_name_has_its_place_in_the_table_s_order() -> None:
    layer, name = Rule("l.{layer}.w", "a"), Rule("l.3.w", "b")
    for table, number in (([layer, name], 0), ([name, layer], 0), ([Rule("l.{layer:1|2}.w", "a"), name, layer], 1)):
        matcher = Matcher(table, Side.HF)
        match = matcher.match("l.3.w")
        assert match is not None
        assert match.number == number
        assert len(list(matcher.patterns_taking("l.3.w"))) == 2
    assert Matcher([name], Side.HF).closest("l.4.w") == "l.3.w"
    assert Matcher([name], Side.HF).match("l.4.w") is None
    assert list(Matcher([name, name], Side.HF).patterns_taking("l.3.w")) == ["l.3.w", "l.3.w"]


def test_a_hole_that_only_one_side_has_is_a_stack() -> None:
    assert [rule.stacked(Side.HF) for rule in TABLE[:3] if isinstance(rule, Rule)] == [None, "expert", None]
    assert [rule.stacked(Side.MS) for rule in TABLE[:3] if isinstance(rule, Rule)] == [None, None, None]


def test_shapes_are_one_for_all_or_one_each() -> None:
    assert Rule(("a", "b"), "c", "n").shapes() == ("n", "n")
    assert Rule(("a", "b"), "c", ("n", "m")).shapes() == ("n", "m")
    assert Rule("a", "b").shapes() == (None,)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("model.layer.3.first.weight", "model.layers.{layer}.first.weight"),
        ("model.layers.03.first.weight", "model.layers.{layer}.first.weight"),
        ("model.layers.3.experts.1.w1.bias", "model.layers.{layer}.experts.{expert}.w1.weight"),
        ("lm_haed.weight", "lm_head.weight"),
        ("zzz", None),
        ("", None),
    ],
)
def test_the_closest_pattern(name, pattern) -> None:
    assert MATCHER.closest(name) == pattern


def test_the_closest_pattern_of_very_many_or_very_long_names_costs_little(monkeypatch) -> None:
    matcher, compared = Matcher(TABLE, Side.HF), []
    search = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", lambda *a, **k: compared.append(a[0]) or search(*a, **k))
    for layer in range(1000):
        matcher.closest(f"transformer.h.{layer}.mlp.weight")
    assert len(compared) == 1
    matcher.closest("model.layers." * 100_000)
    assert len(compared[-1]) <= 300


# Sides ----------------------------------------------------------------------------------------------------------------


def test_a_direction_goes_from_one_side_to_the_other() -> None:
    assert (Direction.FORWARD.source, Direction.FORWARD.target) == (Side.HF, Side.MS)
    assert (Direction.REVERSE.source, Direction.REVERSE.target) == (Side.MS, Side.HF)
    assert [side.other for side in Side] == [Side.MS, Side.HF]


@pytest.mark.parametrize(
    ("statement", "hf", "ms"),
    [
        (Rule(("a", "b"), "c"), ("a", "b"), ("c",)),
        (Tied("head", "top", "embed"), ("head",), ("top",)),
        (Copy("again", "embed", "why"), ("again",), ()),
        (Drop("why", hf=("x",), ms=("y", "z")), ("x",), ("y", "z")),
    ],
)
def test_the_patterns_of_a_side(statement, hf, ms) -> None:
    assert statement.patterns(Side.HF) == hf
    assert statement.patterns(Side.MS) == ms
