"""Which files of a training are read, where each rank has a folder: MindFormers 1.x, and 2.x with its legacy format.

    checkpoint/rank_3/PREFIX_rank_3-1_10.ckpt     weights, optimizer and run, of epoch 1, step 10; or .safetensors
    checkpoint_network/rank_3/…                   weights alone; checkpoint_trainable/ the parameters that are trained
    strategy/ckpt_strategy_rank_3.ckpt            how tensors are cut, next to these

What MindSpore's own functions write has the folders, and names without a step: `rank_3/checkpoint_3.ckpt`.
Source: MindFormers 1.3 to 2.1 (`CheckpointMonitor`, `_get_src_strategy`) and MindSpore 2.10.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from ..errors import SourceError, UsageError, reading
from ..formats.directory import FORMATS, not_the_model
from ..formats.rank_slices import Saved, file_rank, folder_rank, is_strategy, is_whole, may_be_slices, saved_at
from ..storage import disk
from ..storage.whole_files import names_in
from ..text import counted, first_few, quote, setting

#: Folders of a training's output that hold those of its ranks; what is in the first there is read.
SAVED_IN = ("checkpoint", "checkpoint_network", "checkpoint_trainable")
STRATEGY = "strategy"
_ENDINGS = (".ckpt", ".safetensors")
_SHOWN = 8


class RankFile(NamedTuple):
    """The file of one rank."""

    rank: int
    path: Path


class RankFolders(Struct, frozen=True):
    """The files of the ranks of a training.

    Attributes:
        directory: where the folders of the ranks are, or their files.
        names: rank → when it was saved → the names of such files, from the directory.
        unread: other folders of the same training.
        empty: ranks whose folders hold no weights.
    """

    directory: Path
    names: Mapping[int, Mapping[Saved, Sequence[str]]]
    unread: tuple[str, ...] = ()
    empty: tuple[int, ...] = ()

    def strategy(self) -> Path | None:
        """Return the folder that tells how tensors are cut: inside, next to them, or the one of the ranks itself."""
        # The parent of `.` is elsewhere, and so may be that of a link.
        above = (self.directory.parent, Path(disk.resolve(self.directory)).parent)
        for place in (self.directory / STRATEGY, *(parent / STRATEGY for parent in above)):
            if any(is_strategy(name) or name.endswith(".json") for name in names_in(place)):
                return place
        return self.directory if any(map(is_strategy, names_in(self.directory))) else None


class Chosen(NamedTuple):
    """The files of one step, by rank, and which other steps there are."""

    files: Sequence[RankFile]
    saved: Saved
    others: Sequence[Saved]


def find(path: Path) -> RankFolders | None:
    """Return the files of the ranks in a directory, or in those of its folders where a training saves checkpoints."""
    inside = names_in(path)
    places = {path: inside, **{path / name: names_in(path / name) for name in SAVED_IN if name in inside}}
    found = [(place, held) for place, names in places.items() if (held := _of_ranks(place, names))]
    if not found:
        return None
    (first, names), *others = found
    by_step = {rank: steps for rank in sorted(names) if (steps := _by_step(names[rank]))}
    if not by_step:
        return None
    if any(is_whole(name) for place in (first, path) for name in _weights(place)):
        return None
    _refuse_ambiguous(path, first, by_step)
    folders = [name for name in names_in(first) if name.startswith("rank_") and disk.is_directory(first / name)]
    strange = [name for name in folders if folder_rank(name) is None]
    iterations = [name for name in names_in(first) if name.startswith("iteration_")]
    empty = sorted({rank for name in folders if (rank := folder_rank(name)) is not None} - {*by_step})
    return RankFolders(first, by_step, (*(place.name for place, _ in others), *iterations, *strange), tuple(empty))


def _refuse_ambiguous(path: Path, first: Path, ranks: Collection[int]) -> None:
    """Refuse whole weights next to those of ranks.

    Raises:
        SourceError: nothing tells which are meant.
    """
    of_ranks = {name for name in names_in(first) if file_rank(name) is not None}
    for place in dict.fromkeys((first, path)):
        if whole := [name for name in _weights(place) if name not in of_ranks]:
            raise SourceError(
                f"{quote(place)} holds {first_few(whole, 3, quote)}, and {quote(first)} the files of "
                f"{counted(len(ranks), 'rank')}: it is ambiguous which are meant",
                "give the file, or move it to another directory",
            )


def _weights(path: Path) -> list[str]:
    return [name for name in names_in(path) if name.endswith(tuple(FORMATS)) and not not_the_model(name)]


def _of_ranks(path: Path, names: Sequence[str]) -> dict[int, list[str]]:
    """Return the files of ranks, in their folders or side by side.

    Raises:
        SourceError: a folder cannot be listed.
    """
    return _in_folders(path, names) or _side_by_side(names)


def _in_folders(path: Path, names: Iterable[str]) -> dict[int, list[str]]:
    """Return the files in the folders of ranks.

    Raises:
        SourceError: one of them cannot be listed.
    """
    folders = {name: rank for name in names if (rank := folder_rank(name)) is not None}
    found: dict[int, list[str]] = {}
    refused: SourceError | None = None
    for name, rank in folders.items():
        try:
            with reading(path / name, "cannot list"), suppress(NotADirectoryError):
                if may_be_slices(files := disk.listdir(path / name)):
                    found[rank] = [f"{name}/{file}" for file in files]
        except SourceError as error:
            refused = refused or error
    # A disk that is not mounted must not pass for a rank that saved nothing.
    if found and refused:
        raise refused
    return found


def _side_by_side(names: Iterable[str]) -> dict[int, list[str]]:
    """Return the files of several ranks that someone put into one folder, by the ranks in their names."""
    found: dict[int, list[str]] = {}
    for name in names:
        if (rank := file_rank(name)) is not None:
            found.setdefault(rank, []).append(name)
    return found if len(found) > 1 else {}


def _by_step(names: Iterable[str]) -> dict[Saved, list[str]]:
    found: dict[Saved, list[str]] = {}
    for name in names:
        plain = name.rpartition("/")[2]
        if plain.endswith(_ENDINGS) and not plain.startswith(".") and not is_strategy(plain):
            found.setdefault(saved_at(plain), []).append(name)
    return found


def choose(folders: RankFolders, step: str | None) -> Chosen:
    """Return the files of the newest step that all ranks have, or of the one that was asked for.

    Raises:
        UsageError: no such step is there.
        SourceError: no step is in all ranks, or a rank has several files of it.
    """
    every = {saved for steps in folders.names.values() for saved in steps}
    complete = {saved for saved in every if all(saved in steps for steps in folders.names.values())}
    newest = max(complete, key=lambda saved: saved.order, default=None)
    saved = newest if step is None else _asked(folders, step, every)
    if saved is None:
        raise SourceError(
            f"{quote(folders.directory)}: no step was saved by all ranks: {_newest(folders)}",
            f"choose one with {setting('step', 'EPOCH_STEP')}: the ranks that have it may hold every slice of it",
        )
    files = [
        RankFile(rank, folders.directory / _own(folders, rank, steps[saved]))
        for rank, steps in folders.names.items()
        if saved in steps
    ]
    return Chosen(files, saved, sorted(every - {saved}, key=lambda other: other.order))


def _asked(folders: RankFolders, step: str, every: Iterable[Saved]) -> Saved:
    if not step:
        raise UsageError(f"{setting('step')} is empty", f"name one, or omit {setting('step')}")
    found = [saved for saved in every if step == str(saved)]
    found = found or [saved for saved in every if step in (f"{saved.epoch}_{saved.step}", str(saved.step))]
    if not found:
        there = first_few([*map(str, sorted(every, key=lambda saved: saved.order))], _SHOWN)
        raise UsageError(f"{quote(folders.directory)} holds no step {quote(step)}; there are: {there}")
    if len({(saved.epoch, saved.step) for saved in found}) > 1:
        raise UsageError(
            f"{setting('step', step)} may be {first_few(sorted(map(str, found)))}",
            f"name the epoch too, such as {setting('step', f'{found[0].epoch}_{found[0].step}')}",
        )
    return max(found, key=lambda saved: saved.order)


def _newest(folders: RankFolders) -> str:
    newest = {rank: max(steps, key=lambda saved: saved.order) for rank, steps in folders.names.items()}
    return first_few([f"rank {rank} has {saved}" for rank, saved in newest.items()], 4)


def _own(folders: RankFolders, rank: int, names: Sequence[str]) -> str:
    """Return the only file of a rank, whose name is of no other rank."""
    if len(names) > 1:
        raise SourceError(
            f"{quote(folders.directory)} holds {len(names)} files of rank {rank} of one step: "
            f"{first_few(names, 3, quote)}; it is ambiguous which is meant",
            "move all but one of them to another directory, for every rank",
        )
    if file_rank(Path(names[0]).name) not in (None, rank):
        raise SourceError(
            f"{quote(folders.directory / names[0])} is named like the file of rank {file_rank(Path(names[0]).name)}, "
            f"and is in the folder of rank {rank}: it is ambiguous whose slices it holds",
            "put every rank's file into its own folder",
        )
    return names[0]
