"""Which boxes a run works on, and in which order."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import chain, count
from typing import Protocol, TypeAlias

import numpy as np

from ..planning.mapping import TensorMapping
from ..planning.outputs import Finished
from ..tensors.grids import Box, box_shape, whole
from .boxes import Cells, boxes, source_position
from .sharing import Task, neighbors, shared_boxes
from .stretches import Homes, Place, Stretch, Stretches

#: Whether a box is worked on, from its number in the order of work, its output's name, and itself.
BoxFilter = Callable[[int, str, Box], bool]


class Record(Protocol):
    """What earlier runs wrote, and the listener for what this run writes. Called from several threads."""

    def outputs(self, count: int) -> Iterable[int]:
        """Return the numbers, below `count`, of the outputs that may have something left to be written."""
        ...

    @property
    def is_empty(self) -> bool:
        """Whether all outputs are to be written, by this run alone, and nothing of them was."""
        ...

    def left(self, number: int, box: Box) -> Iterable[Box]:
        """Return what is still to be written of a box of output `number`."""
        ...

    def is_shared(self, number: int, box: Box) -> bool:
        """Return whether a box of an output is an element of which others write some bytes: it is not recorded."""
        ...

    def writing(self, finished: Sequence[Finished], count: int) -> AbstractContextManager[None]:
        """Enter before `count` bytes are written, and leave when they are; what is finished then."""
        ...


class Unrecorded:
    """Nothing was written before, and nothing is recorded."""

    is_empty = True

    def outputs(self, count: int) -> Iterable[int]:
        return range(count)

    def left(self, number: int, box: Box) -> Iterable[Box]:
        return (box,)

    def is_shared(self, number: int, box: Box) -> bool:
        return False

    def writing(self, finished: Sequence[Finished], count: int) -> AbstractContextManager[None]:
        return nullcontext()


Boxes: TypeAlias = tuple[Task, ...]
"""Boxes that one worker converts one after the other: those that share a window, or a single one."""

Work: TypeAlias = Boxes | Stretch
"""What one worker converts before it asks for more."""


def total_bytes(mapping: TensorMapping, region_bytes: int, chosen: BoxFilter | None) -> int:
    """Return the bytes of output to make."""
    if chosen is None:
        return mapping.nbytes
    every = chain.from_iterable(_chosen(_boxes(mapping, region_bytes, Unrecorded()), chosen))
    return sum(math.prod(box_shape(task.box)) * task.output.dtype.itemsize for task in every)


def tasks(
    mapping: TensorMapping, region_bytes: int, record: Record, homes: Homes, chosen: BoxFilter | None = None
) -> Iterator[Work]:
    """Yield what is to be converted, in the order in which its sources lie on disk.

    Args:
        mapping: the tensors to be written.
        region_bytes: bytes of a window, and of what is made of it, at most.
        record: what is done already.
        homes: where tensors lie in the result.
        chosen: which boxes; all, and most of them in stretches, where absent.
    """
    if chosen is not None:
        yield from _chosen(_boxes(mapping, region_bytes, record), chosen)
        return
    untouched, begun = _untouched(mapping, record)
    stretches = Stretches(mapping.outputs, untouched, homes, region_bytes)
    every = _boxes(mapping, region_bytes, record, sorted((*begun, *stretches.left)))
    yield from _merged(iter(stretches), every)


def _untouched(mapping: TensorMapping, record: Record) -> tuple[array[int], array[int]]:
    """Return the numbers of the outputs that are to be written as a whole, and of those of which a part is left.

    With these are single elements of which this run writes some bytes, and others the rest.
    """
    if record.is_empty:
        return array("q", range(len(mapping.outputs))), array("q")
    found = array("q"), array("q")
    for number in record.outputs(len(mapping.outputs)):
        every = whole(mapping.outputs[number].view.shape)
        is_begun = [*record.left(number, every)] != [every] or record.is_shared(number, every)
        found[is_begun].append(number)
    return found


def _merged(stretches: Iterator[tuple[Place, Stretch]], every: Iterator[Boxes]) -> Iterator[Work]:
    """Yield both, in the order of their sources."""
    waiting = next(stretches, None)
    for row in every:
        if waiting is not None:
            place = source_position(row[0].output.view, row[0].box)
            while waiting is not None and waiting[0] <= place:
                yield waiting[1]
                waiting = next(stretches, None)
        yield row
    if waiting is not None:
        yield waiting[1]
        yield from (stretch for _, stretch in stretches)


def _chosen(every: Iterable[Boxes], chosen: BoxFilter) -> Iterator[Boxes]:
    numbers = count()
    for work in every:
        if kept := tuple(task for task in work if chosen(next(numbers), task.output.name, task.box)):
            yield kept


def _boxes(
    mapping: TensorMapping, region_bytes: int, record: Record, numbers: Iterable[int] | None = None
) -> Iterator[Boxes]:
    """Yield all boxes that are left to convert, of all outputs or some, in the order in which their sources lie."""
    widest = lru_cache(maxsize=64)(lambda number: mapping.outputs[number].widest)
    chosen = record.outputs(len(mapping.outputs)) if numbers is None else numbers
    for group in neighbors(_cells(mapping, chosen)):
        shares = False
        for row in shared_boxes(group, region_bytes):
            shares = True
            if work := tuple(_left(row, record)):
                yield work
        for task in () if shares else _left(group, record):
            for box in boxes(task.output.view, task.box, widest(task.number), region_bytes):
                yield (Task(task.number, task.output, box),)


def _left(every: Iterable[Task], record: Record) -> Iterator[Task]:
    for task in every:
        for part in record.left(task.number, task.box):
            yield Task(task.number, task.output, part)


def _cells(mapping: TensorMapping, chosen: Iterable[int]) -> Iterator[Task]:
    """Yield all cells of these outputs, in the order in which their sources lie on disk."""
    outputs = mapping.outputs
    # Neighbours on disk belong to few outputs by turns: gate, up and down of one expert after the other.
    cells_of = lru_cache(maxsize=64)(lambda number: Cells(outputs[number].view))
    for number, cell in _in_source_order(mapping, chosen):
        yield Task(number, outputs[number], cells_of(number).box(cell))


def _in_source_order(mapping: TensorMapping, chosen: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the output and the number of every cell. In arrays: there may be a hundred thousand."""
    files: dict[str, int] = {}
    table = array("q")
    for number in chosen:
        view = mapping.outputs[number].view
        found = Cells(view)
        for cell in range(len(found)):
            path, offset = source_position(view, found.box(cell))
            table.extend((files.setdefault(path, len(files)), offset, number, cell))
    in_files, offsets, numbers, cells = np.frombuffer(table, np.int64).reshape(-1, 4).T
    rank = np.argsort(np.argsort(list(files)))
    for index in np.lexsort((cells, numbers, offsets, rank[in_files])):
        yield int(numbers[index]), int(cells[index])
