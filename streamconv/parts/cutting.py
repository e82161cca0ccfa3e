"""Cut a plan into parts: ranges of 16 MiB blocks of its files that take about the same time.

A part is decided by the plan alone: every host cuts the same parts, however many hosts there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats.layout import FileLayout
from ..planning.mapping import TensorMapping
from ..planning.outputs import Output
from ..tensors.refs import OutputFile
from ..units import BLOCK

#: Bytes read and written for a part of a large result, about.
PART_BYTES = 1 << 30

#: A smaller result has parts of at least so many bytes, or whole files, so that no more than `FEW_PARTS` are as small:
#: a tensor whose axes are exchanged is read several times where it is cut into several parts.
LEAST_BYTES = 256 << 20
FEW_PARTS = 64

#: How far, as a share of a part, its end may be moved to the end of a file.
_SNAP = 0.04


class BlockRange(NamedTuple):
    """Blocks `first` up to, not including, `stop` of a file, by its number in the layout."""

    file: int
    first: int
    stop: int


class Part(NamedTuple):
    """What one worker converts at a time.

    Attributes:
        number: its number among the parts of the plan.
        blocks: what is written, in the order of the layout.
        cost: bytes read and written for it, about.
    """

    number: int
    blocks: tuple[BlockRange, ...]
    cost: int


def cut_parts(mapping: TensorMapping, layout: FileLayout) -> Sequence[Part]:
    """Return the parts of a plan: neighbors in the result, and so in the source, as far as its order is the same."""
    costs = [np.zeros(0)] + [_costs(mapping, file, ratios) for ratios in [_ratios(mapping)] for file in layout.files]
    firsts = np.cumsum([len(cost) for cost in costs])
    before = np.cumsum(np.concatenate([[0.0], *costs]))
    ends = _ends(before, firsts)
    return [
        Part(number, tuple(_ranges(firsts, begin, end)), int(before[end] - before[begin]))
        for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]


def _ratios(mapping: TensorMapping) -> dict[str, float]:
    """Return for each tensor how many bytes are read and written for a byte of it."""
    return {output.name: 1 + _source_itemsize(output) / output.dtype.itemsize for output in mapping.outputs}


def _source_itemsize(output: Output) -> float:
    """Return the bytes of an element on disk: of a quantised tensor, those of its codes."""
    stored = [(leaf.refs()[0].nbytes, math.prod(leaf.shape)) for leaf in output.view.leaves() if leaf.refs()]
    return max((nbytes / count for nbytes, count in stored if count), default=0.0)


def _costs(mapping: TensorMapping, file: OutputFile, ratios: dict[str, float]) -> NDArray[np.float64]:
    """Return the cost of each block of a file."""
    found = np.zeros(-(-file.size // BLOCK))
    for name, extents in file.extents.items():
        for offset, length in extents:
            _spread(found, offset, length, ratios[name])
    for offset, data in file.literals:
        _spread(found, offset, len(data), 1.0)
    return found


def _spread(costs: NDArray[np.float64], offset: int, length: int, ratio: float) -> None:
    """Add the cost of a range of bytes to the blocks that it lies in."""
    if not length:
        return
    first, last = offset // BLOCK, (offset + length - 1) // BLOCK
    costs[first : last + 1] += BLOCK * ratio
    costs[first] -= (offset - first * BLOCK) * ratio
    costs[last] -= ((last + 1) * BLOCK - offset - length) * ratio


def _ends(before: NDArray[np.float64], firsts: NDArray[np.int64]) -> list[int]:
    """Return where parts end, as numbers of blocks counted over all files.

    Args:
        before: the cost of all blocks before each, and of all.
        firsts: the number of each file's first block, and behind the last file.
    """
    total = int(before[-1])
    few = min(FEW_PARTS, max(total // LEAST_BYTES, len(firsts) - 1))
    count = min(len(before) - 1, max(-(-total // PART_BYTES), few))
    if not count:
        return []
    targets = np.arange(1, count + 1, dtype=np.float64) * (total / count)
    ends, of_files = _nearest(before, targets), firsts[_nearest(before[firsts], targets)]
    is_near = np.abs(before[of_files] - targets) < _SNAP * total / count
    ends = np.where(is_near, of_files, ends)
    ends[-1] = len(before) - 1
    return [int(end) for end in np.unique(ends) if end]


def _nearest(values: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each target the number of the ascending value that is nearest."""
    after = np.minimum(np.searchsorted(values, targets), len(values) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(np.abs(values[before] - targets) < np.abs(values[after] - targets), before, after)


def _ranges(firsts: NDArray[np.int64], begin: int, end: int) -> Iterator[BlockRange]:
    """Yield the blocks `begin` up to `end`, counted over all files, file by file.

    Args:
        firsts: the number of each file's first block, and behind the last file.
        begin, end: which blocks.
    """
    for file in range(int(np.searchsorted(firsts, begin, "right")) - 1, len(firsts) - 1):
        low, high = int(firsts[file]), int(firsts[file + 1])
        if low >= end:
            return
        if max(begin, low) < min(end, high):
            yield BlockRange(file, max(begin, low) - low, min(end, high) - low)
