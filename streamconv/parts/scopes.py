"""What a part has of each tensor: the elements whose bytes all lie in its blocks, as boxes.

An element of a `.ckpt` may lie across two blocks, and so across two parts. Each part writes its bytes of it, but none
records it: whoever puts the parts together converts it again, and counts it once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from ..formats.layout import FileLayout
from ..planning.mapping import TensorMapping
from ..planning.outputs import Output
from ..tensors.grids import Box, flat_boxes, overlap
from ..tensors.refs import OutputFile
from ..units import BLOCK
from .cutting import Part

Interval = tuple[int, int]
"""Bytes from … to of a tensor."""


class PartScope:
    """What a part has (`output.recorder.Scope`).

    Attributes:
        nbytes: bytes of the elements that are all its own.
    """

    def __init__(self, scopes: Scopes, part: Part) -> None:
        self._blocks = {scopes.layout.files[r.file].name: range(r.first, r.stop) for r in part.blocks}
        self._boxes: dict[int, list[Box]] = {}
        self._shared: set[tuple[int, Box]] = set()
        self.nbytes = 0
        for number, intervals in sorted(scopes.intervals(part).items()):
            self._take(number, scopes.outputs[number], intervals)

    def _take(self, number: int, output: Output, intervals: Iterable[Interval]) -> None:
        boxes = self._boxes[number] = []
        itemsize, shape = output.dtype.itemsize, output.view.shape
        for begin, end in _merged(intervals):
            first, stop = -(-begin // itemsize), end // itemsize
            boxes += flat_boxes(first, stop, shape)
            self.nbytes += max(0, stop - first) * itemsize
            cut = {at // itemsize for at in (begin, end) if at % itemsize}
            self._shared |= {(number, box) for at in cut for box in flat_boxes(at, at + 1, shape)}
        boxes += [box for one, box in self._shared if one == number]

    @property
    def outputs(self) -> Sequence[int]:
        """The numbers of the outputs that it has something of, ascending."""
        return list(self._boxes)

    def blocks(self, file: str) -> range:
        """Return which blocks of a file it has."""
        return self._blocks.get(file, range(0))

    def clip(self, number: int, box: Box) -> Iterator[Box]:
        """Yield what it has of a box of an output."""
        for mine in self._boxes.get(number, ()):
            if (both := overlap(box, mine)) is not None:
                yield both

    def is_shared(self, number: int, box: Box) -> bool:
        """Return whether the box is an element that lies in another part too."""
        return bool(self._shared) and (number, box) in self._shared

    def boxes(self) -> Iterator[tuple[int, Box]]:
        """Yield all boxes that are all its own, with their outputs."""
        for number, boxes in self._boxes.items():
            yield from ((number, box) for box in boxes if (number, box) not in self._shared)


class Scopes:
    """The scopes of the parts of a plan.

    Args:
        mapping: the tensors to be written.
        layout: the files to be written.
    """

    def __init__(self, mapping: TensorMapping, layout: FileLayout) -> None:
        self.layout, self.outputs = layout, mapping.outputs
        self._numbers = {output.name: number for number, output in enumerate(mapping.outputs)}
        # The parts of a file are asked for one after the other.
        self._places = lru_cache(maxsize=8)(lambda file: _Places(layout.files[file], self._numbers))

    def of(self, part: Part) -> PartScope:
        """Return what a part has."""
        return PartScope(self, part)

    def intervals(self, part: Part) -> Mapping[int, list[Interval]]:
        """Return for each output the bytes of it that lie in a part, wherever a file of the part holds them."""
        found: dict[int, list[Interval]] = {}
        for file, first, stop in part.blocks:
            for number, interval in self._places(file).between(first * BLOCK, stop * BLOCK):
                found.setdefault(number, []).append(interval)
        return found


class _Places:
    """Where the tensors of a file lie, by their offsets."""

    def __init__(self, file: OutputFile, numbers: Mapping[str, int]) -> None:
        places = []
        for name, extents in file.extents.items():
            before = 0
            for offset, length in extents:
                if length:
                    places.append((offset, offset + length, numbers[name], before))
                before += length
        self._places = sorted(places)
        self._begins = [begin for begin, *_ in self._places]
        self._ends = [end for _, end, *_ in self._places]

    def between(self, low: int, high: int) -> Iterator[tuple[int, Interval]]:
        """Yield the outputs with bytes in a range of the file, and which of their bytes these are."""
        for begin, end, number, before in self._places[bisect_right(self._ends, low) : bisect_left(self._begins, high)]:
            yield number, (before + max(begin, low) - begin, before + min(end, high) - begin)


def _merged(intervals: Iterable[Interval]) -> Iterator[Interval]:
    """Yield intervals that touch or overlap as one."""
    current: Interval | None = None
    for begin, end in sorted(intervals):
        if current is None or begin > current[1]:
            if current is not None:
                yield current
            current = (begin, end)
        else:
            current = (current[0], max(current[1], end))
    if current is not None:
        yield current
