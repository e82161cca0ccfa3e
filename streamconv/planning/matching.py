"""Matching: which rule each source tensor belongs to, and what is missing. Names only, no shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from ..rules.matcher import Match, Matcher
from ..rules.patterns import Bindings, fill, numbers
from ..rules.sizes import Ranges, Sizes
from ..rules.statements import Copy, Drop, Rule, Statement, Tied
from ..tensors.refs import TensorRef
from ..text import quote
from .fp8_scales import Scales

Values = tuple[int | str, ...]
_Seen = Mapping[tuple[str, ...], AbstractSet[Values]]


@dataclass(slots=True)
class Application:
    """One application of a rule: the source tensors that share the holes both sides have.

    Attributes:
        number: the rule's place in the table.
        rule: the rule.
        values: what the shared holes hold, in the order of the source's patterns.
        members: per source pattern its tensor, or its tensors by their position in the stack.
    """

    number: int
    rule: Rule
    values: Values
    members: list[TensorRef | dict[int, TensorRef] | None]

    def add(self, index: int, position: int | None, ref: TensorRef) -> None:
        """Note the tensor of pattern `index`, at `position` of its stack where there is one."""
        if position is None:
            self.members[index] = ref
            return
        stack = self.members[index]
        if not isinstance(stack, dict):
            stack = self.members[index] = {}
        stack[position] = ref

    def stack(self, index: int) -> dict[int, TensorRef]:
        """The tensors of pattern `index` by position, 0 where there is no stack."""
        found = self.members[index]
        return found if isinstance(found, dict) else {} if found is None else {0: found}

    def refs(self) -> list[TensorRef]:
        """All its tensors, pattern by pattern, in the order of their stack."""
        return [stack[position] for stack in self.stacks() for position in sorted(stack)]

    def stacks(self) -> list[dict[int, TensorRef]]:
        """Its tensors by position, pattern by pattern."""
        return [self.stack(index) for index in range(len(self.members))]


@dataclass
class Matches:
    """What became of every source tensor.

    `same`: of a dropped one, the tensor that it has to equal; `copies`: the one that it should repeat.
    """

    applications: list[Application] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    tied: dict[str, TensorRef] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    strayed: list[tuple[str, Bindings]] = field(default_factory=list)


def match_names(
    tensors: Mapping[str, TensorRef], statements: Sequence[Statement], side: str, ranges: Ranges, scales: Scales
) -> Matches:
    """Every tensor to its rule, but for scales, which go with their weight; `side` (`hf` or `ms`) is the source's."""
    matcher, result = Matcher(statements, side, ranges), Matches()
    collect = _Collector(tensors, statements, side, ranges.sizes, result)
    for name, ref in tensors.items():
        if scales.is_scale(name):
            continue
        match = matcher.match(name)
        if match is None:
            result.unknown.append(name)
        elif match.strays:
            result.strayed.append((name, match.bindings))
        else:
            collect.note(match, name, ref)
    for name in result.dropped.keys() & scales.of.keys():
        result.dropped[scales.of[name].name] = result.dropped[name]
    return result


class _Collector:
    """Puts matches where they belong: to their application, or to what is dropped or tied."""

    def __init__(
        self,
        tensors: Mapping[str, TensorRef],
        statements: Sequence[Statement],
        side: str,
        sizes: Sizes,
        result: Matches,
    ) -> None:
        self._tensors, self._statements, self._sizes, self._result = tensors, statements, sizes, result
        rules = {number: rule for number, rule in enumerate(statements) if isinstance(rule, Rule)}
        self._stacked = {number: rule.stacked(side) for number, rule in rules.items()}
        self._shared = {number: rule.shared(side) for number, rule in rules.items()}
        self._width = {number: len(rule.patterns(side)) for number, rule in rules.items()}
        self._applications: dict[tuple[int, Values], Application] = {}

    def note(self, match: Match, name: str, ref: TensorRef) -> None:
        statement = self._statements[match.number]
        if isinstance(statement, Rule):
            self._apply(statement, match, ref)
        elif isinstance(statement, Tied):
            self._result.tied[name] = ref
        elif isinstance(statement, Copy) or self._is_dropped(statement, match.bindings):
            self._result.dropped[name] = statement.why
            if isinstance(statement, Copy):
                self._result.copies[name] = statement.of
            elif statement.same:
                self._result.same[name] = fill(statement.same, match.bindings, self._sizes)
        else:
            self._result.unknown.append(name)

    def _is_dropped(self, drop: Drop, bindings: Bindings) -> bool:
        return not drop.beside or any(fill(name, bindings, self._sizes) in self._tensors for name in drop.beside)

    def _apply(self, rule: Rule, match: Match, ref: TensorRef) -> None:
        number, bindings = match.number, match.bindings
        values = tuple([bindings[hole] for hole in self._shared[number]])
        application = self._applications.get((number, values))
        if application is None:
            application = Application(number, rule, values, [None] * self._width[number])
            self._applications[number, values] = application
            self._result.applications.append(application)
        stacked = self._stacked[number]
        application.add(match.index, int(bindings[stacked]) if stacked else None, ref)


def knows_all(names: Iterable[str], statements: Sequence[Statement], side: str, ranges: Ranges) -> bool:
    """Whether the table has a place for every name."""
    matcher = Matcher(statements, side, ranges)
    return all(matcher.match(name) for name in names)


