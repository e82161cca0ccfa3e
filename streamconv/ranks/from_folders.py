"""The catalog of the folders of ranks: choose the step → read the strategy → read the headers → put slices together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ..errors import SourceError, StreamconvError, UnsupportedError
from ..formats import catalog
from ..formats.header_room import HeaderRoom
from ..rules.training_state import is_training_state
from ..tensors.refs import Catalog
from ..text import counted, first_few, quote, setting
from . import complaints, first_bytes, holdings, rank_folders, strategies
from .assembly import Assembly, assemble
from .complaints import IncompleteError
from .holdings import Holdings
from .rank_folders import Chosen, RankFolders
from .strategies import Strategy

_SHOWN = 5


def read(
    path: Path,
    folders: RankFolders,
    header_room: Callable[[], HeaderRoom],
    given: Sequence[Path],
    step: str | None,
) -> Catalog:
    """Return the whole tensors that ranks hold in their folders.

    Args:
        path: what was opened.
        folders: the folders.
        header_room: gives the room for the next header.
        given: files or directories that tell how tensors are cut; by default those next to the folders.
        step: which step of the training; by default the newest that all ranks have.

    Raises:
        SourceError: slices are missing, or do not fit each other or the strategy; a file is broken.
        UnsupportedError: nothing tells how slices are cut.
        UsageError: a step that is not there.
        BudgetError: a header is longer than `header_room` allows.
    """
    beside = folders.strategy()
    paths = [*given] or ([beside] if beside else [])
    strategy = strategies.read(paths, header_room) if paths else None
    chosen = rank_folders.choose(folders, step)
    if strategy is None and len(folders.names) == 1:
        only = catalog.open_catalog(chosen.files[0].path, header_room)
        warnings = (*only.warnings, *_of_missing(folders, {file.rank for file in chosen.files}))
        return replace(only, path=path, warnings=warnings, of_ranks=True)
    if strategy is not None:
        _check_world(folders, strategy)
    held = _read(chosen, path, strategy, header_room)
    _check_names(folders, strategy, held)
    found = assemble(held, strategy)
    complaints.refuse(quote(folders.directory), found.findings, "the strategy")
    _check_ranks(folders, chosen, strategy, found)
    unread = [*found.of_cut, *_check_copies(folders, strategy, found)]
    whole = Catalog(
        path=path,
        format=held.format,
        tensors=found.tensors,
        files=tuple(held.files),
        ignored=held.ignored,
        twice=tuple(found.twice),
        warnings=tuple(_warnings(folders, chosen, strategy, found, held.warnings)),
        notes=(*_notes(path, folders, chosen, strategy, found), *_notes_of_unlisted(strategy, found, unread)),
        lost=tuple(f"{quote(name)} ({complaints.ranks(ranks)})" for name, ranks in found.lost.items()),
        of_ranks=True,
        strategies=tuple(paths),
    )
    if whole.lost and strategy:
        raise _incomplete(folders, chosen, strategy, whole)
    return whole


def _stage_of(strategy: Strategy | None) -> Callable[[int], int]:
    ends = [stage.first_rank + stage.ranks for stage in strategy.stages] if strategy else []
    return lambda rank: next((number for number, end in enumerate(ends) if rank < end), 0)


def _read(chosen: Chosen, path: Path, strategy: Strategy | None, header_room: Callable[[], HeaderRoom]) -> Holdings:
    try:
        return holdings.read(chosen.files, path, _stage_of(strategy), header_room)
    except SourceError as error:
        if not chosen.others:
            raise
        message, hint = error.marked
        another = f"choose another step with {setting('step', 'EPOCH_STEP')}"
        raise type(error)(message, f"{hint}, or {another}" if hint else another) from error


def _check_names(folders: RankFolders, strategy: Strategy | None, held: Holdings) -> None:
    """Refuse the strategy of another model."""
    if strategy is not None and not any(name in stage.layouts for stage in strategy.stages for name in held.tensors):
        theirs = first_few([name for stage in strategy.stages for name in stage.layouts], 2, quote)
        raise SourceError(
            f"{quote(folders.directory)}: the strategy in {quote(strategy.files[0].parent)} names none of the tensors "
            f"that the ranks hold: it has {theirs}, they have {first_few([*held.tensors], 2, quote)}",
            f"give the strategy of this training with {setting('strategy', 'PATH')}",
        )


def _check_ranks(folders: RankFolders, chosen: Chosen, strategy: Strategy | None, found: Assembly) -> None:
    """Refuse ranks of which some are missing if every rank holds other tensors, and nothing tells which."""
    here = {file.rank for file in chosen.files}
    missing = _missing(folders, here)
    if strategy is None and missing and _is_divided(found, len(here)):
        raise SourceError(
            f"{quote(folders.directory)}: every rank holds other tensors, and {complaints.ranks(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: what only {'it' if len(missing) == 1 else 'they'} held "
            "is lost",
            "copy the missing files from the hosts that wrote them",
        )


def _check_world(folders: RankFolders, strategy: Strategy) -> None:
    """Refuse ranks that the strategy does not know: another training's, or those of a stage it does not describe."""
    surplus = [rank for rank in folders.names if rank >= strategy.world_size]
    if surplus:
        stages = counted(len(strategy.stages), "pipeline stage")
        raise SourceError(
            f"the strategy is for {counted(strategy.world_size, 'rank')} in {stages} "
            f"({first_few([*map(str, strategy.files)], 3, quote)}), and {quote(folders.directory)} also holds files "
            f"of {complaints.ranks(surplus)}",
            f"give the strategy files of all pipeline stages of this training with {setting('strategy', 'PATH')}",
        )


