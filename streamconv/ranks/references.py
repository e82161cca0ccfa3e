"""A reference: a checkpoint given as config, which is opened for its names and shapes only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import UsageError, reading
from ..formats.directory import FORMATS, list_directory
from ..formats.header_room import HeaderRoom
from ..formats.safetensors import read_metadata
from ..rules.statements import Side
from ..storage import disk
from ..tensors.refs import Catalog
from ..text import quote, setting
from .opening import open_checkpoint

#: Who writes which format, and which `format` into the metadata of safetensors.
_WRITTEN_BY = {"torch": Side.HF, "pt": Side.HF, "ckpt": Side.MS, "ms": Side.MS, "np": Side.MS}
_WORLDS = {Side.HF: "HuggingFace", Side.MS: "MindSpore"}


def open_reference(path: Path, source: Catalog, side: Side, header_room: Callable[[], HeaderRoom]) -> Catalog | None:
    """Return the tensors of a reference, `None` where there is none: no weights, or those of the source itself.

    Args:
        path: what was given as config.
        source: the source.
        side: the side that the reference has to be of.
        header_room: as for `open_checkpoint`.

    Raises:
        StreamconvError: as `open_checkpoint`.
        UsageError: it is of the other side.
    """
    with reading(path):
        own = {disk.resolve(source.path), disk.resolve(source.directory)}
        if disk.resolve(path) in own or not _has_weights(path, header_room):
            return None
    found = open_checkpoint(path, header_room)
    if _WRITTEN_BY.get(_format(found, header_room), side) is not side:
        raise UsageError(
            f"the checkpoint in {setting('config', quote(path))} is {_WORLDS[side.other]}'s, as the source is",
            f"give one of the same model that is {_WORLDS[side]}'s",
        )
    return found


def _has_weights(path: Path, header_room: Callable[[], HeaderRoom]) -> bool:
    if disk.is_directory(path):
        return bool(list_directory(path, header_room()).weights(tuple(FORMATS)))
    return path.suffix in FORMATS


def _format(found: Catalog, header_room: Callable[[], HeaderRoom]) -> str:
    if found.format != "safetensors":
        return found.format
    return read_metadata(found.files[0].path, header_room()).get("format", "")
