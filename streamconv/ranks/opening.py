"""From a path to the catalog of what it holds: one file, a directory, or all ranks of a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UsageError, reading
from ..formats import catalog
from ..formats.header_room import HeaderRoom
from ..storage import disk
from ..tensors.refs import Catalog
from ..text import quote, setting
from . import iterations, rank_folders
from .iterations import Iteration
from .rank_folders import RankFolders


def open_checkpoint(
    path: Path,
    header_room: Callable[[], HeaderRoom] = HeaderRoom,
    strategy: Sequence[Path] = (),
    step: str | None = None,
) -> Catalog:
    """Return the tensors of a checkpoint; of one that ranks hold in slices, the whole tensors.

    Args:
        path: a file, a directory, or what a training left: the directory of its ranks or iterations, or its parent.
        header_room: gives the room for the next header, and is called before each.
        strategy: files or directories that tell how tensors are cut; by default those next to the ranks' folders.
        step: which step or iteration of a training; by default the newest complete one.

    Raises:
        SourceError: as `open_catalog`; slices are missing, or do not fit each other or what tells how they are cut.
        BudgetError, UnsupportedError: as `open_catalog`.
        UsageError: `strategy` or `step` has no effect, or the step is not there.
    """
    with reading(path, "cannot open"):
        folders, iteration = _found(path, step)
    if folders is not None:
        from . import from_folders

        _refuse_two_steps(path, folders, step)
        return from_folders.read(path, folders, header_room, strategy, step)
    if iteration is not None:
        from . import from_iteration

        _refuse(path, "strategy", strategy)
        return from_iteration.read(path, iteration, header_room)
    _refuse(path, "strategy", strategy)
    _refuse(path, "step", step)
    return catalog.open_catalog(path, header_room)


def _found(path: Path, step: str | None) -> tuple[RankFolders | None, Iteration | None]:
    if not disk.is_directory(path):
        return None, None
    catalog.refuse_unfinished(path)
    folders = rank_folders.find(path)
    return folders, iterations.find(path, step) if folders is None else None


def _refuse_two_steps(path: Path, folders: RankFolders, step: str | None) -> None:
    """Refuse a step that may be one of ranks' folders, and an iteration next to them."""
    names = [name for name in folders.unread if step is not None and iterations.number_of(name) == step]
    if names:
        raise UsageError(
            f"{setting('step', step)} may be {quote(names[0])}, or a step in the folders of ranks next to it",
            f"give {quote(folders.directory / names[0])}, or the step as EPOCH_STEP",
        )


def open_each(
    paths: Sequence[Path], header_room: Callable[[], HeaderRoom], strategy: Sequence[Path], step: str | None
) -> list[Catalog]:
    """Return the tensors of several checkpoints; `strategy` and `step` are for those that ranks left.

    Args:
        paths: the checkpoints.
        header_room, strategy, step: as for `open_checkpoint`.

    Raises:
        StreamconvError: as `open_checkpoint`; also if ranks left none of them.
    """
    left = [_is_left_by_ranks(path, step) for path in paths]
    if not any(left):
        _refuse(paths[0], "strategy", strategy)
        _refuse(paths[0], "step", step)
    return [
        open_checkpoint(path, header_room, *((strategy, step) if by_ranks else ()))
        for path, by_ranks in zip(paths, left, strict=True)
    ]


def _is_left_by_ranks(path: Path, step: str | None) -> bool:
    with reading(path, "cannot open"):
        return any(_found(path, step))


def _refuse(path: Path, name: str, value: object) -> None:
    if value:
        raise UsageError(
            f"{setting(name)} has no effect on {quote(path)}: it does not hold the folders of several ranks",
            f"omit {setting(name)}, or give the directory that holds the folders of all ranks",
        )
