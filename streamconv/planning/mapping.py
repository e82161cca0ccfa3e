"""The tensor mapping: every output tensor as a view, every source tensor accounted for.

Names, shapes and dtypes only: match the source's names to the table -> learn the model's sizes from names and shapes ->
apply the transforms. All that is unknown, misshapen or missing is reported in one error.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain, islice

import msgspec
from msgspec import Struct, field

from ..errors import UnsupportedError
from ..rules.family import RAW, Config, Family, Options, spell
from ..rules.sizes import Ranges
from ..rules.statements import Direction
from ..rules.table import Table
from ..tensors.dtypes import BF16, DType
from ..tensors.joined import Joined
from ..tensors.quantised import Parts, QuantisedRef
from ..tensors.refs import Catalog, TensorRef, total_bytes
from ..tensors.view_nodes import Stored, View
from ..text import quote, setting
from . import findings, matching
from .dequantising import Understood
from .outputs import Builder, Output
from .repeats import Repeats, SameBytes, SameStart
from .shapes import learn_shapes

# Printable ASCII without escapes: JSON of whole numbers and such text is the same, whoever writes it.
_PLAIN = re.compile(rb"[ !#-\[\]-~\"]*")
_ENCODER = msgspec.json.Encoder()
_AT_ONCE = 1000


class EmptyMappingError(UnsupportedError):
    """There is nothing to write."""


class RankFile(Struct, frozen=True):
    """What the files of one or several ranks hold.

    Attributes:
        ranks: the ranks that hold just this, ascending.
        outputs: the places of the outputs in `TensorMapping.outputs`, ascending.
    """

    ranks: tuple[int, ...]
    outputs: tuple[int, ...]


class TensorMapping(Struct, frozen=True, dict=True):
    """What a conversion writes, and what becomes of every source tensor.

    Attributes:
        family: name of the model family.
        options: the value of every option of the family.
        direction: which side the source is.
        dtype: dtype of all float tensors, `None` if each keeps its own.
        outputs: every tensor to be written, in the order of the family's table.
        dropped: source tensor -> why it is not written.
        checks: tensors whose bytes must be equal.
        dequantised: how quantised weights are stored, for people -> how many are.
        untied: the config ties the head to the embedding, but the source's head differs.
        notes: what the plan says besides: how names are read.
        rank_files: who holds which outputs, where they are cut for the ranks of a training; every rank is in one.
    """

    family: str
    options: Options
    direction: Direction
    dtype: DType | None
    outputs: tuple[Output, ...]
    dropped: Mapping[str, str]
    checks: tuple[SameBytes, ...] = ()
    dequantised: Mapping[str, int] = field(default_factory=dict)
    untied: bool = False
    notes: tuple[str, ...] = ()
    rank_files: tuple[RankFile, ...] = ()

    @property
    def tensors(self) -> int:
        """How many tensors the result has, slices of one counted once."""
        return len({output.tensor for output in self.outputs}) if self.rank_files else len(self.outputs)

    @property
    def ranks(self) -> int:
        """How many ranks the outputs are cut for, 0 where they are whole."""
        return sum(len(file.ranks) for file in self.rank_files)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors to be written."""
        return total_bytes(output.spec for output in self.outputs)

    @property
    def held_dtype(self) -> DType | None:
        """The dtype for the converted model's config, `None` if it does not change."""
        return self.dtype or (BF16 if self.dequantised else None)

    @property
    def is_adapter(self) -> bool:
        """Whether a LoRA adapter is converted, not a model."""
        return self.options.get("is_lora") is True

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides the output, except for the source's bytes and its division into files."""
        options = sorted((name, spell(value)) for name, value in self.options.items())
        asked = [[self.family, self.direction.value, self.dtype and self.dtype.name], [*options]]
        return _sha256(chain(asked, self._effect()))

    @cached_property
    def effect(self) -> str:
        """SHA-256 of what is written and what is dropped: different options may have the same effect."""
        return _sha256(self._effect())

    @cached_property
    def cut(self) -> str:
        """What tells one way to cut outputs for ranks from another; empty where none is cut."""
        parts: Iterator[object] = chain(([output.name] for output in self.outputs), self._holdings())
        return _sha256(parts)[:16] if self.rank_files else ""

    def _effect(self) -> Iterator[list[object]]:
        yield [*sorted(self.dropped.items())]
        for output in self.outputs:
            yield [output.name, output.dtype.name, output.view.shape, output.sources, _of_view(output.view)]
        yield from self._holdings()

    def _holdings(self) -> Iterator[list[object]]:
        for file in self.rank_files:
            yield [file.ranks, file.outputs]


def _sha256(parts: Iterable[object]) -> str:
    digest, every = hashlib.sha256(), iter(parts)
    while some := list(islice(every, _AT_ONCE)):
        digest.update(_json(some))
    return digest.hexdigest()


def _json(values: Sequence[object]) -> bytes:
    """Return the JSON that `json` writes, which earlier versions digested; for plain text there is a faster way."""
    with suppress(UnicodeEncodeError):
        text = _ENCODER.encode_lines(values).replace(b"\n", b"")
        if _PLAIN.fullmatch(text):
            return text
    return "".join([json.dumps(value, separators=(",", ":")) for value in values]).encode()


