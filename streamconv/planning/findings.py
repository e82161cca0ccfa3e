"""What does not fit the model: unknown names, names out of range, missing tensors; reported in one error."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import filterfalse, islice
from operator import attrgetter

from ..errors import SourceError, StreamconvError, UnsupportedError, UsageError
from ..rules.patterns import fill, listed_numbers, number_holes
from ..rules.statements import Rule, Side
from ..rules.table import Table
from ..text import counted, quote, setting
from . import matching
from .matching import Application, Matches, Values

_VALUES = attrgetter("values")

_LISTED = 200
_COUNTED = 100_000

USUAL_HINT = f"check that the model family is right ({setting('model', 'NAME')} sets it) and the source complete"

#: Values of holes that some required rule has, by the holes.
_Seen = Mapping[tuple[str, ...], AbstractSet[Values]]


def unknown(matches: Matches, table: Table) -> Iterator[str]:
    """Yield a finding for every name that no pattern matches, with the closest pattern."""
    for name in matches.unknown:
        near = table.matcher.closest(name)
        yield f"{quote(name)}: no rule matches" + (f"; closest: {near}" if near else "")


def out_of_range(matches: Matches, table: Table) -> Iterator[str]:
    """Yield a finding for every name with a layer or expert that the model does not have."""
    for name, bindings in matches.out_of_range:
        hole = next((hole for hole, value in bindings.items() if not table.ranges.contains(hole, value)), None)
        if hole is not None:
            yield f"{quote(name)}: no {hole} {bindings[hole]}; the model has {table.ranges.described(hole)}"


def missing(matches: Matches, table: Table) -> list[str]:
    """Return a finding for each tensor that the table and the counts ask for and the source lacks, 100,000 at most."""
    return list(islice(_missing(matches, table), _COUNTED))


def lacks_all_of_a_rule(matches: Matches, table: Table) -> bool:
    """Return whether the model needs a rule's tensors, in some layer, and the source has none of them in any."""
    return any(_missing(matches, table, only_whole=True))


def _missing(matches: Matches, table: Table, only_whole: bool = False) -> Iterator[str]:
    """Yield findings rule by rule, or only for rules that no tensor is matched by.

    A required rule applies to every layer; an optional one to all of them or to none. Holes without a known range (a
    prefix, the blocks of a stage) must take the same values as in every other required rule that has the same holes.
    """
    of_rules = matching.by_rule(matches.applications)
    seen: dict[tuple[str, ...], set[Values]] = defaultdict(set)
    for applications in of_rules.values():
        rule = applications[0].rule
        unbounded = _unbounded(rule, table)
        if not rule.optional:
            values = map(_VALUES, applications)
            shared = rule.shared(table.side)
            seen[unbounded].update(values if unbounded == shared else (_only(unbounded, shared, one) for one in values))
    for number, statement in enumerate(table.statements):
        applications = of_rules.get(number, [])
        is_there = bool(applications)
        if isinstance(statement, Rule) and (is_there or not statement.optional) and not (is_there and only_whole):
            yield from _missing_of(statement, applications, table, seen)


def _unbounded(rule: Rule, table: Table) -> tuple[str, ...]:
    """Return the shared holes without a known range; if one of them takes numbers, all shared holes."""
    shared = rule.shared(table.side)
    unbounded = tuple(hole for hole in shared if table.ranges.bounds(hole)[1] is None)
    return shared if number_holes(rule.patterns(table.side)) & set(unbounded) else unbounded


def _only(holes: Sequence[str], shared: Sequence[str], values: Values) -> Values:
    return tuple([value for hole, value in zip(shared, values, strict=True) if hole in holes])


def _missing_of(rule: Rule, applications: Sequence[Application], table: Table, seen: _Seen) -> Iterator[str]:
    stacked, shared = rule.stacked(table.side), rule.shared(table.side)
    positions = range(table.ranges.bounds(stacked)[1] or 1) if stacked else range(1)
    present = dict(zip(map(_VALUES, applications), applications, strict=True))
    some = [] if matching.takes_one(rule, table.side) else applications
    whole = present.keys() - {one.values for one in some if not one.is_whole(len(positions))}
    for values in filterfalse(whole.__contains__, _required(rule, present, table, seen)):
        application = present.get(values)
        for index, pattern in enumerate(rule.patterns(table.side)):
            stack = application.stack(index) if application else {}
            for position in positions if len(stack) < len(positions) else ():
                if position not in stack:
                    holes = dict(zip(shared, values, strict=True)) | ({stacked: position} if stacked else {})
                    yield f"{fill(pattern, holes, table.sizes)}: missing"


def _required(rule: Rule, present: Iterable[Values], table: Table, seen: _Seen) -> Iterator[Values]:
    """Yield the values of the shared holes for which a rule must have its tensors."""
    if rule.any_layer:
        yield from present
        return
    shared = rule.shared(table.side)
    unbounded = _unbounded(rule, table)
    found = {_only(unbounded, shared, values) for values in present} if rule.optional else seen[unbounded]
    listed = listed_numbers(rule.patterns(table.side))
    if unbounded == shared and unbounded:
        yield from found
        return
    for some in found if unbounded else [()]:
        given = {hole: (value,) for hole, value in zip(unbounded, some, strict=True)}
        yield from _product([given.get(hole) or listed.get(hole) or table.ranges.values(hole) for hole in shared])


def _product(choices: Sequence[Sequence[int | str]]) -> Iterator[Values]:
    """Yield all combinations lazily: unlike itertools.product, for a range may be as long as a config says."""
    if not choices:
        yield ()
        return
    for first in choices[0]:
        for others in _product(choices[1:]):
            yield (first, *others)


def check_direction(names: Sequence[str], table: Table) -> None:
    """Check that the names are not those of the other side.

    Raises:
        UsageError: most are: the conversion is asked in the wrong direction.
    """
    strange = [name for name in names if table.matcher.match(name) is None]
    other = table.other.matcher
    if 2 * len(strange) > len(names) and all(other.match(name) for name in strange):
        world, verb = ("MindSpore", "add") if table.side is Side.HF else ("HuggingFace", "omit")
        raise UsageError(
            f"the source has {world}'s names, such as {quote(strange[0])}", f"{verb} {setting('reverse', True)}"
        )


def raise_all(wrong: Sequence[str], absent: Sequence[str] = (), hints: Sequence[str] = ()) -> None:
    """Raise one error for all findings, if there are any.

    Args:
        wrong: findings about tensors that the source has.
        absent: findings about missing tensors.
        hints: what to do; that nothing was written is added.

    Raises:
        UnsupportedError: a tensor does not fit the model.
        SourceError: all that is wrong is that tensors are missing.
    """
    findings = [*wrong, *absent]
    if not findings:
        return
    kind: type[StreamconvError] = UnsupportedError if wrong else SourceError
    count = ("at least " if len(absent) == _COUNTED else "") + counted(len(findings), "tensor")
    verb = "does" if len(findings) == 1 else "do"
    more = [f"and {len(findings) - _LISTED} more"] if len(findings) > _LISTED else []
    raise kind(
        "\n  ".join([f"{count} {verb} not fit the model:", *findings[:_LISTED], *more]),
        "; ".join([*hints, "nothing was written"]),
    )
