"""Mutates every family's table, rule by rule, and shows that tests notice: `python tests/support/mutations.py [NAME…]`.

Two names swapped, the parts of a split swapped, a transpose left out, rows joined in one group, experts shifted by
one. A mutant is killed when one golden case of its family fails; a rule that no golden case has is killed by the page
of all tables (docs/families.md, compared by tests/test_docs.py).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

if __name__ == "__main__":  # of a script, its own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import streamconv
from streamconv.errors import StreamconvError
from streamconv.families import Family, Rule
from streamconv.families import registry as families
from streamconv.rules.interleaving import Deinterleave, Interleave
from streamconv.rules.sizes import Sizes
from streamconv.rules.statements import Side
from streamconv.rules.transforms import Chain, Identity, PerTensor, Transform, Transpose
from streamconv.tensors import views
from streamconv.tensors.view_nodes import View
from support import families_page, golden
from support.helpers import choices

Table = Sequence[object]


@dataclass(frozen=True)
class Shifted(Transform):
    """A stack whose first tensor is last, or the other way round."""

    back: bool = False

    def apply(self, parts: Sequence[View], sizes: Sizes) -> list[View]:
        return [self._shift(part) for part in parts]

    def _shift(self, part: View) -> View:
        end = part.shape[0]
        at = end - 1 if self.back else 1
        return views.concat([views.cut(part, 0, at, end), views.cut(part, 0, 0, at)], 0) if end > 1 else part

    @property
    def inverse(self) -> Transform:
        return Shifted(not self.back)


@dataclass(frozen=True)
class Mutant:
    """A family, one of its rules (or two), and what is there in their place."""

    family: Family
    what: str
    changed: dict[Rule, Rule]

    def mutated(self) -> Family:
        return replace(self.family, rules=lambda c, o: [self._of(s) for s in self.family.rules(c, o)])

    def _of(self, statement: Any) -> Any:
        return self.changed.get(statement, statement) if isinstance(statement, Rule) else statement

    def __hash__(self) -> int:
        return id(self)


def mutants(family: Family, table: Table) -> Iterator[Mutant]:
    """All mutants of a table."""
    rules = [statement for statement in table if isinstance(statement, Rule)]
    for number, rule in enumerate(rules):
        if (other := _partner(rule, rules[number + 1 :] + rules[:number])) is not None:
            changed = {rule: replace(rule, ms=other.ms), other: replace(other, ms=rule.ms)}
            yield Mutant(family, f"{rule.ms} and {other.ms} swapped", changed)
        for what, other in _alone(rule):
            yield Mutant(family, f"{rule.ms}: {what}", {rule: other})


def _partner(rule: Rule, others: Sequence[Rule]) -> Rule | None:
    """A rule of the same shape, so that only the bytes can tell."""
    fitting = [other for other in others if _form(other) == _form(rule)]
    alike = [other for other in fitting if (other.shape, other.transform) == (rule.shape, rule.transform)]
    return next(iter(alike or fitting), None)


def _form(rule: Rule) -> tuple[object, ...]:
    return rule.holes(Side.MS), len(rule.patterns(Side.MS))


def _alone(rule: Rule) -> Iterator[tuple[str, Rule]]:
    if len(rule.patterns(Side.MS)) > 1:
        first, second, *rest = rule.patterns(Side.MS)
        yield "parts swapped", replace(rule, ms=(second, first, *rest))
    if len(rule.patterns(Side.HF)) > 1:
        first, second, *rest = rule.patterns(Side.HF)
        if rule.shapes()[0] == rule.shapes()[1]:
            yield "sources swapped", replace(rule, hf=(second, first, *rest))
    for what, change in (("transpose left out", _straight), ("one group", _ungrouped)):
        if (transform := _rewritten(rule.transform, change)) != rule.transform:
            yield what, replace(rule, transform=transform)
    if rule.stacked(Side.HF):
        yield "experts shifted", replace(rule, transform=Shifted() >> rule.transform)


def _rewritten(transform: Transform, change: Callable[[Transform], Transform]) -> Transform:
    match transform:
        case Chain():
            return Chain(tuple(_rewritten(step, change) for step in transform.steps))
        case PerTensor():
            return PerTensor(tuple(_rewritten(step, change) for step in transform.steps))
    return change(transform)


def _straight(transform: Transform) -> Transform:
    return Identity() if isinstance(transform, Transpose) and len(transform.axes) < 4 else transform


def _ungrouped(transform: Transform) -> Transform:
    match transform:
        case Interleave() if transform.groups != "1":
            return replace(transform, groups="1")
        case Deinterleave():
            return Deinterleave(replace(transform.interleave, groups="1"))
    return transform


class Judge:
    """Golden cases, each with the table that it converts by and its source, written once."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family, self.folder, self.runs = family, folder, 0
        self.cases = golden.cases(family.name)
        self.sources = [case.write_source(folder / case.name) for case in self.cases]
        self.tables = [self._table(case, source) for case, source in zip(self.cases, self.sources, strict=True)]

    def _table(self, case: golden.Case, source: Path) -> Table:
        plan = streamconv.plan(source, self.folder / "never", max_mem="8G", **case.arguments).mapping
        return self.family.rules(case.values["config"], plan.options)

    def kills(self, mutant: Mutant) -> bool:
        """Whether a golden case fails."""
        concerned = [i for i, table in enumerate(self.tables) if any(rule in table for rule in mutant.changed)]
        original, families.choose = families.choose, lambda name, config: mutant.mutated()
        try:
            return any(self._fails(number) for number in concerned)
        finally:
            families.choose = original

    def _fails(self, number: int) -> bool:
        self.runs += 1
        dest = self.folder / f"out{self.runs}"
        try:
            streamconv.convert(self.sources[number], dest, max_mem="8G", workers=1, **self.cases[number].arguments)
        except StreamconvError:
            return True
        return golden.found(dest) != self.cases[number].expected


