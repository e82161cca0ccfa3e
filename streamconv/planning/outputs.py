"""Outputs: what each application of a rule writes, as views."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple, cast

from msgspec import Struct

from ..errors import StreamconvError, UnsupportedError
from ..rules.patterns import Bindings, Filler
from ..rules.sizes import ShapeConflictError
from ..rules.statements import Copy, Drop, Rule, Side, Statement
from ..rules.table import Table
from ..rules.transforms import Identity, Transform
from ..tensors import views
from ..tensors.dtypes import F32, FLOAT, INTEGER, DType
from ..tensors.grids import Box
from ..tensors.quantised import QuantisedRef
from ..tensors.refs import TensorRef, TensorSpec
from ..tensors.view_nodes import View
from ..text import first_few, quote, setting
from .matching import Application, Values, takes_one
from .repeats import Repeat, SameBytes

_Order = tuple[object, ...]

# What keys of numbers begin with, by their length.
_NUMBERS = [f"\1{length:02}" for length in range(19)]


class Output(Struct, frozen=True, gc=False):
    """A tensor to be written.

    Attributes:
        name: its name, which no other output of the plan has.
        dtype: its dtype.
        view: what is in it.
        sources: names of the tensors that it is made from.
        slice_of: the name of the tensor that it is a slice of, and that files call it by; empty where it is whole.
    """

    name: str
    dtype: DType
    view: View
    sources: tuple[str, ...]
    slice_of: str = ""

    @property
    def tensor(self) -> str:
        """The name of the tensor that it is, or that it is a slice of."""
        return self.slice_of or self.name

    @property
    def spec(self) -> TensorSpec:
        """Name, dtype and shape."""
        return TensorSpec(self.name, self.dtype, self.view.shape)

    @property
    def widest(self) -> int:
        """Bytes of the widest element that is read or written."""
        return max(self.dtype.itemsize, *{leaf.dtype.itemsize for leaf in self.view.leaves()})


class Finished(NamedTuple):
    """What is finished of outputs: a box of output `first`; without a box, all of outputs `first` … `stop` - 1.

    Attributes:
        overflowed: finite values of the box that became infinite.
    """

    first: int
    stop: int
    box: Box | None = None
    overflowed: int = 0


class _Recipe(Struct, frozen=True):
    """How one rule is applied.

    Attributes:
        transform: from the source's tensors to those that are written.
        shared: the holes that both sides have.
        is_stacked: whether the source's tensors are stacked before.
        is_renaming: whether all it does is to give one tensor another name.
        unstacked: the hole that only the other side has: its tensors are cut out of a stack.
        targets: for each tensor that is written its pattern and its shape in symbols.
        dtype: what floats are cast to; `None` if each keeps its own.
    """

    transform: Transform
    shared: tuple[str, ...]
    is_stacked: bool
    is_renaming: bool
    unstacked: str | None
    targets: Sequence[tuple[Filler, str | None]]
    dtype: DType | None

    @classmethod
    def of(cls, rule: Rule, source: Side, dtype: DType | None) -> _Recipe:
        patterns, unstacked = rule.patterns(source.other), rule.stacked(source.other)
        shapes = (rule.ms_shape,) * len(patterns) if source is Side.HF else rule.shapes()
        transform = rule.transform if source is Side.HF else rule.transform.inverse
        return cls(
            transform,
            rule.shared(source),
            rule.stacked(source) is not None,
            isinstance(transform, Identity) and takes_one(rule, source) and unstacked is None,
            unstacked,
            list(zip(map(Filler, patterns), shapes, strict=True)),
            F32 if dtype and source.other in rule.fp32 else dtype,
        )


class Builder:
    """Turns applications of rules into outputs.

    Attributes:
        findings: what does not fit.
        hints: what to do about it.
        checks: tensors of the source that must be zero.
    """

    def __init__(self, table: Table, dtype: DType | None) -> None:
        self.findings: list[str] = []
        self.hints: list[str] = []
        self.checks: list[SameBytes] = []
        self._table, self._dtype = table, dtype
        self._groups = _layer_groups(table.statements)
        self._recipes: dict[int, _Recipe] = {}

    def outputs(self, applications: Iterable[Application], repeats: Iterable[Repeat]) -> list[Output]:
        """Return all tensors to be written, in the table's order, layer by layer where it has layers."""
        natural, groups = _Natural(), self._groups
        work: list[tuple[_Order, Application | Repeat]] = [
            ((groups[a.number], natural.key(a.values), a.number), a) for a in applications
        ]
        work += [((groups[r.number], "", r.number), r) for r in repeats]
        natural.clear()
        work.sort(key=itemgetter(0), reverse=True)
        outputs: list[Output] = []
        while work:  # each is freed when done: with 92,000 tensors, both lists at once are many megabytes
            one = work.pop()[1]
            if isinstance(one, Application):
                self._add_outputs_of(one, outputs)
            else:
                outputs.append(self._repeated(one))
        return outputs

    def _add_outputs_of(self, application: Application, outputs: list[Output]) -> None:
        recipe = self._recipe(application)
        try:
            if recipe.is_renaming:
                outputs.append(self._renamed(application, recipe))
                return
            names = _sources(application.refs())
            outputs += [Output(name, view.dtype, view, names) for name, view in self._apply(application, recipe)]
        except (UnsupportedError, ShapeConflictError) as error:
            why, hint = error.marked if isinstance(error, StreamconvError) else (error, "")
            self.findings.append(f"{first_few(_sources(application.refs()), 3, quote)}: {why}")
            self.hints += [hint] if hint and hint not in self.hints else []

    def _repeated(self, repeat: Repeat) -> Output:
        view = self._leaf(repeat.of, self._dtype)
        return Output(repeat.name, view.dtype, view, _sources([repeat.of]) + repeat.others)

    def _renamed(self, application: Application, recipe: _Recipe) -> Output:
        """Return what `_apply` gives where a rule only renames: most rules do, and for most of the tensors."""
        (pattern, spec), ref = recipe.targets[0], cast("TensorRef", application.members[0])
        view = self._leaf(ref, recipe.dtype)
        if spec is not None:
            self._table.sizes.fit(view.shape, spec)
        name = pattern.name(dict(zip(recipe.shared, application.values, strict=True)), self._table.sizes)
        return Output(name, view.dtype, view, (ref.name,) if type(ref) is TensorRef else _sources((ref,)))

    def _apply(self, application: Application, recipe: _Recipe) -> Iterator[tuple[str, View]]:
        """Yield names and views of the tensors that one application of a rule writes."""
        sizes = self._table.sizes
        bindings = dict(zip(recipe.shared, application.values, strict=True))
        parts = self._parts(application, recipe)
        results = recipe.transform.apply(parts, sizes)
        for view in recipe.transform.must_be_zero(parts):
            self.checks += [SameBytes(None, ref, _not_zero(ref)) for one in view.leaves() for ref in one.refs()]
        for (pattern, spec), view in zip(recipe.targets, results, strict=True):
            cut = self._unstack(recipe.unstacked, view, bindings) if recipe.unstacked else [(bindings, view)]
            for filled, one in cut:
                if spec is not None:
                    sizes.fit(one.shape, spec)
                yield pattern.name(filled, sizes), one

    def _recipe(self, application: Application) -> _Recipe:
        """Return what all applications of a rule have in common: worked out once for thousands of tensors."""
        found = self._recipes.get(application.number)
        if found is None:
            found = self._recipes[application.number] = _Recipe.of(application.rule, self._table.side, self._dtype)
        return found

    def _parts(self, application: Application, recipe: _Recipe) -> list[View]:
        """Return the views that a rule's transform is applied to: tensors, or stacks of them."""
        if recipe.is_stacked:
            stacks = application.stacks()
            return [views.stack([self._leaf(stack[at], recipe.dtype) for at in sorted(stack)]) for stack in stacks]
        return [self._leaf(ref, recipe.dtype) for ref in application.refs()]

    def _unstack(self, hole: str, view: View, bindings: Bindings) -> Iterator[tuple[Bindings, View]]:
        """Yield the tensors of a stack, each with the values of its holes."""
        ranges, count = self._table.ranges, view.shape[0]
        symbol = ranges.unknown(hole)
        end = ranges.bounds(hole)[1]
        if symbol:
            self._table.sizes.learn(symbol, count, "the shapes")
        elif end != count:
            raise UnsupportedError(
                f"shape {list(view.shape)} is a stack of {count}, but the model has {ranges.described(hole)}"
            )
        if not math.prod(view.shape):
            raise UnsupportedError(f"shape {list(view.shape)} is a stack of empty tensors")
        for position in range(count):
            yield {**bindings, hole: position}, views.squeeze(views.cut(view, 0, position, position + 1), 0)

    def _leaf(self, ref: TensorRef, dtype: DType | None) -> View:
        """Return the tensor, cast if a dtype is asked. Integers are never cast."""
        view = views.leaf(ref)
        if dtype is None or view.dtype.kind == INTEGER:
            return view
        if view.dtype.kind != FLOAT:
            raise UnsupportedError(f"{view.dtype} cannot be cast to {dtype}", f"omit {setting('dtype')}")
        return views.cast(view, dtype)


