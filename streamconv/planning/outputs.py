"""Outputs: what each application of a rule writes, as views; and what one side has twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..errors import SourceError, StreamconvError, UnsupportedError
from ..rules.patterns import fill, holes
from ..rules.sizes import Ranges, ShapeConflictError, Sizes
from ..rules.statements import TIED, Copy, Direction, Drop, Rule, Statement, Tied
from ..tensors import views
from ..tensors.dtypes import F32, FLOAT, INTEGER, DType
from ..tensors.refs import Catalog, TensorRef, TensorSpec
from ..tensors.view_nodes import View
from ..text import quote
from .fp8_scales import Scales
from .matching import Application, Matches

Order = tuple[object, ...]

#: Whether two tensors begin with the same bytes: all that a plan may ask of a tensor's data.
Alike = Callable[[TensorRef, TensorRef], bool]


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

    @property
    def widest(self) -> int:
        """Bytes of the widest element that is read or written."""
        return max(self.dtype.itemsize, *{leaf.dtype.itemsize for leaf in self.view.leaves()})


@dataclass(frozen=True)
class SameBytes:
    """A check to be made before anything is written: the two tensors have to hold the same bytes, else `error`.

    Without `kept`, the other one has to hold nothing but zeros.
    """

    kept: TensorRef | None
    other: TensorRef
    error: StreamconvError


class Builder:
    """Turns applications of rules into outputs, noting what does not fit."""

    def __init__(
        self,
        direction: Direction,
        dtype: DType | None,
        sizes: Sizes,
        ranges: Ranges,
        paired: Scales,
        statements: Sequence[Statement],
        alike: Alike,
    ) -> None:
        self.findings: list[str] = []
        self.dropped: dict[str, str] = {}
        self.checks: list[SameBytes] = []
        self.untied = False
        self._forward = direction is Direction.FORWARD
        self._source, self._target = ("hf", "ms") if self._forward else ("ms", "hf")
        self._dtype, self._sizes, self._ranges, self._scales = dtype, sizes, ranges, paired
        self._statements, self._runs, self._alike = statements, _runs(statements), alike

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
        for view in layout.must_be_zero(parts):
            self.checks += [SameBytes(None, ref, _not_zero(ref)) for one in view.leaves() for ref in one.refs()]
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
        for first, second in catalog.twice:
            self.checks.append(SameBytes(first, second, _uncertain(first, second)))
        for name, same in matches.same.items():
            if same in catalog:
                error = _unequal(catalog[name], catalog[same], f"it is {matches.dropped[name]}: one of them is wrong")
                self.checks.append(SameBytes(catalog[same], catalog[name], error))
        self._note_lost(matches, catalog)
        for number, statement in enumerate(self._statements):
            if isinstance(statement, Tied):
                of = catalog[_source_name(self._statements, statement.of, self._source)]
                yield from self._tied(number, statement, of, matches)
            elif isinstance(statement, Copy) and not self._forward:
                copied = catalog.get(_source_name(self._statements, statement.of, self._source))
                given = any(application.rule.hf == statement.hf for application in matches.applications)
                yield from (_Repeat(number, name, copied) for name in self._copies(statement) if copied and not given)

    def _note_lost(self, matches: Matches, catalog: Catalog) -> None:
        """Say so of what is dropped as a copy of another tensor, and is none."""
        for name, of in matches.copies.items():
            original = catalog.get(_source_name(self._statements, of, self._source))
            if original is not None and not self._alike(original, catalog[name]):
                self.dropped[name] = f"{matches.dropped[name]}; it differs from {original.name}, and is lost"

    def _tied(self, number: int, tied: Tied, of: TensorRef, matches: Matches) -> Iterator[_Repeat]:
        other = matches.tied.get(tied.hf if self._forward else tied.ms)
        if other is not None and not self._forward and not self._alike(of, other):
            self.untied = True
            yield _Repeat(number, tied.hf, other)
            return
        if other is not None:
            self.checks.append(SameBytes(of, other, _unequal(other, of, _NOT_TIED)))
        if self._forward and tied.again:
            yield _Repeat(number, tied.ms, of, (other.name,) if other else ())
        elif other is not None:
            self.dropped[other.name] = f"tied: the same bytes as {of.name}"

    def _copies(self, copy: Copy) -> Iterator[str]:
        """The names under which a tensor is stored again."""
        if not holes((copy.hf,)):
            yield copy.hf
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


_NOT_TIED = f"config.json says {TIED}: one of them is wrong; if they are meant to differ, say so there ({TIED}: false)"


def _unequal(other: TensorRef, kept: TensorRef, why: str) -> UnsupportedError:
    return UnsupportedError(f"{quote(other.name)} differs from {quote(kept.name)}, but {why}")


def _not_zero(ref: TensorRef) -> UnsupportedError:
    return UnsupportedError(
        f"{quote(ref.name)} is not zero, but HuggingFace's model has no such tensor: it stands for zeros; "
        "what it holds would be lost"
    )


def _uncertain(first: TensorRef, second: TensorRef) -> SourceError:
    files = " and ".join(quote(ref.extents[0].file.path.name) for ref in (first, second))
    return SourceError(
        f"{quote(first.name)} is in {files}, and the two differ, so which one counts is not certain; "
        "remove the file that does not belong there"
    )


def _source_name(statements: Sequence[Statement], hf: str, side: str) -> str:
    """What the source calls the tensor that HF calls `hf`; the table has a required rule for it, or for what it is."""
    hf = next((s.of for s in statements if isinstance(s, Tied) and s.hf == hf), hf)
    return next(s.patterns(side)[0] for s in statements if isinstance(s, Rule) and s.hf == hf)


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
