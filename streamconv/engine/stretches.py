"""Stretches: what lies one behind the other in a file of the result is made and written as one, up to a whole block.

A stretch lies in one block of its file. So a block's digest is made from memory, its write begins and ends where the
device's blocks do, and small tensors cost no request each, whether or not the format has literals between them. Those
that are neighbors in the source too are one run: one request, one cast, whatever their number.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias, TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..planning.outputs import Finished, Output
from ..tensors.dtypes import DType
from ..tensors.extents import SourceFile
from ..tensors.grids import box_shape, flat_boxes, flat_index
from ..tensors.literals import Literals
from ..tensors.refs import Home, OutputFile, TensorRef
from ..tensors.view_nodes import Cast, Dequantised, Stored, View
from ..units import BLOCK
from .boxes import flows, source_position
from .sharing import Task

T = TypeVar("T")
_Numbers: TypeAlias = NDArray[np.int64]
_Pair: TypeAlias = tuple[DType, DType]


Place: TypeAlias = tuple[str, int]
"""A path and an offset: where something lies in the source."""

#: Returns where a tensor lies, by its name; `None` where it lies in several files, or in parts.
Homes = Callable[[str], Home | None]

# Longer literals are left to those who write the file: they are headers, not records' heads.
_LONGEST_LITERAL = 64 << 10


Content: TypeAlias = "Run | tuple[Task, ...] | memoryview"
"""What a stretch is made of: a run, boxes of one output, or a literal."""


class Run(Struct, frozen=True):
    """Neighbors in the source and in the result: `count` elements from byte `offset` of a file on, cast to `target`."""

    file: SourceFile
    offset: int
    count: int
    dtype: DType
    target: DType

    @property
    def nbytes(self) -> int:
        """Its bytes in the result."""
        return self.count * self.target.itemsize

    @property
    def end(self) -> int:
        """The byte of the file behind its last one."""
        return self.offset + self.count * self.dtype.itemsize

    def part(self, first: int, count: int) -> Run:
        """Return some of its elements."""
        return Run(self.file, self.offset + first * self.dtype.itemsize, count, self.dtype, self.target)


class Stretch(Struct, frozen=True):
    """Bytes `begin` … `end` of a file, made of rows `first` … `stop` - 1 of a table and the literals around them.

    None but the first and the last row may be cut.

    Attributes:
        table: the table.
        file: the file.
    """

    table: Stretches
    file: OutputFile
    begin: int
    end: int
    first: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.end - self.begin

    @property
    def bytes_of_tensors(self) -> int:
        """Those that are no literals."""
        return self.table.bytes_of_tensors(self)

    def contents(self) -> Iterator[Content]:
        """Yield what it is made of, in order."""
        return self.table.contents(self)

    def finished(self) -> Iterator[Finished]:
        """Yield what of the outputs is finished once it is written."""
        return self.table.finished(self)

    def boxes(self) -> Iterator[tuple[Finished, int, int]]:
        """Yield the same box by box, each with the bytes of the file where it begins and ends."""
        return self.table.boxes(self)


class Stretches:
    """All stretches of a run, in the order in which their sources lie on disk; each is made when it is asked for.

    Args:
        outputs: the plan's tensors.
        numbers: those to be written that nothing is written of yet.
        homes: where they lie.
        most: bytes of a stretch.

    Attributes:
        left: the numbers of outputs that are not in any: those that lie elsewhere too, or whose rows are made of short
            runs of the source, as a transpose's are.
    """

    def __init__(self, outputs: Sequence[Output], numbers: Iterable[int], homes: Homes, most: int) -> None:
        self.outputs = outputs
        self.left = array("q")
        self._unit = _fraction(most)
        self._files, self._sources, self._pairs = _Every[OutputFile](), _Every[SourceFile](), _Every[_Pair]()
        table = self._sorted(self._rows(numbers, homes))
        self._file, self._begin, self._end, self._number, self._source, self._offset, self._pair = table.T
        self._literals: dict[int, Literals] = {}
        self._is_apart = self._apart()
        self._starts_run = self._run_starts()

    def __iter__(self) -> Iterator[tuple[Place, Stretch]]:
        """Yield each with the place of its first element in the source: path and offset."""
        table, paths = array("q"), dict[str, int]()
        for cut in self._cuts():
            path, offset = self._place(*cut)
            table.extend((*cut, paths.setdefault(path, len(paths)), offset))
        rows: _Numbers = np.frombuffer(table, np.int64).reshape(-1, 6)
        names, rank = list(paths), np.argsort(np.argsort(list(paths)))
        for index in np.lexsort((rows[:, 5], rank[rows[:, 4]])) if names else ():
            begin, end, first, stop, path_number, offset = rows[index].tolist()
            file = self._files[int(self._file[first])]
            yield (names[path_number], offset), Stretch(self, file, begin, end, first, stop)

    def number(self, row: int) -> int:
        """Return the number of the output in a row."""
        return int(self._number[row])

    def clipped(self, stretch: Stretch, row: int) -> tuple[int, int]:
        """Return from where to where in the file a row lies in a stretch."""
        return max(stretch.begin, int(self._begin[row])), min(stretch.end, int(self._end[row]))

    # -- what is in a stretch ------------------------------------------------------------------------------------------

    def bytes_of_tensors(self, stretch: Stretch) -> int:
        """Return how many bytes of a stretch are no literals."""
        rows = slice(stretch.first, stretch.stop)
        begins, ends = np.maximum(self._begin[rows], stretch.begin), np.minimum(self._end[rows], stretch.end)
        return int((ends - begins).sum())

    def contents(self, stretch: Stretch) -> Iterator[Content]:
        """Yield what a stretch is made of, in order."""
        first, stop, at = stretch.first, stretch.stop, stretch.begin
        starts = [first, *(first + 1 + np.flatnonzero(self._starts_run[first + 1 : stop])).tolist(), stop]
        for low, high in pairwise(starts):
            begin, end = self.clipped(stretch, low)[0], self.clipped(stretch, high - 1)[1]
            yield from self._between(low, at, begin)
            yield self._run(low, begin, end) if self._source[low] >= 0 else self._boxes(low, begin, end)
            at = end
        yield from self._between(first, at, stretch.end)

    def _between(self, row: int, begin: int, end: int) -> Iterator[memoryview]:
        """Yield the literals between two bytes of the file that a row lies in."""
        if begin < end:
            literals = self._literals[int(self._file[row])]
            yield from (literals[number][1] for number in literals.numbers(begin, end))

    def _run(self, row: int, begin: int, end: int) -> Run:
        source, target = self._pairs[int(self._pair[row])]
        skipped = (begin - int(self._begin[row])) // target.itemsize
        offset = int(self._offset[row]) + skipped * source.itemsize
        return Run(self._sources[int(self._source[row])], offset, (end - begin) // target.itemsize, source, target)

    def _boxes(self, row: int, begin: int, end: int) -> tuple[Task, ...]:
        number = self.number(row)
        output = self.outputs[number]
        first, stop = self._elements(row, begin, end)
        # In row-major order: the rest of a row, whole rows, the beginning of one.
        return tuple(Task(number, output, box) for box in sorted(flat_boxes(first, stop, output.view.shape)))

    def _elements(self, row: int, begin: int, end: int) -> tuple[int, int]:
        """Return which elements of the output in a row lie between two bytes of its file."""
        itemsize, before = self.outputs[self.number(row)].dtype.itemsize, int(self._begin[row])
        return (begin - before) // itemsize, (end - before) // itemsize

    def finished(self, stretch: Stretch) -> Iterator[Finished]:
        """Yield what of the outputs is finished once a stretch is written."""
        first, stop = stretch.first, stretch.stop
        for row in dict.fromkeys((first, stop - 1)):
            begin, end = self.clipped(stretch, row)
            if (begin, end) != (self._begin[row], self._end[row]):
                number = self.number(row)
                boxes = flat_boxes(*self._elements(row, begin, end), self.outputs[number].view.shape)
                yield from (Finished(number, number + 1, box) for box in boxes)
                first, stop = (first + 1, stop) if row == first else (first, stop - 1)
        numbers = self._number[first:stop]
        for some in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
            if len(some):
                yield Finished(int(some[0]), int(some[-1]) + 1)

    def boxes(self, stretch: Stretch) -> Iterator[tuple[Finished, int, int]]:
        """Yield the same box by box, each with the bytes of the file where it begins and ends."""
        for row in range(stretch.first, stretch.stop):
            number = self.number(row)
            shape, itemsize = self.outputs[number].view.shape, self.outputs[number].dtype.itemsize
            for box in flat_boxes(*self._elements(row, *self.clipped(stretch, row)), shape):
                begin = int(self._begin[row]) + flat_index((low for low, _ in box), shape) * itemsize
                yield Finished(number, number + 1, box), begin, begin + math.prod(box_shape(box)) * itemsize

    # -- the table -----------------------------------------------------------------------------------------------------

    def _rows(self, numbers: Iterable[int], homes: Homes) -> array[int]:
        """Return a row for each output in stretches: its file, begin, end, number, and where it is a run of the source,
        that file, the offset, and the two dtypes."""
        table, pairs = array("q"), dict[_Pair, _Pair]()
        for number in numbers:
            output = self.outputs[number]
            home, ref = homes(output.name), _as_stored(output.view)
            if home is None or output.slice_of or (ref is None and not _flows(output.view)):
                self.left.append(number)
                continue
            nbytes = math.prod(output.view.shape) * output.dtype.itemsize
            if not nbytes:
                continue
            row = (self._files.number(home.file), home.offset, home.offset + nbytes, number)
            if ref is None:
                table.extend((*row, -1, 0, 0))
                continue
            extent, pair = ref.extents[0], (ref.dtype, output.dtype)
            source = self._sources.number(extent.file), extent.offset
            table.extend((*row, *source, self._pairs.number(pairs.setdefault(pair, pair))))
        return table

    @staticmethod
    def _sorted(table: array[int]) -> _Numbers:
        rows: _Numbers = np.frombuffer(table, np.int64).reshape(-1, 7)
        ordered: _Numbers = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        return ordered

    def _run_starts(self) -> NDArray[np.bool_]:
        """Return for each row whether it does not continue the run of the row before it."""
        widths = np.array([(one.itemsize, other.itemsize) for one, other in self._pairs] or [(1, 1)], np.int64)
        source, target = widths[self._pair].T
        ends = self._offset + (self._end - self._begin) // target * source
        continues = (self._source[1:] >= 0) & (self._offset[1:] == ends[:-1])
        for column in (self._source, self._pair):
            continues &= column[1:] == column[:-1]
        continues &= self._begin[1:] == self._end[:-1]
        return np.concatenate(([True], ~continues))[: len(self._file)]

    def _apart(self) -> NDArray[np.bool_]:
        """Return for each row but the first whether more than literals lie between it and the row before it."""
        gaps, in_another = self._begin[1:] - self._end[:-1], self._file[1:] != self._file[:-1]
        apart: NDArray[np.bool_] = in_another | (gaps != 0)
        may_be = ~in_another & (gaps > 0) & (gaps <= _LONGEST_LITERAL)
        for number in np.unique(self._file[1:][may_be]).tolist():
            literals = self._literals[number] = Literals(self._files[number], BLOCK)
            rows = np.flatnonzero(may_be & (self._file[1:] == number))
            held = literals.bytes_before(self._begin[rows + 1]) - literals.bytes_before(self._end[rows])
            apart[rows] = held != gaps[rows]
        return apart

    def _cuts(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield the stretches: begin and end in the file, first row, and the row behind the last."""
        edges = [0, *(1 + np.flatnonzero(self._is_apart)).tolist(), len(self._file)]
        for low, high in pairwise(edges):
            if low < high:
                yield from self._cuts_between(low, high)

    def _cuts_between(self, low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
        begins, ends = self._begin[low:high], self._end[low:high]
        at, end = int(begins[0]), int(ends[-1])
        while at < end:
            stop, behind_it = self._cut_at(low, begins, min(end, (at // self._unit + 1) * self._unit))
            first = low + int(np.searchsorted(ends, at, "right"))
            behind = low + int(np.searchsorted(begins, stop, "left"))
            if first < behind:
                yield at, stop, first, behind
            at = behind_it

    def _cut_at(self, low: int, begins: _Numbers, at: int) -> tuple[int, int]:
        """Return where to end a stretch near `at`, and where to begin the next one.

        That is where an element ends. A literal is in neither of them, unless a block ends there: then both have parts.
        """
        row = low + int(np.searchsorted(begins, at, "right")) - 1
        if at <= self._end[row]:
            itemsize = self.outputs[self.number(row)].dtype.itemsize
            at += (int(self._begin[row]) - at) % itemsize
        elif at % BLOCK:
            return int(self._end[row]), int(self._begin[row + 1])
        return at, at

    def _place(self, begin: int, end: int, first: int, stop: int) -> Place:
        """Return where the first element of a stretch lies in the source."""
        begin = max(begin, int(self._begin[first]))
        if self._source[first] >= 0:
            run = self._run(first, begin, end)
            return str(run.file.path), run.offset
        output = self.outputs[self.number(first)]
        at = self._elements(first, begin, begin)[0]
        return source_position(output.view, next(flat_boxes(at, at + 1, output.view.shape)))


class _Every(list[T]):
    """Objects, each of them once, and their numbers."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def number(self, one: T) -> int:
        """Return the number of an object, which is added if it is new; what is equal to it is another."""
        found = self._numbers.setdefault(id(one), len(self))
        if found == len(self):
            self.append(one)
        return found


def _flows(view: View) -> bool:
    """Return whether any bytes of a view in row-major order are made of long runs of its source."""
    inner = view.of if isinstance(view, Cast) else view
    return isinstance(inner, (Stored, Dequantised)) or flows(view)


def _as_stored(view: View) -> TensorRef | None:
    """Return the tensor that a view is, as it lies in one piece on disk, cast at most; `None` where it is another."""
    inner = view.of if type(view) is Cast else view
    if type(inner) is not Stored or len(inner.ref.extents) != 1 or inner.ref.cutout is not None:
        return None
    return inner.ref


def _fraction(most: int) -> int:
    """Return the largest of a block's half, quarter and so on, or the block, of at most so many bytes."""
    unit = BLOCK
    while unit > max(most, 8):
        unit //= 2
    return unit
