"""Slices as whole tensors: every slice that the layouts ask for is found in a rank that holds it, or named as lost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain

from msgspec import Struct, field

from ..rules.training_state import is_training_state
from ..tensors.refs import TensorRef
from ..text import quote
from .device_layouts import DeviceLayout, slice_numbers
from .holdings import Held, Holdings
from .holdings import whole as whole_tensor
from .joining import Row, joined
from .strategies import Stage, Strategy


class Assembly(Struct):
    """Whole tensors, and what stands against them.

    Attributes:
        tensors: by name, in the order of the files.
        findings: slices of other shapes or dtypes than their neighbours', and layouts that do not fit them.
        lost: tensor → the ranks that would hold slices of it which no rank holds.
        unlisted: names of tensors that no layout names: every rank holds them whole.
        of_cut: names of training state that no layout names although its parameter is cut: it may be cut any way.
        twice: tensors that two pipeline stages hold, the one in `tensors` first.
    """

    tensors: dict[str, TensorRef] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    lost: dict[str, Sequence[int]] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)
    of_cut: list[str] = field(default_factory=list)
    twice: list[tuple[TensorRef, TensorRef]] = field(default_factory=list)


def assemble(holdings: Holdings, strategy: Strategy | None) -> Assembly:
    """Put the slices of every tensor together.

    Args:
        holdings: what the ranks hold; emptied on the way.
        strategy: how tensors are cut; `None` where every rank holds all that it has whole.
    """
    found = Assembly()
    work = _Work(found, holdings, strategy.stages if strategy else ())
    for name in [*holdings.tensors]:
        work.add(name, holdings.tensors.pop(name))
    for stage in strategy.stages if strategy else ():
        work.note_unheld(stage)
    return found


class _Work(Struct):
    found: Assembly
    holdings: Holdings
    stages: Sequence[Stage]

    def add(self, name: str, by_stage: Mapping[int, Held]) -> None:
        """Put one tensor together, from the stages that hold it."""
        wrong = [*chain.from_iterable(_unlike(name, held) for held in by_stage.values())]
        layouts = {stage: self.stages[stage].layouts.get(name) if self.stages else None for stage in by_stage}
        if wrong:
            self.found.findings += wrong
        elif any(layouts.values()):
            self._add_cut(name, by_stage, layouts)
        elif self._is_of_cut(name):
            self.found.of_cut.append(name)
        else:
            self._add_whole(name, [*by_stage.values()])

    def _is_of_cut(self, name: str) -> bool:
        """Return whether a tensor is the state of a parameter that is cut, such as `adam_m.NAME`."""
        parameter = name.partition(".")[2]
        layouts = (stage.layouts.get(parameter) for stage in self.stages)
        return is_training_state(name) and any(layout and max(layout.divisions, default=1) > 1 for layout in layouts)

    def _add_whole(self, name: str, held: Sequence[Held]) -> None:
        first, *others = held
        differing = next((other for other in others if (other.shape, other.dtype) != (first.shape, first.dtype)), None)
        if differing:
            self.found.findings.append(_differs(name, first, differing.rank, differing.shape, differing.dtype.name))
            return
        self.found.tensors[name] = whole_tensor(name, held, self.holdings.files)
        self.found.unlisted.append(name)

    def _add_cut(self, name: str, by_stage: Mapping[int, Held], layouts: Mapping[int, DeviceLayout | None]) -> None:
        whole: list[TensorRef] = []
        for stage, held in by_stage.items():
            layout = layouts[stage]
            if layout is None and is_training_state(name):
                continue
            if layout is None:
                self.found.findings.append(
                    f"{quote(name)} is in rank {held.rank}, and the strategy of its pipeline stage, {stage}, "
                    "does not tell how it is cut"
                )
            elif ref := self._joined(name, held, layout, self.stages[stage]):
                whole.append(ref)
        if whole:
            # What another pipeline stage holds completely is not lost.
            self.found.lost.pop(name, None)
        kinds = {(ref.shape, ref.dtype): f"{list(ref.shape)} {ref.dtype}" for ref in whole}
        if len(kinds) > 1:
            self.found.findings.append(f"{quote(name)} is {' and '.join(kinds.values())} by its pipeline stages")
        elif whole:
            self.found.tensors[name] = whole[0]
            self.found.twice += [(whole[0], other) for other in whole[1:]]

    def _joined(self, name: str, held: Held, stated: DeviceLayout, stage: Stage) -> TensorRef | None:
        """Return a tensor of one stage, `None` if slices are lost or do not fit."""
        layout = stated.for_dims(len(held.shape))
        if layout is None:
            self.found.findings.append(
                f"{quote(name)} is {list(held.shape)} in rank {held.rank}, "
                f"and the strategy cuts a tensor of {len(stated.axes)} dimensions"
            )
            return None
        numbers = slice_numbers(layout)
        copies: dict[int, list[list[Row]]] = {}
        for rank, rows in held.by_rank():
            copies.setdefault(numbers[rank - stage.first_rank], []).append(rows)
        missing = {*numbers} - {*copies}
        if missing:
            self.found.lost[name] = [stage.first_rank + rank for rank, n in enumerate(numbers) if n in missing]
            return None
        ref = joined(name, held.dtype, held.shape, layout.divisions, copies, self.holdings.files)
        if layout.shape not in (None, ref.shape):
            self.found.findings.append(
                f"{quote(name)} is {list(held.shape)} in rank {held.rank}, so {list(ref.shape)} as a whole, "
                f"and the strategy is for one of {list(layout.shape or ())}"
            )
        return ref

    def note_unheld(self, stage: Stage) -> None:
        """Note the tensors of a stage that no rank holds, if ranks that are not here may have held them."""
        here = {*self.holdings.ranks}
        absent = {rank for rank in range(stage.first_rank, stage.first_rank + stage.ranks) if rank not in here}
        if not absent:
            return
        for name, layout in stage.layouts.items():
            if name in self.found.tensors or name in self.found.lost or is_training_state(name):
                continue
            if holders := _all_absent(layout, stage, absent):
                self.found.lost[name] = holders


def _all_absent(layout: DeviceLayout, stage: Stage, absent: Collection[int]) -> list[int]:
    """Return the ranks of the slices whose every holder is absent."""
    numbers = slice_numbers(layout)
    kept = {number for rank, number in enumerate(numbers) if stage.first_rank + rank not in absent}
    return [stage.first_rank + rank for rank, number in enumerate(numbers) if number not in kept]


def _unlike(name: str, held: Held) -> Iterator[str]:
    for (shape, dtype), rank in held.others.items():
        yield _differs(name, held, rank, shape, dtype.name)


def _differs(name: str, held: Held, rank: int, shape: tuple[int, ...], dtype: str) -> str:
    one, other = (f"{list(held.shape)} {held.dtype}", f"{list(shape)} {dtype}")
    return f"{quote(name)} is {other} in rank {rank} and {one} in rank {held.rank}"
