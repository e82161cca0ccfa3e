"""A reference: a checkpoint that is opened for its names and shapes only, next to a config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import reading
from ..formats.directory import FORMATS, list_directory
from ..formats.header_room import HeaderRoom
from ..storage import disk
from ..tensors.refs import Catalog
from .opening import open_checkpoint


def open_reference(path: Path, source: Path, header_room: Callable[[], HeaderRoom]) -> Catalog | None:
    """Return the tensors of a reference, `None` where there is none: a file, no weights, or the source itself.

    Args:
        path: what was given as config.
        source: the directory of the source.
        header_room: as for `open_checkpoint`.

    Raises:
        StreamconvError: as `open_checkpoint`.
    """
    with reading(path):
        if not disk.is_directory(path) or disk.resolve(path) == disk.resolve(source):
            return None
    holds_weights = list_directory(path, header_room()).weights(tuple(FORMATS))
    return open_checkpoint(path, header_room) if holds_weights else None
