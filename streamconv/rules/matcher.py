"""Which statement takes a name: an index over the patterns of a table."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .patterns import Binder, Bindings, template
from .sizes import Ranges, Sizes
from .statements import Copy, Rule, Statement, Tied

_COMPARED = 300


@dataclass(frozen=True, slots=True)
class Match:
    """A name, recognised: the statement's place in the table, which of its patterns, and what its holes hold.

    `strays` counts the numbers that are out of the range of their holes: where no pattern takes all, the one that takes
    most of them serves, for a message.
    """

    number: int
    index: int
    bindings: Bindings
    strays: int


class Matcher:
    """Finds the statement that a name of one side belongs to."""

    def __init__(self, statements: Sequence[Statement], side: str, ranges: Ranges | None = None) -> None:
        ranges = ranges or Ranges({}, Sizes({}, {}))
        self._exact: dict[str, list[tuple[Binder, int, int]]] = {}
        self._open: list[tuple[Binder, int, int]] = []
        self._near: dict[str, str | None] = {}
        for number, statement in enumerate(statements):
            for index, text in enumerate(_patterns(statement, side)):
                candidate = Binder(text, ranges), number, index
                if candidate[0].pattern.open:
                    self._open.append(candidate)
                for one in candidate[0].pattern.templates:
                    self._exact.setdefault(one, []).append(candidate)

    def match(self, name: str) -> Match | None:
        """The statement that `name` belongs to: the table's first, those whose patterns take anything last."""
        nearest = None
        for candidates in (self._exact.get(template(name), ()), self._open):
            for binder, number, index in candidates:
                bound = binder.bind(name)
                if bound is not None and not bound[1]:
                    return Match(number, index, *bound)
                if bound is not None and (nearest is None or bound[1] < nearest.strays):
                    nearest = Match(number, index, *bound)
        return nearest

    def takers(self, name: str) -> Iterator[str]:
        """The patterns that take `name`, but for those that take anything."""
        for binder, _, _ in self._exact.get(template(name), ()):
            bound = binder.bind(name)
            if bound is not None and not bound[1]:
                yield binder.pattern.text

    def closest(self, name: str) -> str | None:
        """The known pattern that looks most like `name`."""
        one = template(name)
        if one not in self._near:
            near = difflib.get_close_matches(one[:_COMPARED], list(self._exact), n=1, cutoff=0.5)
            self._near[one] = self._exact[near[0]][0][0].pattern.text if near else None
        return self._near[one]


def _patterns(statement: Statement, side: str) -> tuple[str, ...]:
    match statement:
        case Rule():
            return statement.patterns(side)
        case Tied():
            return (statement.hf if side == "hf" else statement.ms,)
        case Copy():
            return (statement.hf,) if side == "hf" else ()
    return statement.hf if side == "hf" else statement.ms
