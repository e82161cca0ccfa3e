"""The catalog of an iteration that MindFormers 2.x saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import SourceError
from ..formats import catalog
from ..formats.header_room import HeaderRoom
from ..formats.rank_slices import is_optimizer, model_files
from ..tensors.refs import Catalog
from ..text import counted, first_few, quote, setting
from . import by_metadata, complaints, first_bytes
from .by_metadata import OfIteration
from .complaints import IncompleteError
from .iterations import METADATA, Iteration

_SHOWN = 5
_FORMAT = "safetensors"


def read(path: Path, iteration: Iteration, header_room: Callable[[], HeaderRoom]) -> Catalog:
    """Return the whole tensors of an iteration.

    Args:
        path: what was opened.
        iteration: the iteration.
        header_room: gives the room for the next header.

    Raises:
        SourceError: slices are missing, or not as metadata.json says; a file is broken.
        BudgetError: a header is longer than `header_room` allows.
    """
    models = model_files(iteration.names)
    if not iteration.has_metadata and len(models) == 1:
        found = catalog.open_catalog(iteration.directory, header_room)
        return replace(found, path=path, notes=tuple(_which(iteration)), of_ranks=True)
    where = quote(iteration.directory)
    if not iteration.has_metadata:
        raise SourceError(
            f"{where} holds {len(models)} files of a distributed checkpoint and no {METADATA}, which tells how tensors "
            "are cut and is written last: the checkpoint was not saved to the end",
            f"choose another iteration with {setting('step', 'NUMBER')}, or copy {METADATA} too",
        )
    held = by_metadata.read(iteration, header_room)
    complaints.refuse(where, held.findings, METADATA)
    if differing := [*first_bytes.differing(held.tensors[name] for name in held.unlisted)]:
        name, one, other = differing[0]
        raise SourceError(
            f"{where}: {quote(name)} begins with other bytes in the file of rank {other} than in that of rank {one}, "
            f"and {METADATA} does not tell how it is cut",
            f"copy {METADATA} of this iteration again",
        )
    found = Catalog(
        path=path,
        format=_FORMAT,
        tensors=held.tensors,
        files=tuple(held.files),
        ignored={
            name: "the state of the optimizer, not of the model" for name in iteration.names if is_optimizer(name)
        },
        warnings=complaints.warnings(held.warnings),
        notes=tuple(_notes(iteration, held)),
        lost=tuple(f"{quote(name)} ({first_few(files, 3, quote)})" for name, files in held.lost.items()),
        of_ranks=True,
    )
    if found.lost:
        raise _incomplete(where, held, found)
    return found


def _incomplete(where: str, held: OfIteration, found: Catalog) -> IncompleteError:
    absent = first_few(held.absent, 3, quote)
    return IncompleteError(
        f"{where}: {absent} {'is' if len(held.absent) == 1 else 'are'} missing; no file here has these slices of "
        f"{counted(len(found.lost), 'tensor')}:{complaints.listed(found.lost)}",
        "copy the missing files from the hosts that wrote them",
        found,
    )


def _notes(iteration: Iteration, held: OfIteration) -> Iterator[str]:
    state = f"; {counted(held.optimizer, 'tensor')} of the optimizer not read" if held.optimizer else ""
    yield f"{counted(len(held.files), 'file')} of ranks, cut as {METADATA} says{state}"
    yield from _which(iteration)
    if held.absent and not held.lost:
        yield f"missing: {first_few(held.absent, 3, quote)}; other files hold copies of all their slices"
    if held.unlisted:
        yield f"not in {METADATA}, so taken to be whole in every file: {first_few(held.unlisted, _SHOWN, quote)}"


def _which(iteration: Iteration) -> Iterator[str]:
    if iteration.number is not None:
        yield f"iteration {iteration.number}" + (f", {iteration.why}" if iteration.why else "")
    if iteration.others:
        others = first_few([str(number) for number in reversed(iteration.others)], _SHOWN)
        yield f"other iterations of the training: {others}; choose with {setting('step', 'NUMBER')}"
