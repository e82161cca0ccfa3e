"""The plan: every output tensor as a view, every source tensor accounted for. Names, shapes and dtypes only, no bytes.

match the source's names to the table  →  learn the model's numbers from names and shapes  →  apply the layouts
→  all that is unknown, misshapen or missing in one error.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice

from . import matching, views
from .dtypes import FLOAT, INTEGER, DType
from .errors import SourceError, StreamconvError, UnsupportedError, UsageError, quote
from .families import Config, Family, Options, spell
from .matching import Application, Matches
from .rules import Direction, Drop, Matcher, Rule, Statement, Tied, fill
from .sizes import ShapeConflictError, Sizes
from .tensors import Catalog, TensorRef, TensorSpec
from .transforms import Same
from .views import View

_LISTED = 200
_COUNTED = 100_000

Order = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor to be written: its name and dtype, the view that says what is in it, and the names it is made from."""

    name: str
    dtype: DType
    view: View
    sources: tuple[str, ...]

    @property
    def spec(self) -> TensorSpec:
        """Name, dtype and shape."""
        return TensorSpec(self.name, self.dtype, self.view.shape)


@dataclass(frozen=True)
class SameBytes:
    """A check to be made before anything is written: the two tensors have to hold the same bytes."""

    kept: TensorRef
    other: TensorRef
    why: str


