"""Which files of a training are read, where each rank has a folder: MindFormers 1.x, and 2.x with its legacy format.

    checkpoint/rank_3/PREFIX_rank_3-1_10.ckpt     weights, optimizer and run, of epoch 1, step 10; or .safetensors
    checkpoint_network/rank_3/…                   weights alone; checkpoint_trainable/ the parameters that are trained
    strategy/ckpt_strategy_rank_3.ckpt            how tensors are cut, next to these

What MindSpore's own functions write has the folders, and names without a step: `rank_3/checkpoint_3.ckpt`.
Source: MindFormers 1.3 to 2.1 (`CheckpointMonitor`, `_get_src_strategy`) and MindSpore 2.10.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import SourceError, UsageError
from ..formats.directory import FORMATS, not_the_model
from ..formats.rank_slices import Saved, file_rank, folder_rank, is_strategy, may_be_slices, saved_at
from ..storage import disk
from ..text import first_few, quote, setting

#: Folders of a training's output that hold those of its ranks; what is in the first there is read.
SAVED_IN = ("checkpoint", "checkpoint_network", "checkpoint_trainable")
STRATEGY = "strategy"
_ENDINGS = (".ckpt", ".safetensors")
_SHOWN = 8


class RankFile(NamedTuple):
    """The file of one rank."""

    rank: int
    path: Path


@dataclass(frozen=True)
class RankFolders:
    """The files of the ranks of a training.

    Attributes:
        directory: where the folders of the ranks are, or their files.
        names: rank → when it was saved → the names of such files, from the directory.
        unread: other folders of the same training.
    """

    directory: Path
    names: Mapping[int, Mapping[Saved, Sequence[str]]]
    unread: tuple[str, ...] = ()

    def strategy(self) -> Path | None:
        """Return the folder that tells how tensors are cut: inside, next to them, or the one of the ranks itself."""
        for place in (self.directory / STRATEGY, self.directory.parent / STRATEGY):
            if any(is_strategy(name) or name.endswith(".json") for name in _listed(place)):
                return place
        return self.directory if any(map(is_strategy, _listed(self.directory))) else None


class Chosen(NamedTuple):
    """The files of one step, by rank, and which other steps there are."""

    files: Sequence[RankFile]
    saved: Saved
    others: Sequence[Saved]


def find(path: Path) -> RankFolders | None:
    """Return the files of the ranks in a directory, or in those of its folders where a training saves checkpoints."""
    places = [path, *(path / name for name in SAVED_IN)]
    found = [(place, names) for place in places if (names := _in_folders(place) or _side_by_side(place))]
    if not found or (found[0][0] != path and _has_weights(path)):
        return None
    (first, names), *others = found
    by_step = {rank: steps for rank in sorted(names) if (steps := _by_step(names[rank]))}
    if not by_step:
        return None
    iterations = [name for name in _listed(first) if name.startswith("iteration_")]
    return RankFolders(first, by_step, (*(place.name for place, _ in others), *iterations))


def _has_weights(path: Path) -> bool:
    return any(name.endswith(tuple(FORMATS)) and not not_the_model(name) for name in _listed(path))


def _in_folders(path: Path) -> dict[int, list[str]]:
    """Return the files in the folders of ranks, if there are such folders and no weights next to them."""
    found: dict[int, list[str]] = {}
    for name in _listed(path):
        if (rank := folder_rank(name)) is not None and may_be_slices(names := _listed(path / name)):
            found[rank] = [f"{name}/{file}" for file in names]
    return {} if found and _has_weights(path) else found


def _side_by_side(path: Path) -> dict[int, list[str]]:
    """Return the files of several ranks that someone put into one folder, by the ranks in their names."""
    found: dict[int, list[str]] = {}
    for name in _listed(path):
        if (rank := file_rank(name)) is not None:
            found.setdefault(rank, []).append(name)
    return found if len(found) > 1 else {}


def _listed(path: Path) -> list[str]:
    with suppress(OSError):
        return sorted(disk.listdir(path))
    return []


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
        RankFile(rank, folders.directory / _only(folders, rank, steps[saved]))
        for rank, steps in folders.names.items()
        if saved in steps
    ]
    return Chosen(files, saved, sorted(every - {saved}, key=lambda other: other.order))


def _asked(folders: RankFolders, step: str, every: Iterable[Saved]) -> Saved:
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


def _only(folders: RankFolders, rank: int, names: Sequence[str]) -> str:
    if len(names) > 1:
        raise SourceError(
            f"{quote(folders.directory)} holds {len(names)} files of rank {rank} of one step: "
            f"{first_few(names, 3, quote)}; it is ambiguous which is meant",
            "move all but one of them to another directory, for every rank",
        )
    return names[0]
