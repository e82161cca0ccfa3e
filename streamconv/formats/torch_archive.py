"""The archive that torch.save writes: which files are one, its entries, and the value of its pickle.

    ROOT/data.pkl                 the pickle; a storage is a persistent id ("storage", type, key, location, elements)
    ROOT/data/KEY                 the bytes of a storage
    ROOT/byteorder, ROOT/version  `little`, `3`; and others that do not matter here

Source: torch 2.13, `torch/serialization.py`, and files that it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from ..errors import SourceError, UnsupportedError
from ..tensors.extents import SourceFile
from ..text import quote
from . import pickles, zips
from .header_room import HeaderRoom
from .headers import DOWNLOAD_AGAIN, read_head
from .zip_records import LOCAL_MAGIC

# `little` has six bytes.
_LONGEST_ORDER = 64
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_TAR_MARK = 257, b"ustar"
_RESAVE = (
    "save it again: python -c \"import torch; torch.save(torch.load('OLD', weights_only=True), 'NEW')\" "
    "with the files' names in place of OLD and NEW"
)


class Archive(NamedTuple):
    """A torch file, the name of the folder that holds all its entries, and the entries by name."""

    file: SourceFile
    root: str
    entries: Mapping[str, zips.Entry]


def read_archive(
    descriptor: int, file: SourceFile, allowed: AbstractSet[str], header_room: HeaderRoom
) -> tuple[Archive, object]:
    """Return the archive and the value of its pickle.

    Args:
        descriptor, file: the file.
        allowed: the names that the pickle may contain.
        header_room: bytes that zip directory and pickle may have together.

    Raises:
        SourceError: truncated or damaged.
        BudgetError: directory and pickle are longer than `header_room` allows.
        UnsupportedError: an old format, TorchScript, big-endian, or a pickle that asks for other names.
    """
    _refuse_foreign(descriptor, file)
    entries = zips.entries(descriptor, file, header_room)
    archive = Archive(file, _root(file, entries), entries)
    _check_order(descriptor, archive)
    left = header_room.less(sum(zips.DIRECTORY_COST + len(name) for name in entries))
    return archive, _pickled(descriptor, archive, allowed, left)


def is_legacy(head: bytes) -> bool:
    """Return whether a file that begins so was written by torch before version 1.6."""
    at, mark = _TAR_MARK
    return head.startswith(_LEGACY) or head.startswith(mark, at)


def _refuse_foreign(descriptor: int, file: SourceFile) -> None:
    name, head = quote(file.path.name), read_head(descriptor, file, 512)
    if is_legacy(head):
        raise UnsupportedError(f"{name} is of the format that torch wrote before version 1.6", _RESAVE)
    if not head.startswith(LOCAL_MAGIC):
        raise UnsupportedError(f"{name} is not a torch file: it does not begin as a zip archive")


def _root(file: SourceFile, entries: Mapping[str, zips.Entry]) -> str:
    """Return the folder that holds all entries."""
    roots = {name.partition("/")[0] for name in entries}
    root = min(roots, default="")
    name = quote(file.path.name)
    if f"{root}/constants.pkl" in entries or any(entry.startswith(f"{root}/code/") for entry in entries):
        raise UnsupportedError(
            f"{name} is a TorchScript archive, a program and not a checkpoint",
            "load it with torch.jit.load and torch.save its state_dict()",
        )
    if len(roots) != 1 or f"{root}/data.pkl" not in entries:
        raise SourceError(f"{name} is a zip archive that torch.save did not write: it has no single FOLDER/data.pkl")
    return root


def _pickled(descriptor: int, archive: Archive, allowed: AbstractSet[str], header_room: HeaderRoom) -> object:
    """Return the value of the archive's pickle."""
    entry = archive.entries[f"{archive.root}/data.pkl"]
    name = quote(archive.file.path.name)
    if entry.size > header_room.nbytes:
        header_room.check(pickles.largest_cost(entry.size), f"the pickle of {name} ({entry.size} bytes)")
    return pickles.load(zips.content(descriptor, archive.file, entry), allowed, name, header_room)


def _check_order(descriptor: int, archive: Archive) -> None:
    file, entry = archive.file, archive.entries.get(f"{archive.root}/byteorder")
    if entry is None:
        return
    name = quote(file.path.name)
    if entry.size > _LONGEST_ORDER:
        raise SourceError(f"{name} states its byte order in {entry.size} bytes: the file is damaged", DOWNLOAD_AGAIN)
    order = zips.content(descriptor, file, entry)
    if order == b"big":
        raise UnsupportedError(f"{name} was written on a big-endian machine", f"on another machine, {_RESAVE}")
    if order != b"little":
        raise SourceError(f"{name} states the byte order {quote(order)}: the file is damaged", DOWNLOAD_AGAIN)
