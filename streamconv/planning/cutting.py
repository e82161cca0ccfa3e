"""Tensors cut for the ranks of a training: each distinct slice is one output, however many ranks hold it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Protocol

from msgspec.structs import replace

from ..errors import UnsupportedError
from ..ranks.device_layouts import DeviceLayout
from ..rules.training_state import is_training_state
from ..tensors import views
from ..text import counted, first_few, quote
from .mapping import RankFile, TensorMapping
from .outputs import Output

_SHOWN = 3
_OTHER_STRATEGY = "give the strategy that MindFormers writes for this model and this number of devices"

Index = tuple[int, ...]
"""Which part of each dimension."""


class Stage(Protocol):
    """A pipeline stage: how it cuts its tensors, and its ranks."""

    @property
    def layouts(self) -> Mapping[str, DeviceLayout]:
        """Tensor -> how it is cut."""
        ...

    @property
    def ranks(self) -> int:
        """How many ranks it has."""
        ...

    @property
    def first_rank(self) -> int:
        """The first of them."""
        ...


class Strategy(Protocol):
    """How a training divides a model among its ranks."""

    @property
    def stages(self) -> Sequence[Stage]:
        """The pipeline stages, in order."""
        ...


def cut_for_ranks(mapping: TensorMapping, strategy: Strategy) -> TensorMapping:
    """Cut every output for the ranks of a training.

    A tensor of no layout is whole in every rank of every stage: scalars, and what a strategy leaves out.

    Args:
        mapping: the whole tensors.
        strategy: how they are divided.

    Raises:
        UnsupportedError: the strategy is another model's, or a tensor cannot be cut as it says.
    """
    _check_stages(mapping, strategy)
    cuts = _Cuts()
    unlisted = [output.name for output in mapping.outputs if not any(output.name in s.layouts for s in strategy.stages)]
    everywhere = frozenset(unlisted)
    held: dict[int, list[int]] = {rank: [] for stage in strategy.stages for rank in _ranks(stage)}
    for output in mapping.outputs:
        for stage in strategy.stages:
            layout = stage.layouts.get(output.name)
            if layout is not None or output.name in everywhere:
                for rank, number in zip(_ranks(stage), cuts.of(output, layout, stage.ranks), strict=True):
                    held[rank].append(number)
    notes = [*mapping.notes, *_notes(unlisted, _unknown(mapping, strategy))]
    return replace(mapping, outputs=tuple(cuts.outputs), notes=tuple(notes), rank_files=_grouped(held))


def slices(mapping: TensorMapping, strategy: Strategy) -> int:
    """Return how many slices there will be at the most, without making one."""
    layouts = (stage.layouts.get(output.name) for output in mapping.outputs for stage in strategy.stages)
    return sum(math.prod(layout.divisions) for layout in layouts if layout is not None)


def written_layouts(mapping: TensorMapping, stage: Stage) -> dict[str, DeviceLayout]:
    """Return how a stage cuts the tensors that are written, in their order."""
    names = dict.fromkeys(output.tensor for output in mapping.outputs)
    return {name: stage.layouts[name] for name in names if name in stage.layouts}


class _Cuts:
    """The slices of all tensors, each once.

    Attributes:
        outputs: the slices, in the order in which they are asked for.
    """

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self._numbers: dict[str, int] = {}
        # Few layouts are shared by all tensors.
        self._indices: dict[DeviceLayout, list[Index]] = {}

    def of(self, output: Output, layout: DeviceLayout | None, ranks: int) -> Iterator[int]:
        """Yield for each rank of a stage the place in `outputs` of what it holds of a tensor."""
        if layout is None:
            yield from [self._number(output, (1,) * len(output.view.shape), (0,) * len(output.view.shape))] * ranks
            return
        layout = _fitting(output, layout)
        if layout not in self._indices:
            self._indices[layout] = [layout.index_of(rank) for rank in range(ranks)]
        numbers: dict[Index, int] = {}
        for index in self._indices[layout]:
            if index not in numbers:
                numbers[index] = self._number(output, layout.divisions, index)
            yield numbers[index]

    def _number(self, output: Output, divisions: Index, index: Index) -> int:
        sliced = _slice(output, divisions, index)
        number = self._numbers.setdefault(sliced.name, len(self.outputs))
        if number == len(self.outputs):
            self.outputs.append(sliced)
        elif self.outputs[number].tensor != sliced.tensor:
            raise UnsupportedError(f"tensor {quote(sliced.name)} is named like a slice of another one", "rename it")
        return number


def _slice(output: Output, divisions: Index, index: Index) -> Output:
    """Return one slice of a tensor as an output; the tensor itself where it is not cut."""
    view, words = output.view, []
    for axis, (count, at) in enumerate(zip(divisions, index, strict=True)):
        size = output.view.shape[axis] // count
        words.append(f"{at * size}:{(at + 1) * size}" if count > 1 else ":")
        if count > 1:
            view = views.cut(view, axis, at * size, (at + 1) * size)
    if view is output.view:
        return output
    return replace(output, name=f"{output.name}[{', '.join(words)}]", view=view, slice_of=output.name)


def _fitting(output: Output, layout: DeviceLayout) -> DeviceLayout:
    """Return a layout as it is for a tensor.

    Refuse parts that are not equal: MindSpore loads such a tensor whole, or not at all.
    """
    shape, name = output.view.shape, quote(output.name)
    fitting = layout.for_dims(len(shape))
    if fitting is None:
        dimensions = counted(len(layout.axes), "dimension")
        raise UnsupportedError(
            f"{name} has shape {list(shape)}, but the strategy is for a tensor of {dimensions}", _OTHER_STRATEGY
        )
    if fitting.shape not in (None, shape):
        raise UnsupportedError(
            f"{name} has shape {list(shape)}, but the strategy is for {list(fitting.shape or ())}", _OTHER_STRATEGY
        )
    if any(size % count for size, count in zip(shape, fitting.divisions, strict=True)):
        raise UnsupportedError(
            f"{name} of shape {list(shape)} cannot be cut into {list(fitting.divisions)} equal parts", _OTHER_STRATEGY
        )
    return fitting


def _check_stages(mapping: TensorMapping, strategy: Strategy) -> None:
    """Refuse a strategy that is not for these tensors, and a stage that would hold none of them."""
    names = {output.name for output in mapping.outputs}
    held = [not names.isdisjoint(stage.layouts) for stage in strategy.stages]
    if not any(held):
        theirs = list(chain.from_iterable(stage.layouts for stage in strategy.stages))
        ours = first_few(sorted(names)[:_SHOWN], _SHOWN, quote)
        raise UnsupportedError(
            f"the strategy names none of the tensors that are written: it has {first_few(theirs, _SHOWN, quote)}, "
            f"and they are {ours}",
            "check that the strategy is this model's, and that the options of the family are those of the training",
        )
    if not all(held):
        raise UnsupportedError(
            f"pipeline stage {held.index(False)} of the strategy has none of the tensors that are written",
            _OTHER_STRATEGY,
        )


def _unknown(mapping: TensorMapping, strategy: Strategy) -> list[str]:
    """Return the names of the strategy that are neither written nor known to be of the training alone."""
    names = {output.name for output in mapping.outputs}
    others = dict.fromkeys(n for stage in strategy.stages for n in stage.layouts if n not in names)
    return [name for name in others if not is_training_state(name)]


def _notes(unlisted: Sequence[str], unknown: Sequence[str]) -> Iterator[str]:
    if unlisted:
        yield (
            f"{counted(len(unlisted), 'tensor')} that the strategy does not name, written whole for every rank: "
            f"{first_few(unlisted, _SHOWN, quote)}"
        )
    if unknown:
        yield (
            f"{counted(len(unknown), 'tensor')} that the strategy names and the result does not have: "
            f"{first_few(unknown, _SHOWN, quote)}"
        )


def _ranks(stage: Stage) -> range:
    return range(stage.first_rank, stage.first_rank + stage.ranks)


def _grouped(held: Mapping[int, Sequence[int]]) -> tuple[RankFile, ...]:
    """Return what each rank holds, ranks that hold the same together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank, numbers in sorted(held.items()):
        groups.setdefault(tuple(numbers), []).append(rank)
    return tuple(RankFile(tuple(ranks), numbers) for numbers, ranks in groups.items())
