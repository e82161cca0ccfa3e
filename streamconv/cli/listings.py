"""What `models` prints: families, as lines for people and values for programs."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import UsageError
from ..families import Family, Option, Options, Value, spell
from ..rules.statements import Copy, Drop, Rule, Side, Statement, Tied
from ..rules.transforms import Identity
from ..text import first_few


def family_lines(family: Family, details: bool) -> list[str]:
    """Return a family in a line, or with `details` in full."""
    if not details:
        options = ", ".join(f"{o.name}={'|'.join(map(spell, o.values))}" for o in family.options)
        return [f"{family.name:12} {family.title}" + (f"  ({options})" if options else "")]
    lines = [f"{family.name}: {family.title}"]
    for title, entries in family_parts(family):
        lines += [f"  {title}:", *(f"    {entry}" for entry in entries)]
    return lines


def family_parts(family: Family) -> Iterator[tuple[str, list[str]]]:
    """Yield everything about a family: titles, and the lines below each."""
    parts = (
        ("recognised by", [*_recognised(family)]),
        ("repositories", [*family.repositories]),
        ("options (the first value is the default)", [_option(option) for option in family.options]),
        (
            "sizes that may be given; config and shapes have to agree",
            [f"{n}  ({s})" for n, s in family.manual_sizes.items()],
        ),
        ("differences from MindFormers' own converter", [*family.differs_from_mindformers]),
        ("names and transforms, HuggingFace -> MindSpore", _table(family, {})),
        *((f"with {choice}", lines) for choice, lines in _variants(family)),
    )
    yield from ((title, entries) for title, entries in parts if entries)


def _recognised(family: Family) -> Iterator[str]:
    required = f", with {', '.join(family.required_keys)}" if family.required_keys else ""
    yield from (f"config.json: model_type {name}{required}" for name in family.model_types)
    yield from (f"config.json: architectures {name}{required}" for name in family.architectures)


def _option(option: Option) -> str:
    more = "|…" if option.any_positive else ""
    return f"{option.name}={'|'.join(map(spell, option.values))}{more}  {option.help}"


def family_values(family: Family) -> dict[str, object]:
    """Return the family as plain values."""
    return {
        "name": family.name,
        "title": family.title,
        "model_types": list(family.model_types),
        "repositories": list(family.repositories),
        "options": [
            {"name": o.name, "values": list(o.values), "default": o.default, "help": o.help} for o in family.options
        ],
        "numbers": list(family.manual_sizes),
        "differs": list(family.differs_from_mindformers),
    }


def _variants(family: Family) -> Iterator[tuple[str, list[str]]]:
    """Yield what every other value of an option changes in the table; with another option, if it needs one."""
    for option in family.options:
        for value in option.values[1:]:
            tried = ((some, _table(family, {**some, option.name: value})) for some in _other_choices(family, option))
            others, table = next(((some, lines) for some, lines in tried if lines), ({}, []))
            usual = set(_table(family, others))
            choice = ", ".join(f"{n}={spell(v)}" for n, v in {option.name: value, **others}.items())
            yield choice, [line for line in table if line not in usual]


def _other_choices(family: Family, option: Option) -> Iterator[dict[str, Value]]:
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
            left, right = (" + ".join(statement.patterns(side)) for side in (Side.HF, Side.MS))
            shape = f"  [{statement.shape}]" if isinstance(statement.shape, str) else ""
            transform = "" if isinstance(statement.transform, Identity) else f"  {statement.transform}"
            yield f"{left} -> {right}{shape}{transform}{'  (optional)' if statement.optional else ''}"
        case Tied():
            yield f"{statement.hf} -> {statement.ms}  (tied to {statement.of})"
        case Copy():
            yield f"{statement.hf}: dropped, {statement.why}; in reverse a copy of {statement.of}"
        case Drop():
            yield f"{first_few(statement.hf + statement.ms, 3)}: dropped, {statement.why}"
