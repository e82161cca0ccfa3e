"""The strategy of a whole training: the files of all its stages, put together.

MindFormers 1.3 to 2.1 saves a file for each rank, `strategy/ckpt_strategy_rank_N.ckpt`; those of one stage state the
same, with devices numbered from 0. Its tools leave a merged file in the same folder, with the parameters of all stages.
Every stage has the same number of ranks; stage 1 begins where the ranks of stage 0 end. A shared embedding is in both
stages that have it. Source: MindFormers' `transform_ckpt.py`, MindSpore 2.10's `merge_pipeline_strategys`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from ..errors import SourceError, UsageError, reading
from ..formats.header_room import HeaderRoom
from ..formats.headers import opened, read_head
from ..formats.rank_slices import STRATEGY_BEGINS, is_strategy
from ..formats.shards import listing
from ..storage import disk
from ..text import counted, quote
from .device_layouts import DeviceLayout
from .layout_checks import check_ranks
from .strategy_format import StrategyFile, decode, load

_SNIFFED = 4096
_KEYS = (b'"parallel_layout_item"', b'"parallel_strategy_item"')
_ONE_TRAINING = "give the strategy files of one training alone"


class Stage(Struct, frozen=True):
    """A pipeline stage.

    Attributes:
        layouts: parameter → how it is cut for the ranks of this stage.
        ranks: how many there are.
        first_rank: the first one's number in the training.
    """

    layouts: Mapping[str, DeviceLayout]
    ranks: int
    first_rank: int


class Strategy(Struct, frozen=True):
    """How a training cuts its tensors.

    Attributes:
        stages: all of them, in order.
        files: what states it; merged files that state nothing more than others are left out.
    """

    stages: tuple[Stage, ...]
    files: tuple[Path, ...]

    @property
    def world_size(self) -> int:
        """How many ranks the training has."""
        return sum(stage.ranks for stage in self.stages)


class _Content(NamedTuple):
    """What one file states, or several with the same bytes."""

    paths: list[Path]
    states: StrategyFile


class _Stated(NamedTuple):
    """A stage's layouts, and the file that states them."""

    path: Path
    layouts: Mapping[str, DeviceLayout]


def read(paths: Sequence[Path], header_room: Callable[[], HeaderRoom] = HeaderRoom) -> Strategy:
    """Return what strategy files state together.

    Args:
        paths: files, or directories of them.
        header_room: gives the room for the next file, and is called before each.

    Raises:
        UsageError: no path is given.
        SourceError: a directory without a strategy file, files that contradict each other, a missing stage, or as
            `strategy_format.decode`.
        UnsupportedError, BudgetError: as `strategy_format.decode`.
    """
    if not paths:
        raise UsageError("no strategy file is given", "give the strategy files of the training, or their directory")
    files = dict.fromkeys(file for path in paths for file in _files(path))
    contents = _contents(files, header_room)
    plain = [content for content in contents if not content.states.is_merged]
    stages, used = _of_ranks(plain), list(plain)
    for content in contents:
        if content.states.is_merged and _add_merged(content, stages):
            used.append(content)
    return Strategy(_in_order(stages), tuple(path for content in used for path in content.paths))


def _files(path: Path) -> Iterable[Path]:
    if not disk.is_directory(path):
        return [path]
    with reading(path):
        names = sorted(disk.listdir(path))
    found = [path / name for name in names if is_strategy(name)]
    found = found or [path / name for name in names if name.endswith((".ckpt", ".json")) and _is_strategy(path / name)]
    if not found:
        raise SourceError(
            f"{quote(path)} holds no strategy file of MindSpore",
            "give the directory that the training saved its strategy in; MindFormers calls it strategy, next to "
            "checkpoint",
        )
    return found


