"""`streamconv.open`: the tensors of any supported checkpoint, read only where they are sliced."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import inspection
from .arguments import Paths, as_path, as_paths, check
from .engine.floats import numpy_dtype
from .engine.reader import Reader
from .engine.windows import bits
from .errors import UnsupportedError, UsageError
from .formats.header_room import HeaderRoom
from .formats.safetensors import read_metadata
from .paths import PathLike
from .ranks.complaints import IncompleteError
from .ranks.opening import open_checkpoint
from .storage import access
from .storage.access import Access
from .tensors import views
from .tensors.indexing import Index, as_range, expanded
from .tensors.refs import Catalog, TensorRef
from .text import counted, format_size, in_python, quote

#: Bytes of the source that are in memory at a time, beside the array that is returned.
_WINDOW = 16 << 20


class LazyTensor:
    """A tensor on disk. Indexing reads what is asked and nothing else: `tensor[2:5, ..., ::2]`.

    NumPy functions take it as an array, and read all of it: `np.asarray(tensor)`.

    Attributes:
        name: its name in the checkpoint.
    """

    def __init__(self, ref: TensorRef, readers: _Readers) -> None:
        self.name = ref.name
        self._ref = ref
        self._readers = readers

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self._ref.shape

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self._ref.shape)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return self._ref.nbytes // self._ref.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self._ref.nbytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its NumPy dtype; bfloat16 and float8 are those of ml_dtypes.

        Raises:
            UnsupportedError: NumPy has no such dtype; `dtype_name` tells it all the same.
        """
        if self._ref.dtype.numpy is None:
            raise UnsupportedError(f"{quote(self.name)} has dtype {self.dtype_name}, which NumPy does not have")
        return numpy_dtype(self._ref.dtype)

    @property
    def dtype_name(self) -> str:
        """Its dtype as safetensors spells it, such as `BF16`."""
        return self._ref.dtype.name

    def numpy(self) -> NDArray[Any]:
        """Return all of it as an array of its own."""
        return self[...]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a tensor on disk cannot become an array without being copied")
        array = self[...]
        return array if dtype is None else array.astype(dtype, copy=False)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor without axes has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"<LazyTensor {quote(self.name)} {self.dtype_name} {list(self.shape)}>"

    def __getitem__(self, index: Index | tuple[Index, ...]) -> NDArray[Any]:
        """Read part of the tensor into an array of its own.

        Args:
            index: whole numbers, slices with any step, and `...`, as NumPy takes them.

        Raises:
            IndexError: more indices than axes, one out of range, or one of another kind.
            UnsupportedError: NumPy does not have the dtype.
            SourceError: the file has changed, or cannot be read.
            UsageError: the checkpoint is closed.
        """
        dtype = self.dtype
        indices = expanded(index, self.ndim)
        ranges = [as_range(one, size) for one, size in zip(indices, self.shape, strict=True)]
        array = self._read([r if r.step > 0 else r[::-1] for r in ranges])
        backwards = tuple(axis for axis, r in enumerate(ranges) if r.step < 0)
        dropped = tuple(axis for axis, one in enumerate(indices) if not isinstance(one, slice))
        if backwards:
            array = np.flip(array, backwards)
        return array.view(dtype).squeeze(dropped)

    def _read(self, ranges: list[range]) -> NDArray[Any]:
        view = views.leaf(self._ref)
        for axis, r in enumerate(ranges):
            if r != range(self.shape[axis]):
                view = views.cut(view, axis, r[0], r[-1] + 1, r.step) if r else views.cut(view, axis, 0, 0)
        target = np.empty(view.shape, bits(self._ref.dtype))
        with self._readers.borrowed() as reader:
            reader.fill(view, tuple((0, size) for size in view.shape), target.reshape(-1), self._ref.dtype)
        return target


