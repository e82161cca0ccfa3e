"""Matching: which rule each source tensor belongs to, and what is missing. Names only, no shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        for _, hole, value in _numbers(application, side):
            seen[hole] = max(seen[hole], value + 1)
    for hole, count in seen.items():
        if hole in counts and sizes.get(counts[hole]) is None:
            sizes.learn(counts[hole], count, "the tensors' names")


def out_of_range(matches: Matches, side: str, counts: Mapping[str, str], sizes: Sizes) -> Iterator[str]:
    """Findings: layers and experts beyond those that there are."""
    for application in matches.applications:
        for ref, hole, value in _numbers(application, side):
            count = sizes.get(counts.get(hole, ""))
            if count is not None and value >= count:
                yield f"{quote(ref.name)}: there is no {hole} {value}, but {count}{sizes.origin(counts[hole])}"


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
    wanted: Iterable[tuple[int | str, ...]] = present
    if len(shared) < 2:
        wanted = ((i,) for i in range(sizes.get(counts.get(shared[0], "")) or 0)) if shared else [()]
    for values in wanted:
        application = present.get(values)
        for index, pattern in enumerate(rule.patterns(side)):
            members = application.members[index] if application else {}
            for position in range(depth):
                if position not in members:
                    holes = dict(zip(shared, values, strict=True)) | ({stacked: position} if stacked else {})
                    yield f"{fill(pattern, holes)}: missing"


def _numbers(application: Application, side: str) -> Iterator[tuple[TensorRef, str, int]]:
    """Every number that a name of an application holds: the tensor, the hole, the number."""
    stacked = application.rule.stacked(side)
    for members in application.members:
        for position, ref in members.items():
            for hole, value in application.bindings.items():
                if isinstance(value, int):
                    yield ref, hole, value
            if stacked:
                yield ref, stacked, position
