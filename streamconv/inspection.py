"""What `inspect` and `models` say: catalogs and families, as lines for people and values for programs."""

from __future__ import annotations

from .errors import quote
from .families import Family, spell
from .rules import Copy, Drop, Rule, Statement, Tied
from .tensors import Catalog
from .units import counted, format_size


def catalog_lines(catalog: Catalog) -> list[str]:
    """One line a tensor, and a total."""
    lines = [
        f"{quote(ref.name)}  {ref.dtype}  {list(ref.shape)}  {ref.nbytes}  {quote(_file(catalog, name))}"
        for name, ref in catalog.items()
    ]
    lines.append(
        f"{counted(len(catalog), 'tensor')}, {format_size(catalog.nbytes)}, in {counted(len(catalog.files), 'file')} "
        f"of format {catalog.format}"
    )
    lines += [f"ignored: {quote(name)} ({why})" for name, why in catalog.ignored.items()]
    return lines


def catalog_values(catalog: Catalog) -> dict[str, object]:
    """The catalog as plain values; every extent is [file, offset, length]."""
    return {
        "path": str(catalog.path),
        "format": catalog.format,
        "files": {file.path.name: file.size for file in catalog.files},
        "ignored": dict(catalog.ignored),
        "tensors": [
            {
                "name": ref.name,
                "dtype": ref.dtype.name,
                "shape": list(ref.shape),
                "bytes": ref.nbytes,
                "extents": [[e.file.path.name, e.offset, e.length] for e in ref.extents],
            }
            for ref in catalog.values()
        ],
    }


def family_lines(family: Family, details: bool) -> list[str]:
    """A family in a line, or in full."""
    if not details:
        options = ", ".join(f"{o.name}={'|'.join(map(spell, o.values))}" for o in family.options)
        return [f"{family.name:12} {family.title}" + (f"  ({options})" if options else "")]
    lines = [f"{family.name}: {family.title}"]
    lines += [f"  config.json: model_type {', '.join(family.model_types)}"] if family.model_types else []
    lines += ["  repositories:", *(f"    {name}" for name in family.repositories)] if family.repositories else []
    lines += ["  options (the first value is the default):"] if family.options else []
    lines += [f"    {o.name}={'|'.join(map(spell, o.values))}  {o.help}" for o in family.options]
    return [
        *lines,
        "  HuggingFace -> MindSpore, with the options' defaults:",
        *(f"    {t}" for t in _table(family)),
    ]


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
    }


def _table(family: Family) -> list[str]:
    defaults = {option.name: option.default for option in family.options}
    return [_statement(statement) for statement in family.rules(family.example, defaults)]


def _statement(statement: Statement) -> str:
    match statement:
        case Rule():
            left, right = " + ".join(statement.patterns("hf")), " + ".join(statement.patterns("ms"))
            shape = f"  [{statement.shape}]" if isinstance(statement.shape, str) else ""
            return f"{left} -> {right}{shape}{'  (optional)' if statement.optional else ''}"
        case Tied():
            return f"{statement.hf} -> {statement.ms}  (tied to {statement.of})"
        case Copy():
            return f"{statement.hf}: dropped, {statement.why}; in reverse a copy of {statement.of}"
        case Drop():
            return f"{', '.join(statement.hf + statement.ms)}: dropped, {statement.why}"


def _file(catalog: Catalog, name: str) -> str:
    extents = catalog[name].extents
    return extents[0].file.path.name if extents else ""
