"""Decide the options of a family: as given, else as the manifest records them, else as all tensors fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import NamedTuple

from msgspec.structs import replace

from ..errors import SourceError, StreamconvError, UnsupportedError, UsageError
from ..rules.family import Config, Family, Option, Value, spell, whole_number
from ..rules.patterns import holes
from ..rules.statements import Direction, Rule, Statement
from ..rules.table import Table
from ..text import did_you_mean, quote, setting
from . import fused_tensors, prefixes
from .mapping import EmptyMappingError, Request, TensorMapping, map_tensors

OptionValues = Mapping[str, Value]

#: A model family's name, and the options of it that made a checkpoint, as its manifest records them.
Recorded = tuple[str, Mapping[str, object]]


class Decided(NamedTuple):
    """A request with its source as it is read, under the family's names and with fused tensors cut; and its mapping."""

    request: Request
    mapping: TensorMapping


def parse_options(family: Family, given: OptionValues) -> dict[str, Value]:
    """Parse the options given: choices of the family, and sizes.

    Raises:
        UsageError: the family has no such option, or the option no such value.
    """
    return {name: _parsed(family, name, spell(value)) for name, value in given.items()}


def _parsed(family: Family, name: str, text: str) -> Value:
    known = {option.name: option for option in family.options}
    if name in known:
        return known[name].parse(text)
    if name in family.manual_sizes:
        return whole_number(name, text)
    names = [*known, *family.manual_sizes]
    if not names:
        raise UsageError(f"{family.name} takes no options", f"omit {setting(f'options.{quote(name)}')}")
    near = did_you_mean(name, names)
    hint = f"known options: {', '.join(names)}"
    raise UsageError(f"{family.name} has no option {quote(name)!r}", f"{near} {hint}" if near else hint)


def from_yaml(family: Family, yaml_values: Mapping[str, object]) -> dict[str, Value]:
    """Return the family's options that a MindFormers YAML holds."""
    found = {o.name: yaml_values[o.yaml_key] for o in family.options if o.yaml_key in yaml_values}
    return {name: value for name, value in found.items() if isinstance(value, bool)}


def decided_mapping(
    request: Request, given: OptionValues, recorded: Recorded | None = None, yaml: OptionValues | None = None
) -> TensorMapping:
    """Map all tensors, with every option decided.

    Args:
        request: what is to be converted.
        given: options given by the user.
        recorded: the options that the source was made with, from its manifest.
        yaml: the options in a MindFormers YAML.

    Raises:
        UsageError: in reverse, several values of an option fit the source, with different results.
        StreamconvError: the source does not fit the family under any spelling; see `map_tensors`.
    """
    return decided(request, given, recorded, yaml).mapping


def decided(
    request: Request, given: OptionValues, recorded: Recorded | None = None, yaml: OptionValues | None = None
) -> Decided:
    """Map all tensors as `decided_mapping` does, and return the names that they are read under too."""
    is_reverse = request.direction is Direction.REVERSE
    known = {**(yaml or {}), **(_recorded(request.family, recorded) if is_reverse else {}), **given}
    try:
        return _decided(request, known)
    except (SourceError, UnsupportedError) as error:
        found = prefixes.respelled(request.catalog, list(all_tables(request, known)))
        if found is None:
            raise
        first = error
    catalog, spelling = found
    try:
        found_so = _decided(replace(request, catalog=catalog), known)
    except StreamconvError as error:
        error.add(str(spelling))
        raise error from first
    mapping = found_so.mapping
    return found_so._replace(mapping=replace(mapping, notes=(str(spelling), *mapping.notes)))


def _decided(request: Request, known: OptionValues) -> Decided:
    """Map all tensors under their names."""
    if request.direction is Direction.REVERSE:
        mapping = _only_fitting(request, known)
        outputs = fused_tensors.joined(mapping.outputs, request.family.fused_in_reverse(mapping.options))
        return Decided(request, replace(mapping, outputs=outputs))
    cut = fused_tensors.separated(request.catalog, request.family.fused)
    if cut:
        request = replace(request, catalog=cut.catalog)
    defaults = {option.name: option.default for option in request.family.options}
    mapping = map_tensors(request, {**defaults, **inferred_from_names(request, known), **known})
    return Decided(request, replace(mapping, notes=(cut.note,)) if cut else mapping)


def all_tables(request: Request, known: OptionValues) -> Iterator[Table]:
    """Yield the tables of all values of the options that are not known."""
    seen: list[Sequence[Statement]] = []
    for options in (options for grid in _option_grid(request.family, known) for options in grid):
        with suppress(UsageError):  # not every option goes with every other
            table = request.table(options)
            if table.statements not in seen:
                seen.append(table.statements)
                yield table


def _recorded(family: Family, recorded: Recorded | None) -> dict[str, Value]:
    if recorded is None or recorded[0] != family.name:
        return {}
    known = {option.name for option in family.options} | family.manual_sizes.keys()
    return {name: _parsed(family, name, str(value)) for name, value in recorded[1].items() if name in known}


