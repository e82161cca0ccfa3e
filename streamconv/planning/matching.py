"""Match every source tensor to its statement. Names only, no shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from ..rules.matcher import Match
from ..rules.patterns import Bindings, fill
from ..rules.statements import Copy, Drop, Rule, Side, Tied
from ..rules.table import Table
from ..tensors.refs import TensorRef

Values = tuple[int | str, ...]


class Application(Struct, gc=False):
    """One application of a rule: the source tensors that share the values of the holes both sides have.

    Attributes:
        number: the rule's place in the table.
        rule: the rule.
        values: the values of the shared holes, in the order of the source's patterns.
        members: for each source pattern its tensor, or its tensors by position in the stack.
    """

    number: int
    rule: Rule
    values: Values
    members: list[TensorRef | dict[int, TensorRef] | None]

    def add(self, index: int, position: int | None, ref: TensorRef) -> None:
        """Add the tensor of pattern `index`, at `position` of its stack if there is one."""
        if position is None:
            self.members[index] = ref
            return
        stack = self.members[index]
        if not isinstance(stack, dict):
            stack = self.members[index] = {}
        stack[position] = ref

    def stack(self, index: int) -> dict[int, TensorRef]:
        """Return the tensors of pattern `index` by position; a tensor that is no stack has position 0."""
        found = self.members[index]
        return found if isinstance(found, dict) else {} if found is None else {0: found}

    def is_whole(self, count: int) -> bool:
        """Return whether it has the tensors of all its patterns, at least `count` of them where they are a stack."""
        stacks = [found for found in self.members if isinstance(found, dict)]
        return None not in self.members and all(len(stack) >= count for stack in stacks)

    def refs(self) -> list[TensorRef]:
        """Return all its tensors, pattern by pattern, in the order of their stack."""
        found: list[TensorRef] = []
        for member in self.members:
            if isinstance(member, dict):
                found += [member[position] for position in sorted(member)]
            elif member is not None:
                found.append(member)
        return found

    def stacks(self) -> list[dict[int, TensorRef]]:
        """Return its tensors by position, pattern by pattern."""
        return [self.stack(index) for index in range(len(self.members))]


class Matches(Struct):
    """How every source tensor is matched.

    Attributes:
        applications: the rules that apply, each with its tensors.
        dropped: dropped tensor -> why.
        tied_refs: name of a tied tensor -> the tensor.
        must_equal: dropped tensor -> the tensor that it must equal.
        should_repeat: dropped tensor -> HuggingFace's name of the tensor that it should repeat.
        unknown: names that no pattern matches.
        out_of_range: names with a layer or expert that the model does not have, and the values of their holes.
    """

    applications: list[Application] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    tied_refs: dict[str, TensorRef] = field(default_factory=dict)
    must_equal: dict[str, str] = field(default_factory=dict)
    should_repeat: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    out_of_range: list[tuple[str, Bindings]] = field(default_factory=list)


def takes_one(rule: Rule, side: Side) -> bool:
    """Return whether each application of a rule has one tensor of this side; its values are those of all holes then."""
    return len(rule.patterns(side)) == 1 and rule.stacked(side) is None


def by_rule(applications: Iterable[Application]) -> dict[int, list[Application]]:
    """Return applications by the number of their rule."""
    found: dict[int, list[Application]] = defaultdict(list)
    for application in applications:
        found[application.number].append(application)
    return found


def match_names(tensors: Mapping[str, TensorRef], table: Table) -> Matches:
    """Match every tensor to its statement."""
    matches = Matches()
    collect = _Collector(tensors, table, matches)
    for name, ref in tensors.items():
        match = table.matcher.match(name)
        if match is None:
            matches.unknown.append(name)
        elif match.out_of_range:
            matches.out_of_range.append((name, match.bindings))
        else:
            collect.add(match, name, ref)
    return matches


class _Collector:
    """Adds matches to their application, or to the tensors that are dropped or tied."""

    def __init__(self, tensors: Mapping[str, TensorRef], table: Table, matches: Matches) -> None:
        self._tensors, self._table, self._matches = tensors, table, matches
        rules = {number: rule for number, rule in enumerate(table.statements) if isinstance(rule, Rule)}
        self._stacked = {number: rule.stacked(table.side) for number, rule in rules.items()}
        self._shared = {number: rule.shared(table.side) for number, rule in rules.items()}
        self._width = {number: len(rule.patterns(table.side)) for number, rule in rules.items()}
        self._takes_one = {number for number, rule in rules.items() if takes_one(rule, table.side)}
        self._applications: dict[tuple[int, Values], Application] = {}

    def add(self, match: Match, name: str, ref: TensorRef) -> None:
        statement = self._table.statements[match.number]
        match statement:
            case Rule():
                self._apply(statement, match, ref)
            case Tied():
                self._matches.tied_refs[name] = ref
            case Copy():
                self._matches.dropped[name] = statement.why
                self._matches.should_repeat[name] = statement.of
            case Drop():
                self._drop(statement, match.bindings, name)

    def _drop(self, drop: Drop, bindings: Bindings, name: str) -> None:
        sizes = self._table.sizes
        if drop.only_with and not any(fill(sign, bindings, sizes) in self._tensors for sign in drop.only_with):
            self._matches.unknown.append(name)
            return
        self._matches.dropped[name] = drop.why
        if drop.must_equal:
            self._matches.must_equal[name] = fill(drop.must_equal, bindings, sizes)

    def _apply(self, rule: Rule, match: Match, ref: TensorRef) -> None:
        number, bindings = match.number, match.bindings
        if number in self._takes_one:
            self._matches.applications.append(Application(number, rule, tuple(bindings.values()), [ref]))
            return
        values = tuple([bindings[hole] for hole in self._shared[number]])
        application = self._applications.get((number, values))
        if application is None:
            application = Application(number, rule, values, [None] * self._width[number])
            self._applications[number, values] = application
            self._matches.applications.append(application)
        stacked = self._stacked[number]
        application.add(match.index, int(bindings[stacked]) if stacked else None, ref)


def learn_counts(matches: Matches, table: Table) -> None:
    """Learn missing layer and expert counts from tensor names, then mark the names outside all counts."""
    ranges, counts = table.ranges, _counts(matches, table)
    for hole, count in counts.items():
        symbol = ranges.unknown(hole)
        if symbol:
            table.sizes.learn(symbol, count, "the tensors' names")
    if not all(ranges.contains(hole, count - 1) for hole, count in counts.items()):
        _mark_out_of_range(matches, table)


def _counts(matches: Matches, table: Table) -> Mapping[str, int]:
    """Return how many values each hole has, by its highest."""
    counts: dict[str, int] = defaultdict(int)
    for applications in by_rule(matches.applications).values():
        rule = applications[0].rule
        for index, hole in enumerate(rule.shared(table.side)):
            numbers = [value for one in applications if isinstance(value := one.values[index], int)]
            if numbers:
                counts[hole] = max(counts[hole], max(numbers) + 1)
        if stacked := rule.stacked(table.side):
            stacks = [stack for one in applications for stack in one.members if isinstance(stack, dict)]
            if stacks:
                counts[stacked] = max(counts[stacked], max(map(max, stacks)) + 1)
    return counts


def _mark_out_of_range(matches: Matches, table: Table) -> None:
    for application in matches.applications:
        bindings = dict(zip(application.rule.shared(table.side), application.values, strict=True))
        if not all(table.ranges.contains(hole, value) for hole, value in bindings.items()):
            matches.out_of_range += [(ref.name, bindings) for ref in application.refs()]
