"""A result lies apart from all that its run reads: what it replaces may be what it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from ..errors import DestinationError
from ..formats.rank_slices import folder_rank
from ..storage import disk
from ..tensors.refs import Catalog
from ..text import quote
from .paths import ResultPaths

_ANOTHER = "choose another destination"


def check_apart(paths: ResultPaths, source: Catalog, others: Sequence[Path] = ()) -> None:
    """Refuse a result that is what the run reads, lies in a directory of it, or holds some of it.

    By inode: a name says nothing about what lies behind links and mounts.

    Args:
        paths: the names of the result.
        source: the source.
        others: further files and directories that are read.

    Raises:
        DestinationError: it is, or does.
        OSError: the system cannot stat a file.
    """
    dest = quote(paths.path)
    inside = _inodes([paths.path, *_above(paths.path)])
    if disk.is_directory(source.path) and inside & _inodes([source.path]):
        raise DestinationError(f"{dest} lies in the source's directory, which is never written to", _ANOTHER)
    for path in filter(disk.is_directory, others):
        if inside & _inodes([path]):
            is_same = _inodes([paths.path]) == _inodes([path])
            where = "is a directory that" if is_same else f"lies in {quote(path)}, which"
            raise DestinationError(f"{dest} {where} the run reads", _ANOTHER)
    held = _inodes([paths.path, paths.partial, *_listed(paths.path), *_in_folders_of_ranks(paths.path)])
    # A source that is gone by now is the reader's to report.
    if found := _first_held(held, [source.path, *(file.path for file in source.files)]):
        raise DestinationError(f"{dest} holds the source {quote(found.name)}", _ANOTHER)
    if found := _first_held(held, [one for other in others for one in (other, *_listed(other))]):
        raise DestinationError(f"{dest} holds {quote(found)}, which the run reads", _ANOTHER)


def _first_held(held: set[tuple[int, int]], read: Iterable[Path]) -> Path | None:
    """Return the first path that is held, or lies in what is held."""

    # Many files lie in few folders.
    @cache
    def is_held(path: Path) -> bool:
        return bool(held & _inodes([path]))

    return next((path for path in read if is_held(path) or any(map(is_held, _above(path)))), None)


def _above(path: Path) -> Iterator[Path]:
    """Yield the folders above a path, as it is written and where its links lead."""
    yield from path.absolute().parents
    yield from Path(disk.resolve(path)).parents


def _inodes(paths: Iterable[Path]) -> set[tuple[int, int]]:
    return {disk.device_and_inode(path) for path in paths if disk.mode(path)}


def _listed(path: Path) -> list[Path]:
    return [path / name for name in disk.listdir(path)] if disk.is_directory(path) else []


def _in_folders_of_ranks(path: Path) -> list[Path]:
    return [inner for one in _listed(path) if folder_rank(one.name) is not None for inner in _listed(one)]