def inferred_from_names(request: Request, given: OptionValues) -> OptionValues:
    """Infer options from the names of a HuggingFace source: the first values that leave the fewest unmatched.

    Where no name matches whatever the values, the names tell nothing, and the defaults are taken.
    """
    family = request.family
    inferable = [option for option in family.options if option.infer_from_names and option.name not in given]
    if not inferable:
        return {}
    others = {option.name: given.get(option.name, option.default) for option in family.options} | dict(given)
    choices = [choice for choice in _choices(inferable, {}) if _go_together(request, {**others, **choice})]
    tables = [request.table({**others, **choice}) for choice in choices]
    unmatched = [count_unmatched(request, table) for table in tables]
    if all(count == len(request.catalog) for count in unmatched):
        return {option.name: option.default for option in inferable}
    lacking = [count_lacking(request, table) for table in tables]
    return min(zip(choices, unmatched, lacking, strict=True), key=lambda one: one[1] + one[2])[0]


def count_unmatched(request: Request, table: Table) -> int:
    """Return how many names of the source no pattern matches."""
    return sum(table.matcher.match(name) is None for name in request.catalog)


def count_lacking(request: Request, table: Table) -> int:
    """Return how many names, of those that a model of any size has, the source lacks."""
    side = request.direction.source
    required = [rule.patterns(side) for rule in table.statements if isinstance(rule, Rule) and not rule.optional]
    return sum(name not in request.catalog for names in required if not holes(names) for name in names)


def _only_fitting(request: Request, known: OptionValues) -> TensorMapping:
    """Try all values of the options that are not known.

    Raises:
        UsageError: several fit, and give different results.
        StreamconvError: none fits; the error is that of the values that came nearest.
    """
    trials = _Trials(request)
    for grid in _option_grid(request.family, known):
        fitting = trials.fitting(grid)
        if len(fitting) > 1:
            raise _ambiguous(request.family, [mapping.options for mapping in fitting])
        if fitting:
            return fitting[0]
    raise trials.nearest_error()


class _Trials:
    """Options tried, none whose table was tried before, and how they failed."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._tables: list[Sequence[Statement]] = []
        self._errors: list[tuple[OptionValues, StreamconvError]] = []
        self._impossible: list[StreamconvError] = []

    def fitting(self, grid: Sequence[OptionValues]) -> list[TensorMapping]:
        """Return a mapping for each different effect of the options under which all tensors fit."""
        found: dict[str, TensorMapping] = {}
        for options in grid:
            mapping = self._try(options)
            if mapping is not None:
                found.setdefault(mapping.effect if len(grid) > 1 else "", mapping)
        return list(found.values())

    def _try(self, options: OptionValues) -> TensorMapping | None:
        try:
            table = self._request.family.rules(self._request.config, options)
        except UsageError as error:  # not every option goes with every other
            self._impossible.append(error)
            return None
        if table in self._tables:
            return None
        self._tables.append(table)
        try:
            return map_tensors(self._request, options)
        except EmptyMappingError as error:
            self._impossible.append(error)
        except StreamconvError as error:
            self._errors.append((options, error))
        return None

    def nearest_error(self) -> StreamconvError:
        """Return the error of the options whose names are most like those of the source; of these, the shortest list.

        Lists are compared only where the names fit equally well: that of a layout with other names may be short too.
        """
        if not self._errors:
            return self._impossible[0]
        return min(self._errors, key=self._distance)[1]

    def _distance(self, tried: tuple[OptionValues, StreamconvError]) -> tuple[int, bool, int]:
        options, error = tried
        unmatched = count_unmatched(self._request, self._request.table(options))
        return unmatched, not isinstance(error, UsageError), str(error).count("\n")


def options_that_matter(family: Family, config: Config, options: OptionValues) -> set[str]:
    """Return the options whose other values would give another table: not `lora_names` where `is_lora` is false."""
    table = family.rules(config, options)

    def differs(choice: OptionValues) -> bool:
        try:
            return list(family.rules(config, choice)) != list(table)
        except UsageError:  # not every option goes with every other
            return False

    return {o.name for o in family.options if any(differs({**options, o.name: value}) for value in o.values)}


def _go_together(request: Request, options: OptionValues) -> bool:
    """Return whether the family has a table for these options: not every option goes with every other."""
    try:
        request.family.rules(request.config, options)
    except UsageError:
        return False
    return True


def _option_grid(family: Family, known: OptionValues) -> list[list[dict[str, Value]]]:
    """Return all values of the open options, in groups: a group is tried only if none before it fits."""
    wishes = [option for option in family.options if option.is_preference]
    facts = [option for option in family.options if not option.is_preference]
    names = [option.name for option in family.options]
    sizes = {name: known[name] for name in family.manual_sizes if name in known}
    groups = [[{**one, **other} for other in _choices(facts, known)] for one in _choices(wishes, known)]
    return [[{**{name: choice[name] for name in names}, **sizes} for choice in group] for group in groups]


def _choices(options: Sequence[Option], known: OptionValues) -> list[dict[str, Value]]:
    names = [option.name for option in options]
    values = ((known[option.name],) if option.name in known else option.values for option in options)
    return [dict(zip(names, choice, strict=True)) for choice in product(*values)]


def _ambiguous(family: Family, fitting: Iterable[OptionValues]) -> UsageError:
    """Return the question which of several values the source was made with."""
    choices = []
    for option in family.options:
        values = list(dict.fromkeys(spell(options[option.name]) for options in fitting))
        if len(values) > 1:
            spelled = " or ".join(setting(f"options.{option.name}", value) for value in values)
            choices.append(f"{spelled} ({option.help})")
    return UsageError(
        "neither names nor shapes tell how the source is laid out: several option values fit it",
        f"say which: {'; '.join(choices)}",
    )
