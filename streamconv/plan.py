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

from . import matching, scales, views
from .dtypes import BF16, F32, FLOAT, INTEGER, DType
from .errors import SourceError, StreamconvError, UnsupportedError, UsageError, quote
from .families import Config, Family, Options, spell
from .matching import Application, Matches
from .patterns import fill, holes
from .rules import Copy, Direction, Drop, Matcher, Rule, Statement, Tied
from .scales import Scales
from .sizes import Ranges, ShapeConflictError, Sizes
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
        dequantised: how many source tensors are FP8 times block scales.
    """

    family: str
    options: Options
    direction: Direction
    dtype: DType | None
    outputs: tuple[Output, ...]
    dropped: Mapping[str, str]
    checks: tuple[SameBytes, ...] = ()
    dequantised: int = 0

    @property
    def held_dtype(self) -> DType | None:
        """What the checkpoint's config has to say of its dtype, `None` where that is what it was."""
        return self.dtype or (BF16 if self.dequantised else None)

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
    sizes = Sizes(family.sizes, config)
    ranges, paired = Ranges(family.ranges, sizes), scales.pair(catalog, config)
    matches = matching.match_names(catalog, statements, side, ranges, paired)
    if matches.unknown:
        _check_direction(catalog, statements, side, ranges)
    matching.learn_counts(matches, side, ranges, sizes)
    wrong = [*matching.unknown(matches, statements, side, ranges), *matching.strayed(matches, ranges), *paired.surplus]
    wrong += _learn_shapes(matches, direction, sizes)
    absent = list(islice(matching.missing(matches, statements, side, ranges, sizes), _COUNTED))
    _raise(wrong, [*paired.missing, *absent])

    build = _Builder(direction, dtype, sizes, ranges, paired, statements)
    outputs = build.outputs(matches, catalog)
    _raise([*build.findings, *_twice(outputs)], [])
    dropped = {**matches.dropped, **build.dropped}
    dequantised = len(paired.of.keys() - dropped.keys())
    return Plan(family.name, options, direction, dtype, tuple(outputs), dropped, tuple(build.checks), dequantised)


def _check_direction(catalog: Catalog, statements: Sequence[Statement], side: str, ranges: Ranges) -> None:
    """Say so where most names are those of the other side: --reverse forgotten, or one too many.

    Raises:
        UsageError: they are.
    """
    mine, other = (Matcher(statements, one, ranges) for one in (side, "ms" if side == "hf" else "hf"))
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
        for index, spec in enumerate(rule.shapes()):
            for ref in application.stack(index).values() if spec is not None else ():
                try:
                    sizes.fit(ref.shape[unstacked], spec or "")
                except ShapeConflictError as conflict:
                    findings.append(f"{quote(ref.name)}: {conflict}")
    return findings


