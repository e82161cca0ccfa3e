"""Rules: frozen, invertible statements «this HuggingFace pattern is that MindFormers pattern, through this layout».

A pattern is a name with holes: `{layer}` holds a number, `{kind:weight|bias}` one of the words given, `{rest:*}`
anything. A number that only one side has is a stack: `experts.{expert}.w1.weight` on the one side, `ffn.w1.weight` on
the other, with the experts along a new axis 0 before the layout is applied.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import product

from .transforms import Same, Transform

Bindings = Mapping[str, int | str]

_HOLE = re.compile(r"\{(\w+)(?::([^}]*))?\}")
_COMPARED = 300


class Direction(Enum):
    """Which side of the rules is the source."""

    FORWARD = "forward"
    REVERSE = "reverse"


@dataclass(frozen=True)
class Rule:
    """`hf` patterns are `ms` patterns through `layout`.

    Attributes:
        hf, ms: a pattern, or several that belong together.
        shape: the shape of each HF tensor in the model's symbols (`"heads*head_dim, hidden"`); one for all, or one
        each;
            `None` = any.
        layout: from the HF tensors to the MindFormers tensors.
        optional: the tensors may be absent, but from all layers alike.
    """

    hf: str | tuple[str, ...]
    ms: str | tuple[str, ...]
    shape: str | tuple[str, ...] | None = None
    layout: Transform = Same()  # noqa: RUF009 - frozen, without state
    optional: bool = False

    def patterns(self, side: str) -> tuple[str, ...]:
        """The patterns of side `hf` or `ms`."""
        patterns = self.hf if side == "hf" else self.ms
        return (patterns,) if isinstance(patterns, str) else patterns

    def shapes(self) -> tuple[str | None, ...]:
        """The symbolic shape of each HF tensor."""
        count = len(self.patterns("hf"))
        return self.shape if isinstance(self.shape, tuple) else (self.shape,) * count

    def holes(self, side: str) -> tuple[str, ...]:
        """Names of the holes in the patterns of a side."""
        return tuple(dict.fromkeys(m[1] for pattern in self.patterns(side) for m in _HOLE.finditer(pattern)))

    def stacked(self, side: str) -> str | None:
        """The hole that only this side has: its tensors are a stack on the other side."""
        other = self.holes("ms" if side == "hf" else "hf")
        return next((hole for hole in self.holes(side) if hole not in other), None)


@dataclass(frozen=True)
class Tied:
    """HF tensor `hf` (MindFormers' `ms`) holds the same bytes as HF tensor `of`.

    Forward it is written from `of` where the source lacks it; in reverse it is left out. Where it is present, its
    bytes have to equal those of `of`.
    """

    hf: str
    ms: str
    of: str
    shape: str | None = None


@dataclass(frozen=True)
class Drop:
    """Tensors of one side that the other does not have, and why."""

    why: str
    hf: tuple[str, ...] = ()
    ms: tuple[str, ...] = ()


Statement = Rule | Tied | Drop


@dataclass(frozen=True)
class Match:
    """A name, recognised: the statement, which of its patterns, and what its holes hold."""

    statement: Statement
    index: int
    bindings: Bindings


class Matcher:
    """Finds the statement that a name of one side belongs to."""

    def __init__(self, statements: Sequence[Statement], side: str) -> None:
        self._exact: dict[str, list[tuple[_Pattern, Statement, int]]] = {}
        self._open: list[tuple[_Pattern, Statement, int]] = []
        self._near: dict[str, str | None] = {}
        for statement in statements:
            for index, text in enumerate(_patterns(statement, side)):
                pattern = _compile(text)
                if pattern.open:
                    self._open.append((pattern, statement, index))
                for template in pattern.templates:
                    self._exact.setdefault(template, []).append((pattern, statement, index))

    def match(self, name: str) -> Match | None:
        """The statement that `name` belongs to: the table's first, those whose patterns take anything last."""
        candidates = self._exact.get(_template(name), ())
        for pattern, statement, index in (*candidates, *self._open):
            bindings = pattern.bind(name)
            if bindings is not None:
                return Match(statement, index, bindings)
        return None

    def closest(self, name: str) -> str | None:
        """The known pattern that looks most like `name`."""
        template = _template(name)
        if template not in self._near:
            near = difflib.get_close_matches(template[:_COMPARED], list(self._exact), n=1, cutoff=0.5)
            self._near[template] = self._exact[near[0]][0][0].text if near else None
        return self._near[template]


def fill(pattern: str, bindings: Bindings) -> str:
    """The name that a pattern gives with its holes filled."""
    return _HOLE.sub(lambda m: str(bindings[m[1]]), pattern)


def words(pattern: str) -> Iterator[dict[str, str]]:
    """Every way to fill the holes that name their words: `{kind:weight|bias}` gives two."""
    named = [(m[1], m[2].split("|")) for m in _HOLE.finditer(pattern) if m[2] and m[2] != "*"]
    for choice in product(*(values for _, values in named)):
        yield dict(zip((name for name, _ in named), choice, strict=True))


def _patterns(statement: Statement, side: str) -> tuple[str, ...]:
    if isinstance(statement, Rule):
        return statement.patterns(side)
    if isinstance(statement, Tied):
        return (statement.hf if side == "hf" else statement.ms,)
    return statement.hf if side == "hf" else statement.ms


def _template(name: str) -> str:
    """The name with every whole number between dots replaced: what a dictionary can find."""
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))


@dataclass(frozen=True)
class _Pattern:
    text: str
    regex: re.Pattern[str]
    numbers: frozenset[str]
    templates: tuple[str, ...]
    open: bool

    def bind(self, name: str) -> Bindings | None:
        match = self.regex.fullmatch(name)
        if match is None:
            return None
        return {k: int(v) if k in self.numbers else v for k, v in match.groupdict().items()}


@cache
def _compile(text: str) -> _Pattern:
    def regex(kind: str | None) -> str:
        if kind is None:
            return r"0|[1-9][0-9]{0,8}"
        return r"[\s\S]*" if kind == "*" else "|".join(map(re.escape, kind.split("|")))

    parts, last = [], 0
    for hole in _HOLE.finditer(text):
        parts += [re.escape(text[last : hole.start()]), f"(?P<{hole[1]}>{regex(hole[2])})"]
        last = hole.end()
    parts.append(re.escape(text[last:]))
    numbers = frozenset(m[1] for m in _HOLE.finditer(text) if m[2] is None)
    is_open = any(m[2] == "*" for m in _HOLE.finditer(text))
    return _Pattern(text, re.compile("".join(parts)), numbers, () if is_open else tuple(_templates(text)), is_open)


def _templates(text: str) -> Iterable[str]:
    for choice in words(text):
        yield _template(_HOLE.sub(lambda m, c=choice: c.get(m[1], "0"), text))  # type: ignore[misc]
