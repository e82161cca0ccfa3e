"""Whether ranks hold the same: the first bytes of tensors that every rank is taken to hold whole.

Slices of a matrix differ there at once, so that what was cut is never taken for copies because nothing tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import xxhash

from ..formats.headers import opened, read_at
from ..tensors.extents import Extent, SourceFile
from ..tensors.refs import TensorRef

_COMPARED = 4096


def differing(refs: Iterable[TensorRef]) -> Iterator[tuple[str, int, int]]:
    """Yield the tensors whose copies begin with other bytes: name, and the first two ranks that differ.

    Args:
        refs: tensors of which ranks hold copies.

    Raises:
        SourceError: a file cannot be read.
    """
    seen: dict[str, tuple[int, bytes]] = {}
    found: set[str] = set()
    for file, starts in _by_file(refs).items():
        with opened(file.path) as (descriptor, _):
            for name, rank, extent in starts:
                start = read_at(descriptor, extent.offset, min(_COMPARED, extent.length), file)
                digest = xxhash.xxh3_128_digest(start)
                first, expected = seen.setdefault(name, (rank, digest))
                if digest != expected and name not in found:
                    found.add(name)
                    yield name, first, rank


def _by_file(refs: Iterable[TensorRef]) -> dict[SourceFile, list[tuple[str, int, Extent]]]:
    """Return where the copies of tensors begin, file by file, each with its name and rank."""
    found: dict[SourceFile, list[tuple[str, int, Extent]]] = {}
    for ref in refs:
        for rank, extents in ref.slices.copies(0) if ref.slices and ref.nbytes else ():
            found.setdefault(extents[0].file, []).append((ref.name, rank, extents[0]))
    return found
