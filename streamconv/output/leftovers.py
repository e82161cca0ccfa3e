"""What lies where a result is built before this run: what an earlier run left, or what only has its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import DestinationError
from ..storage import disk, whole_files
from ..text import quote
from .journal import Heading
from .paths import ResultPaths


def check_unclaimed(paths: ResultPaths) -> None:
    """Refuse what is in a result's place without a journal.

    Raises:
        DestinationError: something is there, and more than an empty directory.
    """
    if disk.exists(paths.partial) and not _is_empty_directory(paths):
        raise _cannot_be_resumed(paths, f"but not its journal, {quote(paths.journal.name)}")
    if disk.exists(paths.parts):
        raise DestinationError(
            f"{quote(paths.parts)} exists, but not the journal that it belongs to, {quote(paths.journal.name)}",
            f"remove {quote(paths.parts)}, or move it if streamconv did not create it; then run again",
        )


def check_claimed(paths: ResultPaths, heading: Heading, restart: bool) -> None:
    """Refuse what no journal speaks of, and links where a result is built: what they lead to is not ours to change.

    Args:
        paths: the names of the result.
        heading: what its journal says.
        restart: what was built is discarded, so that a link in it is removed itself.

    Raises:
        DestinationError: there is one.
    """
    if heading == Heading() and disk.exists(paths.partial) and not _is_empty_directory(paths):
        raise _cannot_be_resumed(paths, f"but its journal, {quote(paths.journal.name)}, says nothing of it")
    names = [] if restart or paths.is_file or disk.is_link(paths.partial) else names_in(paths.partial)
    for path in (paths.partial, paths.parts, *(paths.partial / name for name in names)):
        if disk.is_link(path):
            raise DestinationError(
                f"{quote(path)} is a link, which an unfinished result cannot be resumed through",
                "replace the link by what it leads to, or remove it; then run again",
            )


def check_no_other_aside(paths: ResultPaths) -> None:
    """Refuse what lies where an old result will be put, and is none.

    Raises:
        DestinationError: something is there.
    """
    if not paths.is_file and disk.exists(paths.replaced):
        raise DestinationError(
            f"{quote(paths.replaced)} exists, where the old destination may be put for a moment",
            "move or remove it, then run again",
        )


def remove_others(paths: ResultPaths, names: Sequence[str]) -> None:
    """Remove from where a directory is built all but the files of these names.

    Raises:
        OSError: the file system refuses.
    """
    kept = {*names, *(str(Path(name).parent) for name in names)}
    for name in names_in(paths.partial):
        if name not in kept and disk.exists(paths.partial / name):
            whole_files.remove_any(paths.partial / name)


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory, and those in its folders: `rank_0`, `rank_0/checkpoint_0.ckpt`."""
    names = _listed(directory)
    return [*names, *(f"{name}/{inner}" for name in names for inner in _listed(directory / name))]


def _listed(directory: Path) -> list[str]:
    return disk.listdir(directory) if not disk.is_link(directory) and disk.is_directory(directory) else []


def _is_empty_directory(paths: ResultPaths) -> bool:
    is_one = not paths.is_file and not disk.is_link(paths.partial) and disk.is_directory(paths.partial)
    return is_one and not disk.listdir(paths.partial)


def _cannot_be_resumed(paths: ResultPaths, why: str) -> DestinationError:
    partial = quote(paths.partial)
    return DestinationError(
        f"{partial} exists, {why}: what an interrupted run left there cannot be resumed",
        f"remove {partial}, or move it if streamconv did not create it; then run again",
    )
