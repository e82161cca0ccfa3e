"""`streamconv models check`: what a family's author wants to know of a real checkpoint, from its headers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..errors import StreamconvError, UsageError
from ..families.registry import Config, Family, Value, spell
from ..rules.matcher import Matcher
from ..rules.sizes import Ranges
from ..rules.statements import Direction, Statement
from ..tensors.refs import Catalog, Extent, SourceFile, TensorRef
from ..text import quote
from .mapping import TensorMapping
from .options import Question, decided_plan, told_options

_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One thing said of a family: an error, or what is merely good to know."""

    text: str
    is_error: bool = True


def check_family(family: Family, catalog: Catalog, config: Config) -> Iterator[Finding]:
    """For every choice of options: does the table know all tensors, each by one rule, and do they all come back?"""
    question = Question(catalog, family, config, Direction.FORWARD, None, _alike)
    for options in _choices(question):
        chosen = ", ".join(f"{name}={spell(value)}" for name, value in options.items()) or "no options"
        yield Finding(f"{chosen}:", is_error=False)
        try:
            yield from _of_plan(question.plan(options), family, catalog, config)
        except StreamconvError as error:
            yield Finding(f"  {error}")


def _choices(question: Question) -> Iterator[dict[str, Value]]:
    """All choices that give a table of their own; what the source's names tell is no choice."""
    told = told_options(question, {})
    tables: list[Sequence[Statement]] = []
    values = {o.name: (told[o.name],) if o.name in told else o.values for o in question.family.options}
    for choice in product(*values.values()):
        options = dict(zip(values, choice, strict=True))
        try:
            table = question.family.rules(question.config, options)
        except UsageError:  # not every option goes with every other
            continue
        if table not in tables:
            tables.append(table)
            yield options


def _of_plan(plan: TensorMapping, family: Family, catalog: Catalog, config: Config) -> Iterator[Finding]:
    ambiguous = list(_ambiguous(plan, family, catalog, config))
    if ambiguous:
        yield Finding(f"  ambiguous: {_some(ambiguous)}; the first rule of the table is taken")
    converted = _converted(plan)
    question = Question(converted, family, config, Direction.REVERSE, None, _alike)
    lost = list(_lost(question.plan(plan.options), catalog, plan.dropped))
    if lost:
        yield Finding(f"  not invertible: {_some(lost)}")
    dropped = [f"{quote(name)} ({why})" for name, why in plan.dropped.items()]
    if dropped:
        yield Finding(f"  dropped: {_some(dropped)}", is_error=False)
    yield from _questions(question)
    if not (ambiguous or lost):
        back = f"all but {len(dropped)} come back" if dropped else "all come back"
        yield Finding(f"  {len(catalog)} tensors become {len(plan.outputs)}, and {back}", is_error=False)


def _ambiguous(plan: TensorMapping, family: Family, catalog: Catalog, config: Config) -> Iterator[str]:
    """Names that more than one rule takes."""
    ranges = Ranges(family.ranges, family.sized(config, plan.options))
    matcher = Matcher(family.rules(config, plan.options), "hf", ranges)
    for name in catalog:
        takers = list(matcher.takers(name))
        if len(takers) > 1:
            yield f"{quote(name)} is taken by {' and by '.join(takers)}"


def _converted(plan: TensorMapping) -> Catalog:
    """What the plan would write, as if it lay somewhere."""
    file = SourceFile(Path("converted"), 0)
    refs = (TensorRef(o.name, o.dtype, o.view.shape, (Extent(file, 0, o.spec.nbytes),)) for o in plan.outputs)
    return Catalog(file.path, "safetensors", {ref.name: ref for ref in refs}, (file,))


def _lost(back: TensorMapping, catalog: Catalog, dropped: Mapping[str, str]) -> Iterator[str]:
    """What the way back does not give, or gives otherwise."""
    given = {output.name: output.view for output in back.outputs}
    for name, ref in catalog.items():
        if name in given and given[name].shape != ref.shape:
            yield f"{quote(name)} comes back as {list(given[name].shape)}, and was {list(ref.shape)}"
        elif name not in given and name not in dropped:
            yield f"{quote(name)} does not come back"
    for name in given.keys() - catalog.keys():
        yield f"{quote(name)} comes back, and was not there"


def _questions(question: Question) -> Iterator[Finding]:
    """What the way back has to be told, where no manifest remembers it."""
    try:
        decided_plan(question, {}, None, {})
    except UsageError as error:
        yield Finding(f"  in reverse, without a manifest: {error}", is_error=False)


def _alike(one: TensorRef, other: TensorRef) -> bool:
    return True


def _some(items: Sequence[str]) -> str:
    shown = "; ".join(items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"