class _Builder:
    """Turns applications of rules into outputs, noting what does not fit."""

    def __init__(
        self,
        direction: Direction,
        dtype: DType | None,
        sizes: Sizes,
        ranges: Ranges,
        paired: Scales,
        statements: Sequence[Statement],
    ) -> None:
        self.findings: list[str] = []
        self.dropped: dict[str, str] = {}
        self.checks: list[SameBytes] = []
        self._forward = direction is Direction.FORWARD
        self._source, self._target = ("hf", "ms") if self._forward else ("ms", "hf")
        self._dtype, self._sizes, self._ranges, self._scales = dtype, sizes, ranges, paired
        self._statements, self._runs = statements, _runs(statements)

    def outputs(self, matches: Matches, catalog: Catalog) -> list[Output]:
        """All tensors to be written, in the table's order, layer by layer where it speaks of layers."""
        work: list[tuple[Order, Application | _Repeat]] = [
            ((self._runs[a.number], [*map(_natural, a.values)], a.number), a) for a in matches.applications
        ]
        work += [((self._runs[r.number], [], r.number), r) for r in self._repeats(matches, catalog)]
        work.sort(key=lambda pair: pair[0], reverse=True)
        outputs: list[Output] = []
        while work:  # what is done is let go of: with 92,000 tensors both lists at once are many megabytes
            one = work.pop()[1]
            outputs += self._outputs_of(one) if isinstance(one, Application) else [self._repeated(one)]
        return outputs

    def _outputs_of(self, application: Application) -> list[Output]:
        """The tensors that one application of a rule writes."""
        names = tuple(self._sources(application.refs()))
        try:
            return [Output(name, view.dtype, view, names) for name, view in self._apply(application)]
        except (UnsupportedError, ShapeConflictError) as error:
            shown = ", ".join(map(quote, names[:3])) + (" …" if len(names) > 3 else "")
            self.findings.append(f"{shown}: {error}")
            return []

    def _sources(self, refs: Iterable[TensorRef]) -> Iterator[str]:
        """The names that tensors are made from: their own, and those of their scales."""
        for ref in refs:
            yield ref.name
            if ref.name in self._scales.of:
                yield self._scales.of[ref.name].name

    def _apply(self, application: Application) -> Iterator[tuple[str, View]]:
        rule = application.rule
        layout = rule.layout if self._forward else rule.layout.inverse
        stacked, spread = rule.stacked(self._source), rule.stacked(self._target)
        dtype = F32 if self._dtype and self._target in rule.fp32 else self._dtype
        bindings = dict(zip(rule.shared(self._source), application.values, strict=True))
        leaves = [[self._leaf(ref, dtype) for _, ref in sorted(stack.items())] for stack in application.stacks()]
        parts = [views.stack(some) if stacked else some[0] for some in leaves]
        specs = (None,) * len(rule.patterns("ms")) if self._forward else rule.shapes()
        results = layout.apply(parts, self._sizes)
        for pattern, spec, view in zip(rule.patterns(self._target), specs, results, strict=True):
            for position, one in self._unstacked(spread, view):
                if spec is not None:
                    self._sizes.fit(one.shape, spec)
                yield fill(pattern, {**bindings, **position}, self._sizes), one

    def _unstacked(self, hole: str | None, view: View) -> Iterator[tuple[dict[str, int], View]]:
        """The tensors that a stack holds, each with its number."""
        if hole is None:
            yield {}, view
            return
        count = self._ranges.unknown(hole)
        end = self._ranges.of(hole)[1]
        if count:
            self._sizes.learn(count, view.shape[0], "the shapes")
        elif end != view.shape[0]:
            raise UnsupportedError(
                f"shape {list(view.shape)} is a stack of {view.shape[0]}, and there are {self._ranges.described(hole)}"
            )
        if not math.prod(view.shape):
            raise UnsupportedError(f"shape {list(view.shape)} is a stack of empty tensors")
        for position in range(view.shape[0]):
            yield {hole: position}, views.squeeze(views.cut(view, 0, position, position + 1), 0)

    def _leaf(self, ref: TensorRef, dtype: DType | None) -> View:
        """The tensor, dequantised where it has scales, cast where a dtype is asked; integers and booleans never are."""
        scale = self._scales.of.get(ref.name)
        view = views.scaled(ref, scale, self._scales.block) if scale else views.leaf(ref)
        if dtype is None or view.dtype.kind == INTEGER:
            return view
        if view.dtype.kind != FLOAT:
            raise UnsupportedError(f"{view.dtype} cannot be cast to {dtype}")
        return views.cast(view, dtype)

    # -- what one side has twice ---------------------------------------------------------------------------------------

    def _repeats(self, matches: Matches, catalog: Catalog) -> Iterator[_Repeat]:
        """The tensors that the target has twice; on the way, what the source has twice is checked and dropped."""
        for number, statement in enumerate(self._statements):
            if isinstance(statement, Tied):
                of = catalog[_source_name(self._statements, statement.of, self._source)]
                other = matches.tied.get(statement.hf if self._forward else statement.ms)
                if other is not None:
                    self.checks.append(SameBytes(of, other, "config.json says tie_word_embeddings"))
                if self._forward:
                    yield _Repeat(number, statement.ms, of, (other.name,) if other else ())
                elif other is not None:
                    self.dropped[other.name] = f"tied: the same bytes as {of.name}"
            elif isinstance(statement, Copy) and not self._forward:
                of = catalog[_source_name(self._statements, statement.of, self._source)]
                yield from (_Repeat(number, name, of) for name in self._copies(statement))

    def _copies(self, copy: Copy) -> Iterator[str]:
        """The names under which a tensor is stored again."""
        for hole in holes((copy.hf,)):
            for number in self._ranges.numbers(hole):
                yield fill(copy.hf, {hole: number}, self._sizes)

    def _repeated(self, repeat: _Repeat) -> Output:
        view = self._leaf(repeat.of, self._dtype)
        return Output(repeat.name, view.dtype, view, (*self._sources([repeat.of]), *repeat.others))


@dataclass(frozen=True, slots=True)
class _Repeat:
    """A tensor that the target has a second time, under `name`; the source's `others` hold the same bytes."""

    number: int
    name: str
    of: TensorRef
    others: tuple[str, ...] = ()


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
            layered = isinstance(statement, Copy) or (isinstance(statement, Rule) and bool(statement.holes("hf")))
            run += before is not None and layered != before
            before = layered
        runs[number] = run
    return runs


def _natural(value: int | str) -> str:
    """A key that sorts `layers.10` after `layers.9`: every number has its length before it."""
    parts = str(value).split(".")
    return "\0".join(f"\1{len(p):02}{p}" if p.isdecimal() and p.isascii() and len(p) < 19 else "\2" + p for p in parts)


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