def unknown(matches: Matches, statements: Sequence[Statement], side: str, ranges: Ranges) -> Iterator[str]:
    """Findings: names that no rule takes, each with the pattern that is closest."""
    matcher = Matcher(statements, side, ranges)
    for name in matches.unknown:
        near = matcher.closest(name)
        yield f"{quote(name)}: no rule knows it" + (f"; closest: {near}" if near else "")


def strayed(matches: Matches, ranges: Ranges) -> Iterator[str]:
    """Findings: layers and experts beyond those that there are."""
    for name, bindings in matches.strayed:
        for hole, value in bindings.items():
            if not ranges.takes(hole, value):
                yield f"{quote(name)}: there is no {hole} {value}, but {ranges.described(hole)}"
                break


def learn_counts(matches: Matches, side: str, ranges: Ranges, sizes: Sizes) -> None:
    """Where the config does not say how many layers or experts there are, the names do; what is beyond them strays."""
    seen: dict[str, int] = defaultdict(int)
    for application in matches.applications:
        for hole, value in zip(application.rule.shared(side), application.values, strict=True):
            if isinstance(value, int):
                seen[hole] = max(seen[hole], value + 1)
        stacked = application.rule.stacked(side)
        for stack in application.members if stacked else ():
            if isinstance(stack, dict):
                seen[stacked or ""] = max(seen[stacked or ""], max(stack) + 1)
    for hole, count in seen.items():
        symbol = ranges.unknown(hole)
        if symbol:
            sizes.learn(symbol, count, "the tensors' names")
    if not all(ranges.takes(hole, count - 1) for hole, count in seen.items()):
        _set_strays_apart(matches, side, ranges)


def _set_strays_apart(matches: Matches, side: str, ranges: Ranges) -> None:
    """What the counts, learned since, put out of range."""
    for application in matches.applications:
        bindings = dict(zip(application.rule.shared(side), application.values, strict=True))
        if not all(ranges.takes(hole, value) for hole, value in bindings.items()):
            matches.strayed += [(ref.name, bindings) for ref in application.refs()]


def missing(
    matches: Matches, statements: Sequence[Statement], side: str, ranges: Ranges, sizes: Sizes
) -> Iterator[str]:
    """Findings: tensors that the table and the counts ask for and the source lacks.

    A required rule applies to every layer; an optional one to all of them or to none. Holes whose range nothing tells
    (a prefix, the blocks of a stage) have to be filled as in any other required rule that has the same ones.
    """
    by_rule: dict[int, list[Application]] = defaultdict(list)
    for application in matches.applications:
        by_rule[application.number].append(application)
    seen: dict[tuple[str, ...], set[Values]] = defaultdict(set)
    for applications in by_rule.values():
        rule = applications[0].rule
        endless = _endless(rule, side, ranges)
        if not rule.optional:
            seen[endless].update(_only(endless, rule.shared(side), one.values) for one in applications)
    for number, statement in enumerate(statements):
        if isinstance(statement, Rule) and (by_rule[number] or not statement.optional):
            yield from _missing_of(statement, by_rule[number], side, ranges, sizes, seen)


def _endless(rule: Rule, side: str, ranges: Ranges) -> tuple[str, ...]:
    """The shared holes whose range nothing tells; a number of unknown range takes all others with it."""
    shared = rule.shared(side)
    endless = tuple(hole for hole in shared if ranges.of(hole)[1] is None)
    return shared if numbers(rule.patterns(side)) & set(endless) else endless


def _only(holes: Sequence[str], shared: Sequence[str], values: Values) -> Values:
    return tuple(value for hole, value in zip(shared, values, strict=True) if hole in holes)


def _wanted(rule: Rule, present: Iterable[Values], side: str, ranges: Ranges, seen: _Seen) -> Iterator[Values]:
    """What the holes of a rule have to be filled with."""
    if rule.scattered:
        yield from present
        return
    shared = rule.shared(side)
    endless = _endless(rule, side, ranges)
    found = {_only(endless, shared, values) for values in present} if rule.optional else seen[endless]
    for some in found if endless else [()]:
        told = dict(zip(endless, some, strict=True))
        yield from _each([(told[hole],) if hole in told else ranges.numbers(hole) for hole in shared])


def _each(choices: Sequence[Sequence[int | str]]) -> Iterator[Values]:
    """All combinations, one by one: a range may be as long as a config says."""
    if not choices:
        yield ()
        return
    for first in choices[0]:
        for others in _each(choices[1:]):
            yield (first, *others)


def _missing_of(
    rule: Rule, applications: Sequence[Application], side: str, ranges: Ranges, sizes: Sizes, seen: _Seen
) -> Iterator[str]:
    stacked, shared = rule.stacked(side), rule.shared(side)
    present = {application.values: application for application in applications}
    positions = range(ranges.of(stacked)[1] or 1) if stacked else range(1)
    for values in _wanted(rule, present, side, ranges, seen):
        application = present.get(values)
        for index, pattern in enumerate(rule.patterns(side)):
            stack = application.stack(index) if application else {}
            for position in positions if len(stack) < len(positions) else ():
                if position not in stack:
                    holes = dict(zip(shared, values, strict=True)) | ({stacked: position} if stacked else {})
                    yield f"{fill(pattern, holes, sizes)}: missing"
