"""Which boxes a run works on, and in which order."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import chain, count
from typing import Protocol

import numpy as np

from ..planning.mapping import TensorMapping
from ..tensors.grids import Box, box_shape
from .boxes import Cells, boxes, source_position
from .sharing import Task, neighbors, shared_boxes

#: Whether a box is worked on, from its number in the order of work, its output's name, and itself.
BoxFilter = Callable[[int, str, Box], bool]


class Record(Protocol):
    """What earlier runs wrote, and the listener for what this run writes. Called from several threads."""

    def outputs(self, count: int) -> Iterable[int]:
        """Return the numbers, below `count`, of the outputs that may have something left to be written."""
        ...

    def left(self, number: int, box: Box) -> Iterable[Box]:
        """Return what is still to be written of a box of output `number`."""
        ...

    def writing(self, number: int, box: Box, count: int, overflowed: int) -> AbstractContextManager[None]:
        """Enter before a box of `count` bytes is written, and leave when it is written."""
        ...


class Unrecorded:
    """Nothing was written before, and nothing is recorded."""

    def outputs(self, count: int) -> Iterable[int]:
        return range(count)

    def left(self, number: int, box: Box) -> Iterable[Box]:
        return (box,)

    def writing(self, number: int, box: Box, count: int, overflowed: int) -> AbstractContextManager[None]:
        return nullcontext()


Work = tuple[Task, ...]
"""Boxes that one worker converts one after the other: those that share a window, or a single one."""


def total_bytes(mapping: TensorMapping, region_bytes: int, chosen: BoxFilter | None) -> int:
    """Return the bytes of output to make."""
    if chosen is None:
        return mapping.nbytes
    every = chain.from_iterable(tasks(mapping, region_bytes, Unrecorded(), chosen))
    return sum(math.prod(box_shape(task.box)) * task.output.dtype.itemsize for task in every)


def tasks(mapping: TensorMapping, region_bytes: int, record: Record, chosen: BoxFilter | None) -> Iterator[Work]:
    """Yield the boxes to convert."""
    every = _work(mapping, region_bytes, record)
    return every if chosen is None else _chosen(every, chosen)


def _chosen(every: Iterable[Work], chosen: BoxFilter) -> Iterator[Work]:
    numbers = count()
    for work in every:
        if kept := tuple(task for task in work if chosen(next(numbers), task.output.name, task.box)):
            yield kept


def _work(mapping: TensorMapping, region_bytes: int, record: Record) -> Iterator[Work]:
    """Yield all boxes that are left to convert, in the order in which their sources lie on disk."""
    widest = lru_cache(maxsize=64)(lambda number: mapping.outputs[number].widest)
    for group in neighbors(_cells(mapping, record.outputs(len(mapping.outputs)))):
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