def _incomplete(folders: RankFolders, chosen: Chosen, strategy: Strategy, found: Catalog) -> IncompleteError:
    absent = sorted({*range(strategy.world_size)} - {file.rank for file in chosen.files})
    missing = f"; {complaints.ranks(absent)} {'is' if len(absent) == 1 else 'are'} missing" if absent else ""
    here, step = len(chosen.files), f" at step {chosen.saved}" if chosen.others else ""
    other = f", choose another step with {setting('step', 'EPOCH_STEP')}" if chosen.others else ""
    return IncompleteError(
        f"{quote(folders.directory)}: the strategy is for {counted(strategy.world_size, 'rank')}, and "
        f"{here} {'is' if here == 1 else 'are'} here{step}{missing}; no rank here has these slices of "
        f"{counted(len(found.lost), 'tensor')}:{complaints.listed(found.lost)}",
        f"copy the missing files from the hosts that wrote them{other}, or give the strategy of this training "
        f"with {setting('strategy', 'PATH')}",
        found,
    )


def _check_copies(folders: RankFolders, strategy: Strategy | None, found: Assembly) -> list[str]:
    """Refuse tensors that nothing says how to cut if ranks hold different ones; remove such state of the training.

    Returns:
        The names that were removed.

    Raises:
        SourceError, UnsupportedError: which tensor, and which ranks.
    """
    differing = [*first_bytes.differing(found.tensors[name] for name in found.unlisted)]
    if of_model := [one for one in differing if not is_training_state(one[0])]:
        raise _no_copies(quote(folders.directory), strategy, of_model)
    for name, _, _ in differing:
        del found.tensors[name]
    return [name for name, _, _ in differing]


def _no_copies(where: str, strategy: Strategy | None, differing: Sequence[tuple[str, int, int]]) -> StreamconvError:
    name, one, other = differing[0]
    what = f"{where}: {quote(name)} begins with other bytes in rank {other} than in rank {one}"
    rest = len(differing) - 1
    more = f", and so {'does' if rest == 1 else 'do'} {counted(rest, 'more tensor')}" if rest else ""
    if strategy is None:
        return UnsupportedError(
            f"{what}{more}: the ranks hold slices, and no strategy tells how they are cut",
            f"give the training's strategy files with {setting('strategy', 'PATH')}; "
            "MindFormers saves them in output/strategy",
        )
    return SourceError(
        f"{what}{more}, and the strategy does not tell how it is cut",
        "give the strategy files of this training, saved with all parameters, not only those that are trained",
    )


