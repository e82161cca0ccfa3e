"""Rules: frozen, invertible statements «this HuggingFace pattern is that MindFormers pattern, through this layout».

A number that only one side's patterns have is a stack: `experts.{expert}.w1.weight` on the one side, `ffn.w1.weight`
on the other, with the experts along a new axis 0 before the layout is applied. What a pattern is, `patterns` says.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from .patterns import Binder, Bindings, holes, template
from .sizes import Ranges, Sizes
from .transforms import Same, Transform

_COMPARED = 300

#: The key of config.json that says whether a model's head is its embedding.
TIED = "tie_word_embeddings"


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
            each; `None` = any.
        layout: from the HF tensors to the MindFormers tensors.
        ms_shape: the shape of the MindFormers tensors, where that tells a number which no HF shape does.
        optional: the tensors may be absent, but from all layers alike.
        scattered: where optional, they may be absent from any layer.
        fp32: the sides (`hf`, `ms`) on which the model keeps it in float32: there it is F32 where a dtype is asked.
    """

    hf: str | tuple[str, ...]
    ms: str | tuple[str, ...]
    shape: str | tuple[str, ...] | None = None
    layout: Transform = Same()  # noqa: RUF009 - frozen, without state
    optional: bool = False
    fp32: tuple[str, ...] = ()
    ms_shape: str | None = None
    scattered: bool = False

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
        return holes(self.patterns(side))

    def stacked(self, side: str) -> str | None:
        """The hole that only this side has: its tensors are a stack on the other side."""
        other = self.holes("ms" if side == "hf" else "hf")
        return next((hole for hole in self.holes(side) if hole not in other), None)

    def shared(self, side: str) -> tuple[str, ...]:
        """The holes of a side that the other side has too."""
        stacked = self.stacked(side)
        return tuple(hole for hole in self.holes(side) if hole != stacked)


@dataclass(frozen=True)
class Tied:
    """HF tensor `hf` (MindFormers' `ms`) holds the same bytes as HF tensor `of`.

    Forward it is written from `of` where the source lacks it, and where it is present its bytes have to equal those of
    `of`. In reverse it is left out, unless it differs: training may have untied it. With `again` false MindFormers'
    model has no such tensor, and forward it is left out too.
    """

    hf: str
    ms: str
    of: str
    shape: str | None = None
    again: bool = True


@dataclass(frozen=True)
class Copy:
    """HF tensor `hf` is HF tensor `of` a second time, and MindFormers has no such tensor, for it shares `of`.

    Forward it is left out where the source has it; in reverse it is written from `of`, unless a rule gives it.
    """

    hf: str
    of: str
    why: str


@dataclass(frozen=True)
class Drop:
    """Tensors of one side that the other does not have, and why.

    With `beside` a tensor is dropped only where one of those is there too, for the same holes: what looks alike but is
    something else, a layer more than the config says, is not lost in silence. With `same` it has to hold the bytes of
    that HF tensor.
    """

    why: str
    hf: tuple[str, ...] = ()
    ms: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    same: str = ""


Statement = Rule | Tied | Copy | Drop


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
