"""Options, decided: as given, else as the manifest remembers them, else the only ones under which all tensors fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from .dtypes import DType
from .errors import StreamconvError, UsageError, quote
from .families import Config, Family, Option, Value, spell
from .manifest import Manifest
from .plan import Plan, make_plan
from .rules import Direction
from .tensors import Catalog
from .words import suggestion


def parse_options(family: Family, given: Mapping[str, Value]) -> dict[str, Value]:
    """The options given, parsed as the family's."""
    known = {option.name: option for option in family.options}
    for name in given:
        if name not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{family.name} has no option {quote(name)!r}{suggestion(name, known)}; {has}")
    return {name: known[name].parse(spell(value)) for name, value in given.items()}


def decided_plan(
    catalog: Catalog,
    family: Family,
    config: Config,
    given: Mapping[str, Value],
    made_by: Manifest | None,
    direction: Direction,
    dtype: DType | None,
) -> Plan:
    """The plan, with every option decided: given, else (in reverse) as the manifest says or as only one value fits."""
    known = {**_recorded(family, made_by), **given} if direction is Direction.REVERSE else dict(given)
    open_ = [option for option in family.options if option.name not in known]
    if direction is Direction.FORWARD or not open_:
        options = {option.name: known.get(option.name, option.default) for option in family.options}
        return make_plan(catalog, family, config, options, direction, dtype)
    return _only_fitting(catalog, family, config, known, direction, dtype)


def _recorded(family: Family, made_by: Manifest | None) -> dict[str, Value]:
    if made_by is None or made_by["model"] != family.name:
        return {}
    known = {option.name: option for option in family.options}
    return {name: known[name].parse(str(value)) for name, value in made_by.options.items() if name in known}


def _only_fitting(
    catalog: Catalog,
    family: Family,
    config: Config,
    known: Mapping[str, Value],
    direction: Direction,
    dtype: DType | None,
) -> Plan:
    """Try every choice of the options that are open; those under which all tensors fit decide.

    Raises:
        UsageError: several fit, and give different results.
        StreamconvError: none fits: what the defaults say.
    """
    errors: list[StreamconvError] = []
    impossible: list[StreamconvError] = []
    for choices in _in_turn(family, known):
        fitting: dict[str, Plan] = {}
        for options in choices:
            if unheard_of := _no_table(family, config, options):
                impossible.append(unheard_of)
                continue
            try:
                plan = make_plan(catalog, family, config, options, direction, dtype)
                fitting[plan.digest] = plan
            except StreamconvError as error:
                errors.append(error)
        if len(fitting) > 1:
            raise UsageError(_ambiguous(family, [plan.options for plan in fitting.values()]))
        if fitting:
            return next(iter(fitting.values()))
    # The choice that came nearest is the one with the least to say.
    usage = [error for error in errors if isinstance(error, UsageError)]
    raise min(usage or errors or impossible, key=lambda error: len(str(error)))


def _no_table(family: Family, config: Config, options: Mapping[str, Value]) -> UsageError | None:
    """Why the family knows no such choice, if it does not: not every option goes with every other."""
    try:
        family.rules(config, options)
    except UsageError as error:
        return error
    return None


def _in_turn(family: Family, known: Mapping[str, Value]) -> list[list[dict[str, Value]]]:
    """Every choice of the open options, in groups: those after the first matter where none before them fits."""
    first = [option for option in family.options if not option.decides]
    rest = [option for option in family.options if option.decides]
    names = [option.name for option in family.options]
    groups = [[{**one, **other} for other in _choices(rest, known)] for one in _choices(first, known)]
    return [[{name: choice[name] for name in names} for choice in group] for group in groups]


def _choices(options: Sequence[Option], known: Mapping[str, Value]) -> list[dict[str, Value]]:
    names = [option.name for option in options]
    values = ((known[option.name],) if option.name in known else option.values for option in options)
    return [dict(zip(names, choice, strict=True)) for choice in product(*values)]


def _ambiguous(family: Family, fitting: list[Mapping[str, Value]]) -> str:
    lines = []
    for option in family.options:
        values = list(dict.fromkeys(spell(options[option.name]) for options in fitting))
        if len(values) > 1:
            lines.append(f"-o {option.name}={' or '.join(values)} ({option.help})")
    return "neither names nor shapes of the source tell how it was made; say which: " + "; ".join(lines)
