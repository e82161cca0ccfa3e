"""One tensor out of slices, whoever says where they lie."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import chain

from ..tensors.dtypes import DType
from ..tensors.extents import SourceFile
from ..tensors.refs import TensorRef
from ..tensors.slices import COLUMNS, Slices

#: Rank, number of the file, offset and length of an extent.
Row = tuple[int, int, int, int]

#: Slice number → the extents of each copy of it.
Copies = Mapping[int, Sequence[Sequence[Row]]]


def joined(
    name: str,
    dtype: DType,
    shape: tuple[int, ...],
    divisions: tuple[int, ...],
    copies: Copies,
    files: Sequence[SourceFile],
) -> TensorRef:
    """Return the whole tensor.

    Args:
        name, dtype: the tensor's.
        shape: of a slice.
        divisions: per axis, into how many slices the tensor is cut.
        copies: at least one for every slice.
        files: those that rows name by their numbers.
    """
    table, starts = array("q"), array("q", [0])
    for number in range(len(copies)):
        table.extend(chain.from_iterable(chain.from_iterable(copies[number])))
        starts.append(len(table) // COLUMNS)
    slices = Slices(divisions, shape, files, table, starts)
    whole = tuple(size * count for size, count in zip(shape, divisions, strict=True))
    if len(copies) == 1 and len(copies[0]) == 1:
        return TensorRef(name, dtype, whole, slices.extents(0))
    return TensorRef(name, dtype, whole, (), None, slices)