def survey(family: Family, step: int = 1) -> tuple[int, int, list[str]]:
    """How many mutants of a family golden cases kill, how many only the page of all tables; and those that survive.

    With `step`, every so many of them.
    """
    page = "\n".join(families_page.section(family))
    by_golden, by_page, alive = 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(family, Path(folder))
        for mutant in _all(family, judge.tables)[::step]:
            if judge.kills(mutant):
                by_golden += 1
            elif "\n".join(families_page.section(mutant.mutated())) != page:
                by_page += 1
            else:
                alive.append(mutant.what)
    return by_golden, by_page, alive


def _all(family: Family, tables: Sequence[Table]) -> list[Mutant]:
    """Every mutant once, of the tables of the golden cases and of all choices of options.

    Of options that are numbers, the default and those of golden cases: others differ in that number alone.
    """
    numbers = {option.name: option.default for option in family.options if option.any_positive}
    usual = [options for options in choices(family) if numbers.items() <= options.items()]
    found: dict[str, Mutant] = {}
    for table in (*tables, *(family.rules(family.example, options) for options in usual)):
        for mutant in mutants(family, table):
            found.setdefault(f"{mutant.what} {sorted(map(repr, mutant.changed))}", mutant)
    return list(found.values())


def main(names: Sequence[str]) -> int:
    total = [0, 0, 0]
    for family in families.families():
        if family.name == "raw" or (names and family.name not in names):
            continue
        by_golden, by_page, alive = survey(family)
        print(f"{family.name:12} {by_golden:4} killed by golden cases, {by_page:3} by the page, {len(alive)} alive")
        for what in alive:
            print(f"             alive: {what}")
        total = [a + b for a, b in zip(total, (by_golden, by_page, len(alive)), strict=True)]
    print(f"all          {total[0]:4} killed by golden cases, {total[1]:3} by the page, {total[2]} alive")
    return bool(total[2])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
