"""Patterns: names with holes.

`{layer}` takes a number, `{layer:1|3}` one of those given, `{kind:weight|bias}` one of the words, `{rest:*}` anything.
`{mtp+layers}` is a number counted from a symbol: in a model of 61 layers, `model.layers.{mtp+layers}.enorm.weight` with
`mtp` 0 is the name `model.layers.61.enorm.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import product

from msgspec import Struct

from .sizes import Ranges, Sizes

Bindings = Mapping[str, int | str]

_HOLE = re.compile(r"\{(\w+)(?:\+(\w+))?(?::([^}]*))?\}")
_NUMBER = r"0|[1-9][0-9]{0,8}"


@cache
def holes(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the holes in these patterns, each once."""
    return tuple(dict.fromkeys(m[1] for text in texts for m in _HOLE.finditer(text)))


@cache
def number_holes(texts: tuple[str, ...]) -> frozenset[str]:
    """Return the names of the holes that take any number."""
    return frozenset(m[1] for text in texts for m in _HOLE.finditer(text) if m[3] is None)


@cache
def listed_numbers(texts: tuple[str, ...]) -> Mapping[str, tuple[int, ...]]:
    """Return the numbers of the holes that list theirs, by the holes' names."""
    found = {m[1]: m[3].split("|") for text in texts for m in _HOLE.finditer(text) if m[3] and _is_number(m[3])}
    return {name: tuple(map(int, numbers)) for name, numbers in found.items()}


def _is_number(kind: str | None) -> bool:
    """Return whether a hole of this kind takes numbers."""
    return kind is None or all(word.isdecimal() for word in kind.split("|"))


def fill(pattern: str, bindings: Bindings, sizes: Sizes | None = None) -> str:
    """Return a pattern with its holes filled; `sizes` must have the symbols that they are counted from."""

    return Filler(pattern).name(bindings, sizes)


class Filler:
    """A pattern whose holes are filled again and again."""

    def __init__(self, pattern: str) -> None:
        # Text, hole, origin, kind; text, hole, …; text.
        pieces = _HOLE.split(pattern)
        self._text = pieces[-1]
        self._holes = list(zip(pieces[:-1:4], pieces[1::4], pieces[2::4], strict=True))

    def name(self, bindings: Bindings, sizes: Sizes | None = None) -> str:
        """Return the name; `sizes` must have the symbols that holes are counted from."""
        found = ""
        for text, hole, origin in self._holes:
            value = bindings[hole]
            if origin and sizes and isinstance(value, int):
                value += sizes.number(origin)
            found += f"{text}{value}"
        return found + self._text


def words(pattern: str) -> Iterator[dict[str, str]]:
    """Yield every way to fill the holes that list their words: `{kind:weight|bias}` has two."""
    named = [(m[1], m[3].split("|")) for m in _HOLE.finditer(pattern) if m[3] and m[3] != "*"]
    for choice in product(*(values for _, values in named)):
        yield dict(zip((name for name, _ in named), choice, strict=True))


def template(name: str) -> str:
    """Replace every whole number between dots, so that a dictionary can find the name."""
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))


class Hole(Struct, frozen=True):
    """A hole: its name, whether it takes a number, and the symbol that it is counted from."""

    name: str
    is_number: bool
    origin: str | None


class Pattern(Struct, frozen=True):
    """A compiled pattern.

    Attributes:
        text: the pattern as the table has it.
        regex: matches its names, with a group for each of `holes`.
        holes: its holes in order.
        templates: the templates of its names; none if it is `open`.
        open: whether its names can have any template.
    """

    text: str
    regex: re.Pattern[str]
    holes: tuple[Hole, ...]
    templates: tuple[str, ...]
    open: bool


class Binder:
    """A pattern in a model, where the values of its holes are known."""

    def __init__(self, text: str, ranges: Ranges) -> None:
        self.pattern = compile_pattern(text)
        self._match = self.pattern.regex.fullmatch
        self._names = [hole.name for hole in self.pattern.holes]
        self._takes_numbers = any(hole.is_number for hole in self.pattern.holes)
        self._only = self._names[0] if len(self._names) == 1 and not self._takes_numbers else None
        self._holes = [
            (hole.name, hole.is_number, ranges.origin(hole.origin), *ranges.bounds(hole.name))
            for hole in self.pattern.holes
        ]

    def bind(self, name: str) -> tuple[Bindings, int] | None:
        """Return the values of the holes, and how many are out of range; `None` if the name does not match."""
        match = self._match(name)
        if match is None:
            return None
        if self._only is not None:
            return {self._only: match[1]}, 0
        if not self._takes_numbers:
            return dict(zip(self._names, match.groups(), strict=True)), 0
        bindings: dict[str, int | str] = {}
        out_of_range = 0
        for (hole, is_number, origin, first, end), text in zip(self._holes, match.groups(), strict=True):
            if not is_number:
                bindings[hole] = text
                continue
            if origin is None:
                return None
            number = bindings[hole] = int(text) - origin
            if number < 0:
                return None
            out_of_range += number < first or (end is not None and number >= end)
        return bindings, out_of_range


@cache
def compile_pattern(text: str) -> Pattern:
    """Compile a pattern."""
    parts, found, last = [], [], 0
    for m in _HOLE.finditer(text):
        parts += [re.escape(text[last : m.start()]), f"({_taken(m[3])})"]
        found.append(Hole(m[1], _is_number(m[3]), m[2]))
        last = m.end()
    parts.append(re.escape(text[last:]))
    is_open = any(m[3] == "*" for m in _HOLE.finditer(text))
    templates = () if is_open else tuple(dict.fromkeys(_templates(text)))
    return Pattern(text, re.compile("".join(parts)), tuple(found), templates, is_open)


def _taken(kind: str | None) -> str:
    if kind is None:
        return _NUMBER
    return r"[\s\S]*" if kind == "*" else "|".join(map(re.escape, kind.split("|")))


def _templates(text: str) -> Iterable[str]:
    for choice in words(text):
        yield template(_HOLE.sub(lambda m, c=choice: c.get(m[1], "0"), text))  # type: ignore[misc]