def _is_strategy(path: Path) -> bool:
    """Return whether a file of any name begins like a strategy."""
    with suppress(SourceError), opened(path) as (descriptor, file):
        head = read_head(descriptor, file, _SNIFFED)
        return any(key in head for key in _KEYS) if path.suffix == ".json" else head.startswith(STRATEGY_BEGINS)
    return False


def _contents(files: Iterable[Path], header_room: Callable[[], HeaderRoom]) -> list[_Content]:
    """Return what the files state; the ranks of a stage save the same bytes, which are decoded once."""
    found: dict[bytes, _Content] = {}
    for path in files:
        room = header_room()
        data = load(path, room)
        digest = hashlib.sha256(data).digest()
        if digest not in found:
            found[digest] = _Content([], decode(data, path, room))
        found[digest].paths.append(path)
    return list(found.values())


def _of_ranks(contents: Sequence[_Content]) -> dict[int, _Stated]:
    """Return the stages that files of ranks state."""
    found: dict[int, _Stated] = {}
    for content in contents:
        path, stage = content.paths[0], content.states.stage
        if stage is None and len(contents) > 1:
            raise SourceError(
                f"{quote(path)} does not say its pipeline stage, and there are other files",
                "merge the strategy files with mindspore.merge_pipeline_strategys, and give the result",
            )
        known = found.setdefault(stage or 0, _Stated(path, content.states.layouts))
        if problem := _difference(known, _Stated(path, content.states.layouts)):
            raise SourceError(
                f"{quote(known.path)} and {quote(path)} are of the same stage, {stage}, and {problem}", _ONE_TRAINING
            )
    return found


def _add_merged(content: _Content, stages: dict[int, _Stated]) -> bool:
    """Add the stages that only a merged file states; return whether there are any."""
    path, before = content.paths[0], len(stages)
    for stage, layouts in content.states.stages.items():
        known = stages.setdefault(stage or 0, _Stated(path, layouts))
        # What the files of ranks have besides does no harm: they are the ones that are used.
        shared = {name: layout for name, layout in known.layouts.items() if name in layouts}
        if problem := _difference(_Stated(known.path, shared), _Stated(path, layouts)):
            raise SourceError(
                f"the merged {quote(path)} contradicts {quote(known.path)}: in stage {stage} they {problem}",
                f"remove {quote(path.name)} if it is of an earlier training, or give one of the two alone",
            )
    return len(stages) > before


def _difference(one: _Stated, other: _Stated) -> str:
    """Return how two accounts of a stage differ, naming the first parameter; empty if they do not."""
    if one.layouts == other.layouts:
        return ""
    for name, layout in one.layouts.items():
        if name not in other.layouts:
            return f"differ: only {quote(one.path.name)} has {quote(name)}"
        if layout != other.layouts[name]:
            return f"cut {quote(name)} differently"
    name = next(name for name in other.layouts if name not in one.layouts)
    return f"differ: only {quote(other.path.name)} has {quote(name)}"


def _in_order(stages: Mapping[int, _Stated]) -> tuple[Stage, ...]:
    """Return the stages from 0; none may be missing, and all have as many ranks."""
    found: list[Stage] = []
    for number in range(len(stages)):
        if number not in stages:
            raise _missing(number, stages)
        path, layouts = stages[number]
        ranks = check_ranks(layouts, quote(path))
        if found and found[0].ranks != ranks:
            raise SourceError(
                f"stage 0 has {counted(found[0].ranks, 'rank')} by {quote(stages[0].path)}, "
                f"and stage {number} has {ranks} by {quote(path)}",
                _ONE_TRAINING,
            )
        found.append(Stage(layouts, ranks, number * ranks))
    return tuple(found)


def _missing(number: int, stages: Mapping[int, _Stated]) -> SourceError:
    there = listing([f"{stage} ({stages[stage].path.name})" for stage in sorted(stages)])
    return SourceError(
        f"the strategy of pipeline stage {number} is missing; there are those of stages {there}",
        "give the strategy files of all stages: those of all ranks, or a merged one",
    )