class _Readers:
    """Readers that keep their files open from one slice to the next, one for each thread that reads at a time."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._idle: list[Reader] = []
        self._is_closed = False
        weakref.finalize(self, _close_all, self._idle)

    @contextmanager
    def borrowed(self) -> Iterator[Reader]:
        """Lend a reader to a `with` block.

        Raises:
            UsageError: the checkpoint is closed.
        """
        if self._is_closed:
            raise UsageError("the checkpoint is closed", "read its tensors before it is closed")
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = Reader(_WINDOW, self._access)
        try:
            yield reader
        finally:
            self._idle.append(reader)
            if self._is_closed:
                _close_all(self._idle)

    def close(self) -> None:
        """Close all files, those of readers that are lent when they come back."""
        self._is_closed = True
        _close_all(self._idle)


def _close_all(readers: list[Reader]) -> None:
    while readers:
        readers.pop().close()


class Checkpoint(Mapping[str, LazyTensor]):
    """The tensors of a checkpoint by name, in file order. Files stay open until it is closed or collected.

    Attributes:
        path: the file or directory that was opened.
        format: `safetensors`, `ckpt` or `torch`.
    """

    def __init__(self, catalog: Catalog, io: str = "auto") -> None:
        self.path: Path = catalog.path
        self.format: str = catalog.format
        self._catalog = catalog
        self._io = io

    @cached_property
    def _readers(self) -> _Readers:
        # How files are accessed depends on their file system: asked once, not for every slice.
        return _Readers(access.for_reading(self._io, self._catalog.files, reads_once=False).access)

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """The texts that its first file holds next to the tensors, such as `{"format": "pt"}`; only safetensors do."""
        if self.format != "safetensors":
            return {}
        return read_metadata(self._catalog.files[0].path, HeaderRoom())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self._catalog.nbytes

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, in reading order."""
        return tuple(file.path for file in self._catalog.files)

    def __getitem__(self, name: str) -> LazyTensor:
        return LazyTensor(self._catalog[name], self._readers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._catalog)

    def __len__(self) -> int:
        return len(self._catalog)

    def __repr__(self) -> str:
        return (
            f"<Checkpoint {quote(self.path)} {self.format}: {counted(len(self), 'tensor')} in "
            f"{counted(len(self.files), 'file')}, {format_size(self.nbytes)}>"
        )

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield a line for each tensor (name, dtype, shape, bytes, file), and what they come to."""
        return map(in_python, self.marked_lines())

    def marked_lines(self) -> Iterator[str]:
        """Yield these lines with settings in them marked (`text.setting`)."""
        return inspection.lines(self._catalog)

    def to_json(self) -> dict[str, object]:
        """Return what the checkpoint holds as plain values; every extent is [file, offset, length]."""
        return inspection.values(self._catalog)

    def close(self) -> None:
        """Close the files; tensors of the checkpoint cannot be read any more."""
        self._readers.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def inspected(path: PathLike, strategy: Paths | None = None, step: str | int | None = None) -> Checkpoint:
    """Open a checkpoint to look at it: of ranks whose slices are missing, too, what is there and what is not.

    Args:
        path, strategy, step: as for `open`.

    Raises:
        StreamconvError: as `open`.
    """
    try:
        return Checkpoint(_catalog(path, strategy, step))
    except IncompleteError as error:
        return Checkpoint(error.catalog)


def _catalog(path: PathLike, strategy: Paths | None, step: str | int | None) -> Catalog:
    strategies, chosen = as_paths(strategy, "strategy"), None if step is None else str(step)
    return open_checkpoint(as_path(path, "path"), HeaderRoom, strategies, chosen)


def open(  # noqa: A001 - as in gzip.open
    path: PathLike, *, io: str = "auto", strategy: Paths | None = None, step: str | int | None = None
) -> Checkpoint:
    """Open a checkpoint and read its headers; tensor bytes are read when a tensor is indexed.

    Args:
        path: a directory or a file, HuggingFace's or MindSpore's, in any supported format.
        io: `read` through the page cache, or `direct`, past it; or `auto`, by file system.
        strategy: strategy files, or directories of them, that tell how the ranks of a training hold its tensors; by
            default those next to the ranks' folders.
        step: which step of a training, such as `"1_10"` or 1000; by default the newest complete one.

    Raises:
        SourceError: the checkpoint is broken or unreadable.
        UnsupportedError: its format, or a dtype in it, is not supported.
        UsageError: `io` is no such word.
    """
    check(io=io)
    return Checkpoint(_catalog(path, strategy, step), io)