def _sources(refs: Iterable[TensorRef]) -> tuple[str, ...]:
    """Return the names of the tensors that are read: these, or what quantised ones consist of."""
    names: list[str] = []
    for ref in refs:
        if isinstance(ref, QuantisedRef):
            names += [part.name for part in ref.parts.refs()]
        else:
            names.append(ref.name)
    return tuple(names)


def _not_zero(ref: TensorRef) -> UnsupportedError:
    return UnsupportedError(
        f"{quote(ref.name)} must be zero: HuggingFace's model has no such tensor, and its values would be lost"
    )


def _layer_groups(statements: Sequence[Statement]) -> dict[int, int]:
    """Number the groups of neighboring statements with (or without) holes, so that a layer stays together."""
    groups, group, before = {}, 0, None
    for number, statement in enumerate(statements):
        if not isinstance(statement, Drop):
            has_layers = isinstance(statement, Copy) or (isinstance(statement, Rule) and bool(statement.holes(Side.HF)))
            group += before is not None and has_layers != before
            before = has_layers
        groups[number] = group
    return groups


class _Natural(dict[str, str]):
    """Keys that sort `layers.10` after `layers.9`: every number has its length before it. Each part is made once."""

    def key(self, values: Values) -> str:
        """Return the key of several values one after the other."""
        keys = ["\0".join(map(self.__getitem__, str(value).split("."))) for value in values]
        return "\0\0".join(keys)

    def __missing__(self, part: str) -> str:
        is_number = part.isdecimal() and part.isascii() and len(part) < len(_NUMBERS)
        key = self[part] = (_NUMBERS[len(part)] if is_number else "\2") + part
        return key