def _notes(
    path: Path, folders: RankFolders, chosen: Chosen, strategy: Strategy | None, found: Assembly
) -> Iterator[str]:
    stages = f" in {len(strategy.stages)} pipeline stages" if strategy and len(strategy.stages) > 1 else ""
    step = f", step {chosen.saved}" if chosen.saved.step else ""
    where = "" if folders.directory == path else f" in {quote(folders.directory.name)}"
    yield f"{counted(len(chosen.files), 'rank')}{where}{stages}{step}; {_how_cut(strategy)}"
    if chosen.others:
        others = first_few([*map(str, reversed(chosen.others))], _SHOWN)
        yield f"other steps of the training: {others}; choose with {setting('step', 'EPOCH_STEP')}"
    if folders.unread:
        yield f"not read: {first_few(folders.unread, 3, quote)}, of the same training"
    if strategy and not found.lost and (absent := {*range(strategy.world_size)} - {file.rank for file in chosen.files}):
        yield f"{complaints.ranks(sorted(absent))} missing; other ranks hold copies of all their slices"


def _notes_of_unlisted(strategy: Strategy | None, found: Assembly, unread: Sequence[str]) -> Iterator[str]:
    if unread:
        yield (
            f"{counted(len(unread), 'tensor')} of the training's state not read, because no strategy tells how "
            f"they are cut: {first_few(unread, _SHOWN, quote)}"
        )
    unlisted = [name for name in found.unlisted if not is_training_state(name)] if strategy else []
    if unlisted:
        yield f"not in the strategy, so taken to be whole in every rank: {first_few(unlisted, _SHOWN, quote)}"


def _how_cut(strategy: Strategy | None) -> str:
    if strategy is None:
        return "no strategy: every rank is taken to hold whole tensors"
    if len(strategy.files) == 1:
        return f"cut as {quote(strategy.files[0])} says"
    return f"cut as {len(strategy.files)} files in {quote(strategy.files[0].parent)} say"


def _missing(folders: RankFolders, here: Collection[int]) -> list[int]:
    """Return the first of the ranks that there must have been, by the numbers of others or by empty folders."""
    most = max((*here, *folders.empty))
    return [*islice((rank for rank in range(most + 1) if rank not in here), _SHOWN)]


def _of_missing(folders: RankFolders, here: Collection[int]) -> Iterator[str]:
    if missing := _missing(folders, here):
        yield (
            f"{complaints.ranks(missing)} {'is' if len(missing) == 1 else 'are'} missing, and no strategy tells "
            f"whether other ranks hold all that {'it' if len(missing) == 1 else 'they'} held"
        )


def _warnings(
    folders: RankFolders, chosen: Chosen, strategy: Strategy | None, found: Assembly, of_files: Sequence[str]
) -> Iterator[str]:
    here = {file.rank for file in chosen.files}
    if strategy is None:
        yield from _of_missing(folders, here)
    if strategy is None and not _missing(folders, here) and _is_divided(found, len(here)):
        yield (
            "ranks hold different tensors, and no strategy tells how many ranks there were: "
            f"what ranks after rank {max(here)} held is missing, if there were any"
        )
    yield from complaints.warnings(of_files)


def _is_divided(found: Assembly, ranks: int) -> bool:
    """Return whether some tensors of the model are not in all ranks."""
    refs = (found.tensors[name] for name in found.unlisted if not is_training_state(name))
    return any((ref.slices.most_copies() if ref.slices else 1) < ranks for ref in refs)
