"""`streamconv.open`: the tensors of any supported checkpoint, read only where they are sliced."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .engine.kernels import numpy_dtype
from .engine.reader import Reader, bits
from .errors import UnsupportedError
from .formats.catalog import open_catalog
from .storage import access
from .tensors import views
from .tensors.arrays import Bits
from .tensors.grids import box_shape
from .tensors.refs import Catalog, TensorRef
from .tensors.views import View
from .text import quote

Index = int | slice


@dataclass(frozen=True)
class LazyTensor:
    """A tensor on disk. `tensor[2:5, :, 7]` reads what is asked and nothing else; steps are left to NumPy."""

    ref: TensorRef
    io: str = "auto"

    @property
    def name(self) -> str:
        """Its name."""
        return self.ref.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.ref.shape

    @property
    def dtype(self) -> str:
        """Its dtype as safetensors spells it, such as `BF16`."""
        return self.ref.dtype.name

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.ref.nbytes

    def numpy(self) -> NDArray[np.generic]:
        """All of it; bfloat16 and float8 come as ml_dtypes' types."""
        return self[()]

    def __getitem__(self, index: Index | tuple[Index, ...]) -> NDArray[np.generic]:
        """The part asked, as an array of its own.

        Raises:
            IndexError: more indices than axes, one out of range, a step, or anything but whole numbers and slices.
            UnsupportedError: NumPy has no dtype for it.
            SourceError: the file is not as it was.
        """
        if self.ref.dtype.numpy is None:
            raise UnsupportedError(f"{quote(self.name)} has dtype {self.dtype}, which NumPy does not know")
        indices = index if isinstance(index, tuple) else (index,)
        if len(indices) > len(self.shape):
            raise IndexError(f"{len(indices)} indices for a tensor of {len(self.shape)} axes")
        ranges = [
            range(size)[slice(None) if axis >= len(indices) else _as_slice(indices[axis], size)]
            for axis, size in enumerate(self.shape)
        ]
        if any(r.step != 1 for r in ranges):
            raise IndexError("only steps of 1 are read lazily: slice the array that comes back")
        array = self._read(tuple((r.start, max(r.start, r.stop)) for r in ranges))
        dropped = tuple(axis for axis, i in enumerate(indices) if not isinstance(i, slice))
        return array.squeeze(dropped).view(numpy_dtype(self.ref.dtype))

    def _read(self, box: tuple[tuple[int, int], ...]) -> Bits:
        target = np.empty(box_shape(box), bits(self.ref.dtype))
        view: View = views.leaf(self.ref)
        files = [extent.file for extent in self.ref.extents]
        reader = Reader(max(1, target.nbytes), access.for_reading(self.io, files, reads_once=False).access)
        try:
            reader.fill(view, box, target.reshape(-1), self.ref.dtype)
        finally:
            reader.close()
        return target


class Checkpoint(Mapping[str, LazyTensor]):
    """The tensors of a checkpoint by name."""

    def __init__(self, catalog: Catalog, io: str = "auto") -> None:
        self.catalog = catalog
        self._io = io

    def __getitem__(self, name: str) -> LazyTensor:
        return LazyTensor(self.catalog[name], self._io)

    def __iter__(self) -> Iterator[str]:
        return iter(self.catalog)

    def __len__(self) -> int:
        return len(self.catalog)


def open(path: str | os.PathLike[str], *, io: str = "auto") -> Checkpoint:  # noqa: A001 - as in gzip.open
    """Open a checkpoint: a directory or a file, of either side, in any supported format. Only headers are read.

    Raises:
        SourceError: it is broken or unreadable.
        UnsupportedError: it is of a format or holds a dtype that is not supported.
    """
    return Checkpoint(open_catalog(Path(path)), io)


def _as_slice(index: Index, size: int) -> slice:
    if isinstance(index, slice):
        return index
    if isinstance(index, bool) or not hasattr(index, "__index__"):
        raise IndexError(f"only whole numbers and slices are read lazily, not {index!r}: index the array you get")
    index = operator.index(index)
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of range for an axis of {size}")
    return slice(index % size, index % size + 1)
