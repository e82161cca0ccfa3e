"""Where the weights are, if a directory holds none: usually a level or two further down.

A hub cache and a model's folder in it, a trainer's output, MindFormers' `output/`: the error names the directory to
give, or says what the directory there is. The search is short, and runs only when the conversion is refused anyway.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import SourceError, StreamconvError
from ..storage import disk
from ..storage.whole_files import names_in
from ..text import quote
from . import foreign_shards, rank_slices
from .directory import ADAPTERS, FORMATS, Listing, not_the_model
from .header_room import HeaderRoom
from .headers import opened, read_at
from .shards import listing

# A hub cache is searched from its root: `hub/models--o--m/snapshots/REVISION`, `hub/models/o/m`.
_DEEPEST = 4
_MOST_FOLDERS = 300
_MOST_NAMES = 5_000
# Folders that hold no model: blobs are behind the links of snapshots.
_NOT_SEARCHED = ("blobs", "refs", "logs", "log", "runs", "optimizer_0", "strategy")

#: Folders of which a training writes one after the other, by their number.
STEPS = re.compile(r"(?:.*[-_])?(?:checkpoint|iteration|iter|global_step|step|epoch)[-_]?(?P<number>\d+)", re.DOTALL)


class Place(NamedTuple):
    """A folder with weights: the names on the way to it, and all names in it."""

    way: tuple[str, ...]
    names: Sequence[str]


def pointer(directory: Path) -> StreamconvError | None:
    """Return the error that names where the weights are, `None` if they are nowhere.

    Args:
        directory: a directory without weights.
    """
    places = [place for place in _search(directory) if not _is_superseded(directory, place)]
    if not places:
        return None
    steps = [(int(match["number"]), place) for place in places if (match := _step(place))]
    newest = max(steps, key=lambda step: step[0])[1] if len(steps) > 1 else None
    chosen = newest or places[0]
    folder = directory.joinpath(*chosen.way)
    if refused := _what_is_there(folder, chosen):
        return refused
    which = ", the newest" if newest else ", or another of them" if len(places) > 1 else ""
    return SourceError(
        f"{quote(directory)} holds no weights itself; they are in {listing(['/'.join(place.way) for place in places])}",
        f"give {quote(folder)}{which}",
    )


def _search(directory: Path) -> Iterator[Place]:
    """Yield the folders with weights below a directory, those of a level before deeper ones; none inside another."""
    level: list[tuple[str, ...]] = [()]
    folders = names = 0
    for _ in range(_DEEPEST + 1):
        deeper: list[tuple[str, ...]] = []
        for way in level:
            found = names_in(directory.joinpath(*way))[:_MOST_NAMES]
            folders, names = folders + 1, names + len(found)
            if folders > _MOST_FOLDERS or names > 2 * _MOST_NAMES:
                return
            if way and _has_weights(directory.joinpath(*way), found):
                yield Place(way, found)
            else:
                deeper += [(*way, name) for name in found if _is_folder(directory.joinpath(*way, name))]
        level = deeper


def _has_weights(folder: Path, names: Sequence[str]) -> bool:
    if foreign_shards.refusal(folder, names):
        return True
    return any(name in ADAPTERS or (name.endswith(tuple(FORMATS)) and not not_the_model(name)) for name in names)


def _is_folder(path: Path) -> bool:
    if path.name.startswith(".") or path.name in _NOT_SEARCHED or path.suffix in FORMATS:
        return False
    with suppress(OSError):
        return disk.is_directory(path)
    return False


def _step(place: Place) -> re.Match[str] | None:
    return next(filter(None, map(STEPS.fullmatch, place.way)), None)


def _is_superseded(directory: Path, place: Place) -> bool:
    """Return whether a place is a snapshot in HuggingFace's cache, and another one is the repository's `main`."""
    if place.way[-2:-1] != ("snapshots",):
        return False
    repository = directory.joinpath(*place.way[:-2])
    main = _first_line(repository / "refs" / "main")
    return main != place.way[-1] and main in names_in(repository / "snapshots")


def _first_line(path: Path) -> str:
    with suppress(SourceError), opened(path) as (descriptor, file):
        return read_at(descriptor, 0, min(file.size, 64), file).decode(errors="replace").strip()
    return ""


def _what_is_there(folder: Path, place: Place) -> StreamconvError | None:
    """Return the error for a folder that could not be read either."""
    if refused := foreign_shards.refusal(folder, place.names):
        return refused
    files = Listing(folder, place.names, HeaderRoom())
    try:
        rank_slices.check(folder, files.weights(".safetensors") or files.weights(".ckpt"), place.names)
    except StreamconvError as error:
        return error
    return None