@dataclass(frozen=True)
class Plan:
    """What a conversion will do.

    Attributes:
        family, options, direction, dtype: what was asked, resolved.
        outputs: every tensor to be written, in the order of the family's table.
        dropped: source tensor → why it is not written.
        checks: tensors whose bytes have to agree.
    """

    family: str
    options: Options
    direction: Direction
    dtype: DType | None
    outputs: tuple[Output, ...]
    dropped: Mapping[str, str]
    checks: tuple[SameBytes, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides the output but for the source's bytes; not over the source's files."""
        digest = hashlib.sha256()
        for part in self._identity():
            digest.update(json.dumps(part, separators=(",", ":")).encode())
        return digest.hexdigest()

    def _identity(self) -> Iterator[list[object]]:
        yield [self.family, self.direction.value, self.dtype and self.dtype.name]
        yield [*sorted((name, spell(value)) for name, value in self.options.items())]
        yield [*sorted(self.dropped.items())]
        for output in self.outputs:
            yield [output.name, output.dtype.name, output.view.shape, output.sources, _structure(output.view)]


def make_plan(
    catalog: Catalog,
    family: Family,
    config: Config,
    options: Options,
    direction: Direction,
    dtype: DType | None,
) -> Plan:
    """Plan the conversion of all tensors of a catalog.

    Raises:
        UnsupportedError: a tensor is unknown, misshapen, or cannot be cast; all of them are listed.
        SourceError: a tensor is missing; all of them are listed.
        UsageError: the layout needs a number that neither config nor shapes tell.
    """
    statements, side = family.rules(config, options), "hf" if direction is Direction.FORWARD else "ms"
    matches = matching.match_names(catalog, statements, side)
    if matches.unknown:
        _check_direction(catalog, statements, side)
    sizes = Sizes(family.sizes, config)
    matching.learn_counts(matches, side, family.counts, sizes)
    wrong = [*matches.unknown, *matching.out_of_range(matches, side, family.counts, sizes)]
    wrong += _learn_shapes(matches, direction, sizes)
    absent = list(islice(matching.missing(matches, statements, side, family.counts, sizes), _COUNTED))
    _raise(wrong, absent)

    build = _Builder(direction, dtype, sizes, family.counts, _runs(statements))
    outputs = [pair for application in matches.applications for pair in build.outputs_of(application)]
    tied, checks = build.tied(statements, matches, catalog)
    outputs = sorted([*outputs, *tied], key=lambda pair: pair[0])
    _raise([*build.findings, *_twice(output for _, output in outputs)], [])
    dropped = {**matches.dropped, **build.dropped}
    ordered = tuple(output for _, output in outputs)
    return Plan(family.name, options, direction, dtype, ordered, dropped, tuple(checks))


def _check_direction(catalog: Catalog, statements: Sequence[Statement], side: str) -> None:
    """Say so where most names are those of the other side: --reverse forgotten, or one too many.

    Raises:
        UsageError: they are.
    """
    mine, other = Matcher(statements, side), Matcher(statements, "ms" if side == "hf" else "hf")
    strange = [name for name in catalog if mine.match(name) is None]
    if 2 * len(strange) > len(catalog) and all(other.match(name) for name in strange):
        world, hint = ("MindSpore", "add --reverse") if side == "hf" else ("HuggingFace", "leave --reverse away")
        raise UsageError(f"the source holds {world}'s names ({quote(strange[0])}): to convert it, {hint}")


def _learn_shapes(matches: Matches, direction: Direction, sizes: Sizes) -> list[str]:
    """Check, and learn from, all shapes that no layout hides: HF's own, and in reverse those of plain renames."""
    findings = []
    for application in matches.applications:
        rule = application.rule
        if direction is Direction.REVERSE and not isinstance(rule.layout, Same):
            continue
        unstacked = slice(1 if rule.stacked("hf") and direction is Direction.REVERSE else 0, None)
        for spec, members in zip(rule.shapes(), application.members, strict=True):
            for ref in members.values() if spec is not None else ():
                try:
                    sizes.fit(ref.shape[unstacked], spec or "")
                except ShapeConflictError as conflict:
                    findings.append(f"{quote(ref.name)}: {conflict}")
    return findings


@dataclass
class _Builder:
    """Turns applications of rules into outputs, noting what does not fit."""

    direction: Direction
    dtype: DType | None
    sizes: Sizes
    counts: Mapping[str, str]
    runs: Mapping[int, int]

    def __post_init__(self) -> None:
        self.findings: list[str] = []
        self.dropped: dict[str, str] = {}
        self.forward = self.direction is Direction.FORWARD
        self.source, self.target = ("hf", "ms") if self.forward else ("ms", "hf")

    def outputs_of(self, application: Application) -> list[tuple[Order, Output]]:
        """The tensors that one application of a rule writes, each with its place in the table's order."""
        names = tuple(ref.name for ref in application.refs())
        order = (
            self.runs[application.number],
            [*map(_natural, application.bindings.values())],
            application.number,
        )
        try:
            results = list(self._apply(application))
        except (UnsupportedError, ShapeConflictError) as error:
            shown = ", ".join(map(quote, names[:3])) + (" …" if len(names) > 3 else "")
            self.findings.append(f"{shown}: {error}")
            return []
        return [((*order, i), Output(name, view.dtype, view, names)) for i, (name, view) in enumerate(results)]

    def _apply(self, application: Application) -> Iterator[tuple[str, View]]:
        rule = application.rule
        layout = rule.layout if self.forward else rule.layout.inverse
        stacked = rule.stacked(self.source)
        parts = [self._stack(members) if stacked else self._leaf(members[0]) for members in application.members]
        specs = (None,) * len(rule.patterns("ms")) if self.forward else rule.shapes()
        spread = rule.stacked(self.target)
        for pattern, spec, view in zip(rule.patterns(self.target), specs, layout.apply(parts, self.sizes), strict=True):
            for bindings, one in self._unstacked(spread, view):
                if spec is not None:
                    self.sizes.fit(one.shape, spec)
                yield fill(pattern, {**application.bindings, **bindings}), one

    def _stack(self, members: Mapping[int, TensorRef]) -> View:
        return views.stack([self._leaf(members[position]) for position in sorted(members)])

    def _unstacked(self, hole: str | None, view: View) -> Iterator[tuple[dict[str, int], View]]:
        """The tensors that a stack holds, each with its number."""
        if hole is None:
            yield {}, view
            return
        self.sizes.fit(view.shape[:1], self.counts[hole])
        if not math.prod(view.shape):
            raise UnsupportedError(f"shape {list(view.shape)} is a stack of empty tensors")
        for position in range(view.shape[0]):
            yield {hole: position}, views.squeeze(views.cut(view, 0, position, position + 1), 0)

    def _leaf(self, ref: TensorRef) -> View:
        """The tensor, cast where a dtype is asked; integers and booleans never are."""
        if self.dtype is None or ref.dtype.kind == INTEGER:
            return views.leaf(ref)
        if ref.dtype.kind != FLOAT:
            raise UnsupportedError(f"{ref.dtype} cannot be cast to {self.dtype}")
        return views.cast(views.leaf(ref), self.dtype)

    def tied(
        self, statements: Sequence[Statement], matches: Matches, catalog: Catalog
    ) -> tuple[list[tuple[Order, Output]], list[SameBytes]]:
        """What tied statements add: forward a second name for the same bytes, in reverse only a check."""
        outputs: list[tuple[Order, Output]] = []
        checks: list[SameBytes] = []
        for number, tie in enumerate(statements):
            if not isinstance(tie, Tied):
                continue
            of = catalog[_source_name(statements, tie.of, self.source)]
            other = matches.tied.get(tie.hf if self.forward else tie.ms)
            if other is not None:
                checks.append(SameBytes(of, other, "config.json says tie_word_embeddings"))
            if self.forward:
                view, names = self._leaf(of), (of.name, *((other.name,) if other else ()))
                outputs.append(((self.runs[number], [], number, 0), Output(tie.ms, view.dtype, view, names)))
            elif other is not None:
                self.dropped[other.name] = f"tied: the same bytes as {of.name}"
        return outputs, checks


def _source_name(statements: Sequence[Statement], hf: str, side: str) -> str:
    """What the source calls the tensor that HF calls `hf`; the table has a required rule for it."""
    return next(s.patterns(side)[0] for s in statements if isinstance(s, Rule) and s.hf == hf)


def _structure(value: object) -> object:
    """A view as plain values: its operations, their numbers, and its leaves but for the files they lie in."""
    match value:
        case View():
            return [type(value).__name__, *(_structure(getattr(value, field.name)) for field in fields(value))]
        case TensorRef():
            return [value.name, value.dtype.name, value.shape]
        case DType():
            return value.name
        case tuple():
            return [_structure(item) for item in value]
    return value


def _runs(statements: Sequence[Statement]) -> dict[int, int]:
    """Statement number → number of its run of neighbours with (or without) holes, so that a layer stays together."""
    runs, run, before = {}, 0, None
    for number, statement in enumerate(statements):
        if not isinstance(statement, Drop):
            holes = isinstance(statement, Rule) and bool(statement.holes("hf"))
            run += before is not None and holes != before
            before = holes
        runs[number] = run
    return runs


def _natural(value: int | str) -> list[tuple[int, int, str]]:
    """A key that sorts `layers.10` after `layers.9`."""
    parts = str(value).split(".")
    return [(0, int(p), "") if p.isdecimal() and p.isascii() and len(p) < 19 else (1, 0, p) for p in parts]


def _twice(outputs: Iterable[Output]) -> Iterator[str]:
    """Findings: names that would be written twice."""
    seen: dict[str, Output] = {}
    for output in outputs:
        if output.name in seen:
            yield f"{quote(output.name)} would be written twice: from {seen[output.name].sources} and {output.sources}"
        seen[output.name] = output


def _raise(wrong: Sequence[str], absent: Sequence[str]) -> None:
    """One error for all findings, if there are any."""
    findings = [*wrong, *absent]
    if not findings:
        return
    kind: type[StreamconvError] = UnsupportedError if wrong else SourceError
    shown = [
        *findings[:_LISTED],
        *([f"… and {len(findings) - _LISTED} more"] if len(findings) > _LISTED else []),
    ]
    count = "1 tensor does" if len(findings) == 1 else f"{len(findings)} tensors do"
    if len(absent) == _COUNTED:
        count = f"at least {count}"
    raise kind(
        "\n  ".join([f"{count} not fit the model:", *shown])
        + "\nnothing was written; is this the right --model, and is the source complete?"
    )
