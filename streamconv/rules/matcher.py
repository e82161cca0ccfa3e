"""The index over a table's patterns: find the statement that a name belongs to."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from msgspec import Struct

from .patterns import Binder, Bindings, template
from .sizes import Ranges, Sizes
from .statements import Side, Statement

_NOWHERE: Sequence[tuple[int, int] | None] = (None,)

#: Characters of a name that are compared with patterns to find the closest.
_COMPARED = 300


class Match(Struct, frozen=True, gc=False):
    """A name that a pattern matches.

    Attributes:
        number: the statement's place in the table.
        index: which of its patterns.
        bindings: the values of its holes.
        out_of_range: how many of them are out of range. If no pattern takes the name, the one with the fewest is
            reported.
    """

    number: int
    index: int
    bindings: Bindings
    out_of_range: int


class Matcher:
    """Finds the statement that a name of one side belongs to. The ranges count as they are when it is made."""

    def __init__(self, statements: Sequence[Statement], side: Side, ranges: Ranges | None = None) -> None:
        ranges = ranges or Ranges({}, Sizes({}, {}))
        self._whole: dict[str, list[tuple[int, int]]] = {}
        self._exact: dict[str, list[tuple[Binder, int, int]]] = {}
        self._open: list[tuple[Binder, int, int]] = []
        self._texts: dict[str, str] = {}
        self._near: dict[str, str | None] = {}
        for number, statement in enumerate(statements):
            for index, text in enumerate(statement.patterns(side)):
                if "{" not in text:  # a table may list thousands of names: they need no regular expressions
                    self._whole.setdefault(text, []).append((number, index))
                    self._texts.setdefault(template(text), text)
                    continue
                candidate = Binder(text, ranges), number, index
                if candidate[0].pattern.open:
                    self._open.append(candidate)
                for one in candidate[0].pattern.templates:
                    self._exact.setdefault(one, []).append(candidate)
                    self._texts.setdefault(one, text)

    def match(self, name: str) -> Match | None:
        """Return the first match of a name in the table's order; patterns that take anything are tried last."""
        nearest, whole = None, self._whole.get(name, _NOWHERE)[0]
        exact = self._exact.get(template(name), ()) if self._exact else ()
        for candidates in (exact, self._open):
            for binder, number, index in candidates:
                if whole is not None and whole < (number, index):
                    break
                bound = binder.bind(name)
                if bound is not None and not bound[1]:
                    return Match(number, index, *bound)
                if bound is not None and (nearest is None or bound[1] < nearest.out_of_range):
                    nearest = Match(number, index, *bound)
            if whole is not None:
                return Match(*whole, {}, 0)
        return nearest

    def patterns_taking(self, name: str) -> Iterator[str]:
        """Yield the patterns that match a name, except for those that take anything."""
        yield from (name for _ in self._whole.get(name, ()))
        for binder, _, _ in self._exact.get(template(name), ()):
            bound = binder.bind(name)
            if bound is not None and not bound[1]:
                yield binder.pattern.text

    def closest(self, name: str) -> str | None:
        """Return the pattern most similar to a name, if any is similar."""
        one = template(name)
        if one not in self._near:
            near = difflib.get_close_matches(one[:_COMPARED], list(self._texts), n=1, cutoff=0.5)
            self._near[one] = self._texts[near[0]] if near else None
        return self._near[one]
