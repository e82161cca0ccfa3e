"""Matching: which rule each source tensor belongs to, and what is missing. Names only, no shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .errors import quote
from .rules import Bindings, Drop, Matcher, Rule, Statement, Tied, fill
from .sizes import Sizes
from .tensors import Catalog, TensorRef


@dataclass
class Application:
    """One application of a rule: the source tensors that share the holes both sides have.

    Attributes:
        number: the rule's place in the table.
        rule: the rule.
        bindings: what the shared holes hold.
        members: per source pattern, position in the stack (0 where there is none) → tensor.
    """

    number: int
    rule: Rule
    bindings: Bindings
    members: list[dict[int, TensorRef]]

    def refs(self) -> list[TensorRef]:
        """All its tensors, pattern by pattern, in the order of their stack."""
        return [members[position] for members in self.members for position in sorted(members)]


@dataclass
class Matches:
    """What became of every source tensor."""

    applications: list[Application] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    tied: dict[str, TensorRef] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def match_names(catalog: Catalog, statements: Sequence[Statement], side: str) -> Matches:
    """Every tensor of the catalog to its rule; `side` (`hf` or `ms`) is the source's."""
    matcher, result = Matcher(statements, side), Matches()
    numbers = {id(statement): number for number, statement in enumerate(statements)}
    applications: dict[tuple[object, ...], Application] = {}
    for name, ref in catalog.items():
        match = matcher.match(name)
        if match is None:
            near = matcher.closest(name)
            result.unknown.append(f"{quote(name)}: no rule knows it" + (f"; closest: {near}" if near else ""))
        elif isinstance(match.statement, Drop):
            result.dropped[name] = match.statement.why
        elif isinstance(match.statement, Tied):
            result.tied[name] = ref
        else:
            rule = match.statement
            stacked = rule.stacked(side)
            shared = {hole: value for hole, value in match.bindings.items() if hole != stacked}
            key = (id(rule), *shared.values())
            if key not in applications:
                members: list[dict[int, TensorRef]] = [{} for _ in rule.patterns(side)]
                applications[key] = Application(numbers[id(rule)], rule, shared, members)
            applications[key].members[match.index][int(match.bindings[stacked]) if stacked else 0] = ref
    result.applications = list(applications.values())
    return result


def learn_counts(matches: Matches, side: str, counts: Mapping[str, str], sizes: Sizes) -> None:
    """Where the config does not say how many layers or experts there are, the names do."""
    seen: dict[str, int] = defaultdict(int)
    for application in matches.applications:
        for hole, value in _numbers(application, side):
            seen[hole] = max(seen[hole], value + 1)
    for hole, count in seen.items():
        if hole in counts and sizes.get(counts[hole]) is None:
            sizes.learn(counts[hole], count, "the tensors' names")


def out_of_range(matches: Matches, side: str, counts: Mapping[str, str], sizes: Sizes) -> Iterator[str]:
    """Findings: layers and experts beyond those that there are."""
    for application in matches.applications:
        for hole, value in _numbers(application, side):
            count = sizes.get(counts.get(hole, ""))
            if count is not None and value >= count:
                name = quote(_name(application, side, value))
                yield f"{name}: {hole} {value} is one too many, there are {count}{sizes.origin(counts[hole])}"


def missing(
    matches: Matches, statements: Sequence[Statement], side: str, counts: Mapping[str, str], sizes: Sizes
) -> Iterator[str]:
    """Findings: tensors that the table and the counts ask for and the source lacks.

    A required rule applies to every layer; an optional one to all of them or to none.
    """
    by_rule: dict[int, list[Application]] = defaultdict(list)
    for application in matches.applications:
        by_rule[application.number].append(application)
    for number, statement in enumerate(statements):
        if isinstance(statement, Rule) and (by_rule[number] or not statement.optional):
            yield from _missing_of(statement, by_rule[number], side, counts, sizes)


def _missing_of(
    rule: Rule, applications: Sequence[Application], side: str, counts: Mapping[str, str], sizes: Sizes
) -> Iterator[str]:
    stacked = rule.stacked(side)
    shared = [hole for hole in rule.holes(side) if hole != stacked]
    present = {tuple(a.bindings[hole] for hole in shared): a for a in applications}
    depth = sizes.get(counts.get(stacked or "", "")) or 1
    wanted = [()] if not shared else [(i,) for i in range(sizes.get(counts.get(shared[0], "")) or 0)]
    for values in wanted if len(shared) < 2 else present:
        application = present.get(values)
        for index, pattern in enumerate(rule.patterns(side)):
            members = application.members[index] if application else {}
            for position in range(depth):
                if position not in members:
                    holes = dict(zip(shared, values, strict=True)) | ({stacked: position} if stacked else {})
                    yield f"{fill(pattern, holes)}: missing"


def _numbers(application: Application, side: str) -> Iterator[tuple[str, int]]:
    """Every number that the names of an application hold, by hole; of a stack, the highest."""
    for hole, value in application.bindings.items():
        if isinstance(value, int):
            yield hole, value
    stacked = application.rule.stacked(side)
    if stacked:
        yield stacked, max(position for members in application.members for position in members)


def _name(application: Application, side: str, value: int) -> str:
    """A tensor of the application whose name holds `value`."""
    refs = application.refs()
    named = (ref.name for ref in refs if str(value) in ref.name.split("."))
    return next(named, refs[0].name)
