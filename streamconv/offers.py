"""What installed packages offer under entry points."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def entry_points(group: str) -> Iterable[EntryPoint]:
    """Return the entry points of a group, of all installed packages."""
    # The library for that takes longer to load than all that is asked of it here, and mostly nobody offers anything.
    if not any(_may_offer(Path(place), group) for place in sys.path):
        return ()
    from importlib import metadata

    return metadata.entry_points(group=group)


def _may_offer(place: Path, group: str) -> bool:
    """Return whether a package in a place of `sys.path` names the group; whatever is no folder is not looked into."""
    try:
        entries = [entry for entry in os.scandir(place) if entry.name.endswith((".dist-info", ".egg-info"))]
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return any(group.encode() in text for text in _texts(entries))


def _texts(entries: Iterable[os.DirEntry[str]]) -> Iterator[bytes]:
    for entry in entries:
        with suppress(OSError):
            yield Path(entry.path, "entry_points.txt").read_bytes()
