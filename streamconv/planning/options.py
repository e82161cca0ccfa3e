"""Options, decided: as given, else as the manifest remembers them, else the only ones under which all tensors fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from ..errors import StreamconvError, UsageError
from ..families.registry import Config, Family, Option, Value, spell, whole_number
from ..rules.matcher import Matcher
from ..rules.patterns import holes
from ..rules.sizes import Ranges
from ..rules.statements import Direction, Rule, Statement
from ..tensors.dtypes import DType
from ..tensors.refs import Catalog
from ..text import did_you_mean, quote
from .mapping import EmptyMappingError, TensorMapping, map_tensors
from .outputs import Alike

Chosen = Mapping[str, Value]

#: A model family's name, and the options of it that made a checkpoint, as its manifest records them.
Recorded = tuple[str, Mapping[str, object]]


def parse_options(family: Family, given: Mapping[str, Value]) -> dict[str, Value]:
    """The options given, parsed as the family's: choices, and numbers given by hand."""
    return {name: _parsed(family, name, spell(value)) for name, value in given.items()}


def _parsed(family: Family, name: str, text: str) -> Value:
    known = {option.name: option for option in family.options}
    if name in known:
        return known[name].parse(text)
    if name in family.numbers:
        return whole_number(name, text)
    names = [*known, *family.numbers]
    if not names:
        raise UsageError(f"{family.name} takes no options")
    near = did_you_mean(name, names)
    hint = f"its options are {', '.join(names)}"
    raise UsageError(f"{family.name} has no option {quote(name)!r}", f"{near} {hint}" if near else hint)


def said_options(family: Family, said: Mapping[str, object]) -> dict[str, Value]:
    """What a MindFormers YAML says of the family's options."""
    told = {option.name: said[option.said] for option in family.options if option.said in said}
    return {name: value for name, value in told.items() if isinstance(value, bool)}


@dataclass(frozen=True)
class Question:
    """A conversion whose options are to be decided."""

    catalog: Catalog
    family: Family
    config: Config
    direction: Direction
    dtype: DType | None
    alike: Alike

    def plan(self, options: Chosen) -> TensorMapping:
        """The plan under this choice."""
        return map_tensors(self.catalog, self.family, self.config, options, self.direction, self.dtype, self.alike)


def decided_plan(question: Question, given: Chosen, recorded: Recorded | None, said: Chosen) -> TensorMapping:
    """The plan, with every option decided.

    Args:
        question: what is to be converted.
        given: options given by hand.
        recorded: those that the source was made with, as its manifest says.
        said: what a MindFormers YAML says of them.
    """
    family = question.family
    if question.direction is Direction.FORWARD:
        defaults = {option.name: option.default for option in family.options}
        known = {**said, **given}
        return question.plan({**defaults, **told_options(question, known), **known})
    return _only_fitting(question, {**said, **_recorded(family, recorded), **given})


def _recorded(family: Family, recorded: Recorded | None) -> dict[str, Value]:
    if recorded is None or recorded[0] != family.name:
        return {}
    known = {option.name for option in family.options} | family.numbers.keys()
    return {name: _parsed(family, name, str(value)) for name, value in recorded[1].items() if name in known}


def told_options(question: Question, given: Chosen) -> Chosen:
    """What the source's names tell of the options: the first values under which the table knows most of them."""
    family = question.family
    told = [option for option in family.options if option.told and option.name not in given]
    if not told:
        return {}
    others = {option.name: given.get(option.name, option.default) for option in family.options} | dict(given)
    choices = [choice for choice in _choices(told, {}) if _has_table(question, {**others, **choice})]
    return min(choices, key=lambda choice: _strangers(question, {**others, **choice}), default={})


def _strangers(question: Question, options: Chosen) -> int:
    """How many of the source's names the table does not know, and how many of its names without holes the source."""
    family = question.family
    ranges = Ranges(family.ranges, family.sized(question.config, options))
    table = family.rules(question.config, options)
    matcher = Matcher(table, "hf", ranges)
    required = [rule.patterns("hf") for rule in table if isinstance(rule, Rule) and not rule.optional]
    lacking = sum(name not in question.catalog for names in required if not holes(names) for name in names)
    return lacking + sum(matcher.match(name) is None for name in question.catalog)


def _only_fitting(question: Question, known: Chosen) -> TensorMapping:
    """Try every choice of the options that are open; those under which all tensors fit decide.

    Raises:
        UsageError: several fit, and give different results.
        StreamconvError: none fits: what the defaults say.
    """
    errors: list[StreamconvError] = []
    impossible: list[StreamconvError] = []
    tables: list[Sequence[Statement]] = []
    for choices in _in_turn(question.family, known):
        fitting: dict[str, TensorMapping] = {}
        for options in choices:
            try:
                table = question.family.rules(question.config, options)
            except UsageError as error:
                impossible.append(error)
                continue
            if table in tables:
                continue
            tables.append(table)
            try:
                plan = question.plan(options)
                fitting.setdefault(plan.effect if len(choices) > 1 else "", plan)
            except EmptyMappingError as error:
                impossible.append(error)
            except StreamconvError as error:
                errors.append(error)
        if len(fitting) > 1:
            raise UsageError(_ambiguous(question.family, [plan.options for plan in fitting.values()]))
        if fitting:
            return next(iter(fitting.values()))
    # The choice that came nearest is the one with the least to say.
    usage = [error for error in errors if isinstance(error, UsageError)]
    raise min(usage or errors or impossible, key=lambda error: len(str(error)))


def options_that_matter(family: Family, config: Config, options: Chosen) -> set[str]:
    """Return the options whose other values would give another table: not `lora_names` where `is_lora` is false."""
    table = family.rules(config, options)

    def differs(choice: Chosen) -> bool:
        try:
            return list(family.rules(config, choice)) != list(table)
        except UsageError:  # not every option goes with every other
            return False

    return {o.name for o in family.options if any(differs({**options, o.name: value}) for value in o.values)}


def _has_table(question: Question, options: Chosen) -> bool:
    """Whether the family knows such a choice: not every option goes with every other."""
    try:
        question.family.rules(question.config, options)
    except UsageError:
        return False
    return True


def _in_turn(family: Family, known: Chosen) -> list[list[dict[str, Value]]]:
    """Every choice of the open options, in groups: those after the first matter where none before them fits."""
    first = [option for option in family.options if not option.decides]
    rest = [option for option in family.options if option.decides]
    names = [option.name for option in family.options]
    numbers = {name: known[name] for name in family.numbers if name in known}
    groups = [[{**one, **other} for other in _choices(rest, known)] for one in _choices(first, known)]
    return [[{**{name: choice[name] for name in names}, **numbers} for choice in group] for group in groups]


def _choices(options: Sequence[Option], known: Chosen) -> list[dict[str, Value]]:
    names = [option.name for option in options]
    values = ((known[option.name],) if option.name in known else option.values for option in options)
    return [dict(zip(names, choice, strict=True)) for choice in product(*values)]


def _ambiguous(family: Family, fitting: Iterable[Chosen]) -> str:
    lines = []
    for option in family.options:
        values = list(dict.fromkeys(spell(options[option.name]) for options in fitting))
        if len(values) > 1:
            lines.append(f"-o {option.name}={' or '.join(values)} ({option.help})")
    return "neither names nor shapes of the source tell how it was made; say which: " + "; ".join(lines)