def _of_view(view: View) -> object:
    """Return the structure of a view; most are stored tensors, hundreds of thousands of them."""
    if type(view) is not Stored:
        return _structure(view)
    ref = view.ref
    return ["Stored", view.shape, view.dtype.name, [ref.name, ref.dtype.name, ref.shape]]


def _structure(value: object) -> object:
    """Return a view as plain values: its operations, their numbers, and its leaves without the files they lie in."""
    match value:
        case Joined() | Parts():
            return _structure(_spelled_out(value))
        case TensorRef():
            return [value.name, value.dtype.name, value.shape]
        case DType():
            return value.name
        case tuple():
            return value if {*map(type, value)} == {int} else [_structure(item) for item in value]
    if isinstance(value, Struct):
        return [type(value).__name__, *(_structure(getattr(value, name)) for name in value.__struct_fields__)]
    return value


def _all_start_the_same(one: TensorRef, other: TensorRef) -> bool:
    return True


class Request(Struct, frozen=True):
    """What is to be converted; only the family's options are open.

    Attributes:
        catalog: the source's tensors.
        family: the model family.
        config: the model's config.
        direction: which side the source is.
        dtype: dtype of all float tensors, `None` to keep each tensor's own.
        same_start: whether two tensors begin with the same bytes; by default, tensors are not read and taken to.
        understood: what was found out about quantised tensors of the source; `catalog` has the weights instead.
    """

    catalog: Catalog
    family: Family
    config: Config
    direction: Direction
    dtype: DType | None = None
    same_start: SameStart = _all_start_the_same
    understood: Understood | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether every tensor keeps its name and layout."""
        return self.family.name == RAW

    def table(self, options: Options) -> Table:
        """Return the family's table for this model and these options, read from the source's side.

        Raises:
            UsageError: the options do not go together, or contradict the config.
        """
        statements = self.family.table(self.config, options)
        ranges = Ranges(self.family.ranges, self.family.sized(self.config, options))
        return Table(statements, self.direction.source, ranges)


def map_tensors(request: Request, options: Options) -> TensorMapping:
    """Map all tensors of the source, with these options.

    Raises:
        UnsupportedError: tensors are unknown, misshapen, or cannot be cast; all of them are listed.
        SourceError: tensors are missing; all of them are listed.
        UsageError: a transform needs a size that neither config nor shapes give.
    """
    catalog, table = request.catalog, request.table(options)
    understood = request.understood or Understood(catalog)
    matches = matching.match_names(catalog, table)
    if matches.unknown:
        findings.check_direction(list(catalog), table)
    matching.learn_counts(matches, table)
    wrong = [*findings.unknown(matches, table), *findings.out_of_range(matches, table), *understood.wrong]
    wrong += learn_shapes(matches, table)
    missing = [*understood.missing, *findings.missing(matches, table)]
    findings.raise_all(wrong, missing, _hints(request))

    repeats = Repeats(matches, catalog, table, request.same_start)
    build = Builder(table, request.dtype)
    outputs = build.outputs(matches.applications, repeats)
    findings.raise_all([*build.findings, *_written_twice(outputs)], hints=build.hints or _hints(request))
    if not outputs:
        raise EmptyMappingError("the source has nothing to write with these options")
    dropped = {**matches.dropped, **repeats.dropped}
    quantised = [ref for ref in catalog.values() if isinstance(ref, QuantisedRef)]
    return TensorMapping(
        family=request.family.name,
        options=options,
        direction=request.direction,
        dtype=request.dtype,
        outputs=tuple(outputs),
        dropped={**understood.dropped, **dropped, **_parts_of_dropped(quantised, dropped)},
        checks=(*repeats.checks, *build.checks),
        dequantised=Counter(ref.parts.scheme.title for ref in quantised if ref.name not in dropped),
        untied=repeats.untied,
    )


def _parts_of_dropped(quantised: Iterable[QuantisedRef], dropped: Mapping[str, str]) -> dict[str, str]:
    return {part.name: dropped[ref.name] for ref in quantised if ref.name in dropped for part in ref.parts.refs()}


def _hints(request: Request) -> list[str]:
    """Return what to do about tensors that do not fit; no family is to blame where every name is taken."""
    if request.keeps_all:
        return ["check that the source is complete"]
    if request.config:
        return [findings.USUAL_HINT]
    return [
        f"give config.json with {setting('config', 'FILE')}: "
        "it says what names cannot, such as whether the head is tied",
        findings.USUAL_HINT,
    ]


def _written_twice(outputs: Collection[Output]) -> Iterator[str]:
    """Yield a finding for every name that two outputs have."""
    if len({output.name for output in outputs}) == len(outputs):
        return
    seen: dict[str, Output] = {}
    for output in outputs:
        if output.name in seen:
            yield f"{quote(output.name)} would be written twice: from {seen[output.name].sources} and {output.sources}"
        seen[output.name] = output


def _spelled_out(value: Joined | Parts) -> object:
    if isinstance(value, Parts):
        return value.described()
    # How the source is divided decides nothing.
    return Stored(value.shape, value.dtype, value.ref)
