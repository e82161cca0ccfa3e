"""What `models` says: families as lines for people and values for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import UsageError
from ..families.parts.decoder import TRAINING_STATE
from ..families.registry import Family, Option, Options, Value, spell
from ..rules.statements import Copy, Drop, Rule, Statement, Tied
from ..rules.transforms import Identity


def family_lines(family: Family, details: bool) -> list[str]:
    """A family in a line, or in full."""
    if not details:
        options = ", ".join(f"{o.name}={'|'.join(map(spell, o.values))}" for o in family.options)
        return [f"{family.name:12} {family.title}" + (f"  ({options})" if options else "")]
    lines = [f"{family.name}: {family.title}"]
    for title, entries in family_parts(family):
        lines += [f"  {title}:", *(f"    {entry}" for entry in entries)]
    return lines


def family_parts(family: Family) -> Iterator[tuple[str, list[str]]]:
    """Everything there is to say of a family: titles, and the lines below each."""
    parts = (
        ("recognised by", [*_recognised(family)]),
        ("repositories", [*family.repositories]),
        ("options (the first value is the default)", [_option(option) for option in family.options]),
        ("numbers that may be given, and are checked", [f"{n}  ({s})" for n, s in family.numbers.items()]),
        ("other than MindFormers' own converter", [*family.differs]),
        ("names and layouts, HuggingFace -> MindSpore", _table(family, {})),
        *((f"with {choice}", lines) for choice, lines in _variants(family)),
    )
    yield from ((title, entries) for title, entries in parts if entries)


def _recognised(family: Family) -> Iterator[str]:
    marks = f", with {', '.join(family.marks)}" if family.marks else ""
    yield from (f"config.json: model_type {name}{marks}" for name in family.model_types)
    yield from (f"config.json: architectures {name}{marks}" for name in family.architectures)


def _option(option: Option) -> str:
    more = "|…" if option.free else ""
    return f"{option.name}={'|'.join(map(spell, option.values))}{more}  {option.help}"


def family_values(family: Family) -> dict[str, object]:
    """The family as plain values."""
    return {
        "name": family.name,
        "title": family.title,
        "model_types": list(family.model_types),
        "repositories": list(family.repositories),
        "options": [
            {"name": o.name, "values": list(o.values), "default": o.default, "help": o.help} for o in family.options
        ],
        "numbers": list(family.numbers),
        "differs": list(family.differs),
    }


def _variants(family: Family) -> Iterator[tuple[str, list[str]]]:
    """For every other value of an option, what it makes of the table; beside another option, if it needs that."""
    for option in family.options:
        for value in option.values[1:]:
            tried = ((some, _table(family, {**some, option.name: value})) for some in _beside(family, option))
            beside, table = next(((some, lines) for some, lines in tried if lines), ({}, []))
            usual = set(_table(family, beside))
            choice = ", ".join(f"{n}={spell(v)}" for n, v in {option.name: value, **beside}.items())
            yield choice, [line for line in table if line not in usual]


def _beside(family: Family, option: Option) -> Iterator[dict[str, Value]]:
    yield {}
    yield from ({other.name: v} for other in family.options if other is not option for v in other.values[1:])


def _table(family: Family, options: Options) -> list[str]:
    chosen = {option.name: option.default for option in family.options} | dict(options)
    try:
        return [line for statement in family.rules(family.example, chosen) for line in _statement(statement)]
    except UsageError:  # not every option goes with every other's default
        return []


def _statement(statement: Statement) -> Iterator[str]:
    match statement:
        case Rule():
            left, right = " + ".join(statement.patterns("hf")), " + ".join(statement.patterns("ms"))
            shape = f"  [{statement.shape}]" if isinstance(statement.shape, str) else ""
            layout = "" if isinstance(statement.layout, Identity) else f"  {statement.layout}"
            yield f"{left} -> {right}{shape}{layout}{'  (optional)' if statement.optional else ''}"
        case Tied():
            yield f"{statement.hf} -> {statement.ms}  (tied to {statement.of})"
        case Copy():
            yield f"{statement.hf}: dropped, {statement.why}; in reverse a copy of {statement.of}"
        case Drop() if statement not in TRAINING_STATE:
            yield f"{_few(statement.hf + statement.ms)}: dropped, {statement.why}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
