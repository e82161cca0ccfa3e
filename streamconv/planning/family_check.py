"""Check a model family against a real checkpoint, from its headers: unmatched, ambiguous, not invertible tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from ..errors import StreamconvError, UsageError
from ..rules.family import REFERENCE, Config, Family, Reference, spell
from ..rules.statements import Direction, Side, Statement
from ..tensors.extents import Extent, SourceFile
from ..tensors.refs import Catalog, TensorRef
from ..text import counted, first_few, in_python, quote
from .dequantising import Understood
from .mapping import Request, TensorMapping, map_tensors
from .options import OptionValues, decided, decided_mapping, inferred_from_names

_SHOWN = 5


class Finding(Struct, frozen=True):
    """A finding about a family.

    Attributes:
        marked: what was found, with settings marked for `text.in_shell` or `text.in_python`.
        is_error: whether it is an error, not just good to know.
    """

    marked: str
    is_error: bool = True

    @property
    def text(self) -> str:
        """What was found, with settings spelled as Python has them."""
        return in_python(self.marked)


def check_family(family: Family, understood: Understood, config: Config) -> Iterator[Finding]:
    """Check, for all options, that every tensor is matched by one rule and comes back in reverse."""
    request = Request(understood.catalog, family, config, Direction.FORWARD, understood=understood)
    inferred = inferred_from_names(request, {})
    for options in _different_options(request, inferred):
        given = {name: value for name, value in options.items() if name not in inferred}
        try:
            read, mapping = decided(request, given)
        except StreamconvError as error:
            yield from (_chosen(options), Finding(f"  {_in_one(error)}"))
            continue
        yield _chosen(mapping.options)
        try:
            yield from _check_mapping(read, mapping)
        except StreamconvError as error:
            yield Finding(f"  {_in_one(error)}")


def _chosen(options: OptionValues) -> Finding:
    chosen = ", ".join(f"{name}={spell(value)}" for name, value in options.items()) or "no options"
    return Finding(f"{chosen}:", is_error=False)


def _in_one(error: StreamconvError) -> str:
    message, hint = error.marked
    return f"{message}\n  hint: {hint}" if hint else message


def _different_options(request: Request, inferred: OptionValues) -> Iterator[OptionValues]:
    """Yield all option values that give different tables, except for what is inferred from the source's names."""
    tables: list[Sequence[Statement]] = []
    values = {o.name: (inferred[o.name],) if o.name in inferred else o.values for o in request.family.options}
    for choice in product(*values.values()):
        options = dict(zip(values, choice, strict=True))
        try:
            table = request.family.rules(request.config, options)
        except UsageError:  # not every option goes with every other
            continue
        if table not in tables:
            tables.append(table)
            yield options


def _check_mapping(request: Request, mapping: TensorMapping) -> Iterator[Finding]:
    catalog = request.catalog
    ambiguous = list(_ambiguous(request, mapping.options))
    if ambiguous:
        yield Finding(f"  ambiguous: {_some(ambiguous)}; the first rule of the table applies")
    way_back = replace(request, config=_config_of_the_way_back(request), direction=Direction.REVERSE, understood=None)
    reverse = replace(way_back, catalog=_converted(mapping))
    lost = list(_lost(map_tensors(reverse, mapping.options), catalog, mapping.dropped))
    if lost:
        yield Finding(f"  not invertible: {_some(lost)}")
    dropped = [f"{quote(name)} ({why})" for name, why in mapping.dropped.items()]
    if dropped:
        yield Finding(f"  dropped: {_some(dropped)}", is_error=False)
    yield from _notes(mapping)
    yield from _questions(reverse)
    if not (ambiguous or lost):
        back = f"all but {len(dropped)} come back" if dropped else "all come back"
        counts = f"{counted(len(catalog), 'tensor')} -> {counted(len(mapping.outputs), 'tensor')}"
        yield Finding(f"  {counts}; {back}", is_error=False)


def _notes(mapping: TensorMapping) -> Iterator[Finding]:
    for note in mapping.notes:
        yield Finding(f"  {note}", is_error=False)
    for how, count in mapping.dequantised.items():
        yield Finding(f"  {counted(count, 'weight')} dequantised, {how}: they come back in BF16", is_error=False)


def _ambiguous(request: Request, options: OptionValues) -> Iterator[str]:
    """Yield the names that several rules match."""
    matcher = request.table(options).matcher
    for name in request.catalog:
        patterns = list(matcher.patterns_taking(name))
        if len(patterns) > 1:
            yield f"{quote(name)} is matched by {' and by '.join(patterns)}"


def _converted(mapping: TensorMapping) -> Catalog:
    """Return a catalog of the outputs, as if they were written."""
    file = SourceFile(Path("converted"), 0)
    refs = (TensorRef(o.name, o.dtype, o.view.shape, (Extent(file, 0, o.spec.nbytes),)) for o in mapping.outputs)
    return Catalog(file.path, "safetensors", {ref.name: ref for ref in refs}, (file,))


def _config_of_the_way_back(request: Request) -> Config:
    """Return the config with the reference of a reverse conversion, the source itself, where it has one."""
    if not isinstance(request.config.get(REFERENCE), Reference):
        return request.config
    shapes = {name: ref.shape for name, ref in request.catalog.items()}
    return {**request.config, REFERENCE: Reference(Side.HF, shapes)}


def _lost(back: TensorMapping, catalog: Mapping[str, TensorRef], dropped: Mapping[str, str]) -> Iterator[str]:
    """Yield what does not come back, or not as it was."""
    given = {output.name: output.view for output in back.outputs}
    for name, ref in catalog.items():
        if name in given and given[name].shape != ref.shape:
            yield f"{quote(name)} comes back as {list(given[name].shape)}, and was {list(ref.shape)}"
        elif name not in given and name not in dropped:
            yield f"{quote(name)} does not come back"
    for name in given.keys() - catalog.keys():
        yield f"{quote(name)} comes back, but was not in the source"


def _questions(reverse: Request) -> Iterator[Finding]:
    """Yield what users have to give in reverse, where no manifest records it."""
    try:
        decided_mapping(reverse, {})
    except UsageError as error:
        yield Finding(f"  in reverse, without a manifest: {': '.join(error.marked)}", is_error=False)


def _some(items: Sequence[str]) -> str:
    return first_few(items, _SHOWN, separator="; ")
