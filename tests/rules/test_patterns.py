"""Patterns: which names they take, what their holes then hold, and what they give filled."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.rules.patterns import (
    Binder,
    compile_pattern,
    fill,
    holes,
    listed_numbers,
    number_holes,
    template,
    words,
)
from streamconv.rules.sizes import Ranges, Sizes

ENORM = "model.layers.{mtp+layers}.enorm.weight"
EXPERT = "model.layers.{moe}.experts.{expert}.w1.weight"
TABLE = {"layer": "layers", "moe": "dense..layers", "mtp": "mtp", "expert": "experts", "extra": ""}
NUMBERS = {"layers": 61, "dense": 3, "mtp": 2, "experts": 256}


def sizes(**numbers: int) -> Sizes:
    return Sizes({name: name for name in numbers}, numbers)


def binder(text: str, **numbers: int) -> Binder:
    return Binder(text, Ranges(TABLE, sizes(**numbers)))


# Holes ----------------------------------------------------------------------------------------------------------------


def test_holes_are_listed_once_in_their_order() -> None:
    assert holes((EXPERT, "{kind:a|b}.{moe}.{rest:*}", ENORM)) == ("moe", "expert", "kind", "rest", "mtp")
    assert holes(("plain", "")) == ()


def test_what_a_hole_is() -> None:
    found = compile_pattern("{a}.{b+n}.{c:x|y}.{d:*}").holes
    assert [(h.name, h.is_number, h.origin) for h in found] == [
        ("a", True, None),
        ("b", True, "n"),
        ("c", False, None),
        ("d", False, None),
    ]


def test_words_of_a_pattern() -> None:
    assert list(words("l.{layer}.{a:x|y}.{b:z}.{rest:*}")) == [{"a": "x", "b": "z"}, {"a": "y", "b": "z"}]
    assert list(words("plain")) == [{}]
    assert list(words(ENORM)) == [{}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.61.experts.255.w1", "model.layers.#.experts.#.w1"),
        ("7.x.007", "#.x.#"),
        ("w1.1a.a1", "w1.1a.a1"),
        ("a..", "a.."),
        ("", ""),
    ],
)
def test_the_template_of_a_name(name, expected) -> None:
    assert template(name) == expected


@pytest.mark.parametrize(
    ("text", "expected", "is_open"),
    [
        (EXPERT, {"model.layers.#.experts.#.w1.weight"}, False),
        (ENORM, {"model.layers.#.enorm.weight"}, False),
        ("l.{layer}.{kind:a|b}", {"l.#.a", "l.#.b"}, False),
        ("l.{layer}.{rest:*}", set(), True),
        ("plain", {"plain"}, False),
    ],
)
def test_the_templates_of_a_pattern_are_those_of_its_names(text, expected, is_open) -> None:
    pattern = compile_pattern(text)
    assert set(pattern.templates) == expected
    assert pattern.open is is_open


# Filling --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bindings", "expected"),
    [
        (EXPERT, {"moe": 3, "expert": 10, "other": 5}, "model.layers.3.experts.10.w1.weight"),
        (ENORM, {"mtp": 0}, "model.layers.61.enorm.weight"),
        (ENORM, {"mtp": 1}, "model.layers.62.enorm.weight"),
        ("{mtp+layers}.{mtp}", {"mtp": 1}, "62.1"),
        ("{kind:a|b}.{rest:*}", {"kind": "b", "rest": r"\1.{x}"}, r"b.\1.{x}"),
        ("plain", {}, "plain"),
    ],
)
def test_filled(text, bindings, expected) -> None:
    assert fill(text, bindings, sizes(**NUMBERS)) == expected


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(0, 10**6))
def test_what_is_filled_is_found_again(mtp, layers, expert) -> None:
    text, bindings = "l.{mtp+layers}.e.{expert}", {"mtp": mtp, "expert": expert}
    name = fill(text, bindings, sizes(layers=layers))
    assert name == f"l.{mtp + layers}.e.{expert}"
    assert binder(text, layers=layers).bind(name) == (bindings, 0)


# Binding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "bindings", "strays"),
    [
        (EXPERT, "model.layers.3.experts.0.w1.weight", {"moe": 3, "expert": 0}, 0),
        (EXPERT, "model.layers.60.experts.255.w1.weight", {"moe": 60, "expert": 255}, 0),
        (EXPERT, "model.layers.2.experts.0.w1.weight", {"moe": 2, "expert": 0}, 1),
        (EXPERT, "model.layers.61.experts.0.w1.weight", {"moe": 61, "expert": 0}, 1),
        (EXPERT, "model.layers.3.experts.256.w1.weight", {"moe": 3, "expert": 256}, 1),
        (ENORM, "model.layers.61.enorm.weight", {"mtp": 0}, 0),
        (ENORM, "model.layers.62.enorm.weight", {"mtp": 1}, 0),
        (ENORM, "model.layers.63.enorm.weight", {"mtp": 2}, 1),
        ("l.{extra+layers}", "l.61", {"extra": 0}, 0),
        ("l.{extra+layers}", "l.999999999", {"extra": 999999938}, 0),
        ("l.{nobody}", "l.999999999", {"nobody": 999999999}, 0),
        ("{kind:a|b.c}.{rest:*}", "b.c.61.\n", {"kind": "b.c", "rest": "61.\n"}, 0),
    ],
)
def test_bound(text, name, bindings, strays) -> None:
    assert binder(text, **NUMBERS).bind(name) == (bindings, strays)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (ENORM, "model.layers.061.enorm.weight"),
        (ENORM, "model.layers.-1.enorm.weight"),
        (ENORM, "model.layers.1000000000.enorm.weight"),
        (ENORM, "model.layers.٦١.enorm.weight"),
        (ENORM, "model.layers.61.enorm.weight\n"),
        (ENORM, "xmodel.layers.61.enorm.weight"),
        (ENORM, "modelxlayers.61.enorm.weight"),
        (ENORM, "model.layers.61.hnorm.weight"),
        ("{kind:a|b}.c", "ab.c"),
        ("{kind:a|b}.c", ".c"),
        ("a+b", "aab"),
        ("", "a"),
    ],
)
def test_names_of_others(text, name) -> None:
    assert binder(text, **NUMBERS).bind(name) is None


@pytest.mark.parametrize("text", ["l.{mtp+layers}", "l.{extra+layers}", "l.{nobody+layers}"])
@pytest.mark.parametrize("name", ["l.60", "l.0"])
def test_no_number_is_below_zero(text, name) -> None:
    bound = binder(text, **NUMBERS).bind(name)
    assert bound is None or not bound[1]


def test_a_number_counted_from_what_nothing_has_told_is_not_bound() -> None:
    name = "model.layers.61.enorm.weight"
    assert binder(ENORM, mtp=1).bind(name) is None
    assert binder(ENORM, layers=61).bind(name) == ({"mtp": 0}, 0)


def test_what_nothing_has_told_is_no_limit() -> None:
    assert binder(EXPERT).bind("model.layers.0.experts.999.w1.weight") == ({"moe": 0, "expert": 999}, 0)
    assert binder(EXPERT, dense=3).bind("model.layers.2.experts.999.w1.weight") == ({"moe": 2, "expert": 999}, 1)


LISTED = "l.{layer:1|3|10}.x"


@pytest.mark.parametrize(("name", "bound"), [("l.3.x", ({"layer": 3}, 0)), ("l.10.x", ({"layer": 10}, 1))])
def test_a_number_of_a_list(name, bound) -> None:
    assert binder(LISTED, layers=4).bind(name) == bound


@pytest.mark.parametrize("name", ["l.2.x", "l.0.x", "l.1.1.x", "l.31.x", "l..x"])
def test_a_number_that_is_not_on_the_list(name) -> None:
    assert binder(LISTED, layers=4).bind(name) is None


def test_lists_of_numbers_and_of_words() -> None:
    text = LISTED + ".{expert}.{kind:a|b}.{mixed:1|b}"
    assert listed_numbers((text, "y")) == {"layer": (1, 3, 10)}
    assert number_holes((text,)) == {"expert"}
    assert compile_pattern(LISTED).templates == ("l.#.x",)
    assert [fill(LISTED, words_of) for words_of in words(LISTED)] == ["l.1.x", "l.3.x", "l.10.x"]
