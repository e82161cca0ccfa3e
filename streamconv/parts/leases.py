"""Who writes a part, and what of it is durable: a journal for each time that the part was given to somebody.

    DEST.partial.parts/00017/1     the journal of the first lease of part 17: one process writes it, and nobody else
    DEST.partial.parts/00017/2     that of the second: the first worker died, or seemed to

A lease is taken by creating the file of the next number, which only one process can (O_EXCL), locks or not. Its
first record says how much of the earlier journals counts; what their owners append after that does not, however late it
appears. So a worker that comes back from the dead changes nothing, and it notices before its next record.

    ["took", {lease: bytes, …}]    the journals of earlier leases count up to these bytes
    ["block", …], ["box", …], …    as in the journal of a run
    ["done", is_compared]          the part is complete, and compared with the source or not
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from ..errors import DestinationError, storing
from ..output.journal import Journal
from ..storage import disk, whole_files
from ..text import quote

_TRIES = 100
_NUMBER = re.compile(r"[0-9]{1,9}")
_COPIED_AT_ONCE = 10_000
_COPIED = (b'["block",', b'["box",', b'["outputs",')
_DONE = {True: b'["done",true]', False: b'["done",false]'}


class LeaseJournal(Journal):
    """The journal of a lease, which refuses records once the lease is lost."""

    def __init__(self, path: Path, descriptor: int) -> None:
        super().__init__(path, descriptor)
        self._path, self._descriptor = path, descriptor

    def copy(self, texts: Iterable[bytes]) -> None:
        """Append records, durable when this returns.

        Raises:
            DestinationError: the part was given to another process.
            StorageError: the file system refuses.
        """
        with storing(self._path):
            self._check()
        super().copy(texts)

    def _check(self) -> None:
        """Read the directory again: on NFS that is what shows files that other hosts made since."""
        leases = _leases(self._path.parent) if disk.exists(self._path.parent) else []
        is_ours = leases and leases[-1] == int(self._path.name) and disk.exists(self._path)
        if not is_ours or not os.path.samestat(disk.stat(self._path), disk.fstat(self._descriptor)):
            raise DestinationError(
                f"what this process converts for {quote(self._path.parent.parent.stem)} was given to another process",
                "let that process finish: it resumes from what this one made durable",
            )


class Lease(Struct, frozen=True):
    """A part, taken.

    Attributes:
        journal: where what is durable of it is recorded from now on.
        records: what earlier leases recorded.
    """

    journal: LeaseJournal
    records: Sequence[object]


@contextmanager
def taken(folder: Path, part: int) -> Iterator[Lease]:
    """Take the next lease of a part, and close its journal at the end.

    Args:
        folder: where the journals of all parts lie.
        part: its number.

    Raises:
        StorageError: the file system refuses.
    """
    place = folder / f"{part:05}"
    with storing(place):
        _refuse_link(place)
        whole_files.make_directories(folder, place.name)
        path, descriptor = _next(place)
    try:
        with storing(place):
            disk.sync_directory(place)
            disk.sync_directory(folder)
            texts, ends = _read(place, before=int(path.name))
        journal = LeaseJournal(path, descriptor)
        journal.append([["took", ends]])
        yield Lease(journal, [json.loads(text) for text in texts])
    finally:
        disk.close_quietly(descriptor)


def _refuse_link(place: Path) -> None:
    if disk.is_link(place):
        raise DestinationError(f"{quote(place)} is a link, which no part is converted through", "remove the link")


def _next(place: Path) -> tuple[Path, int]:
    """Create the journal of the next lease."""
    for _ in range(_TRIES):
        path = place / str(max(_leases(place), default=0) + 1)
        try:
            return path, disk.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | disk.NO_FOLLOW)
        except FileExistsError:
            continue
    raise FileExistsError(None, "other processes take it again and again")


def _leases(place: Path) -> list[int]:
    """Return the numbers of the leases of a part, ascending."""
    return sorted(int(name) for name in disk.listdir(place) if _NUMBER.fullmatch(name))


def _read(place: Path, before: int | None = None) -> tuple[list[bytes], dict[str, int]]:
    """Return what the leases of a part recorded, as far as it counts, and how many bytes of each journal that is."""
    texts: list[bytes] = []
    ends: dict[str, int] = {}
    counted: dict[str, int] | None = None
    for lease in reversed(_leases(place)):
        if before is not None and lease >= before:
            continue
        found, end = _texts(place / str(lease), None if counted is None else counted.get(str(lease), 0))
        match json.loads(found[0]) if found else None:
            case ["took", dict(took)]:
                counted = took if counted is None else counted
            case _ if counted is None:
                # It was taken, and its owner died before it recorded anything.
                continue
        texts, ends[str(lease)] = [*found, *texts], end
    return texts, ends


def _texts(path: Path, stop: int | None) -> tuple[list[bytes], int]:
    descriptor = disk.open_file(path, os.O_RDONLY | disk.NO_FOLLOW)
    try:
        journal = Journal(path, descriptor)
        end = journal.end if stop is None else min(stop, journal.end)
        return list(journal.texts(end)), end
    finally:
        disk.close_quietly(descriptor)


def is_done(folder: Path, part: int, compared: bool) -> bool:
    """Return whether a part is complete, and with `compared` compared with the source too.

    Raises:
        StorageError: the journals cannot be read.
    """
    place = folder / f"{part:05}"
    with storing(place, "cannot read"):
        texts = _read(place)[0] if disk.is_directory(place) else []
    return any(_DONE[is_compared] in texts for is_compared in {compared, True})


def absorb(folder: Path, journal: Journal) -> None:
    """Copy what the journals of parts say into that of the run, and remove them. Nobody may work on a part.

    The folder goes too, unless processes that share it have noted there that they are at work or have ended
    (`register`): whoever runs again after a crash of the one that puts the parts together needs to know.
    A crash in the middle of it leaves records twice, which changes nothing (`output.journal.DoneBoxes`).

    Raises:
        StorageError: the file system refuses.
    """
    with storing(folder, "cannot read"):
        if not disk.exists(folder):
            return
        parts = sorted(name for name in disk.listdir(folder) if _NUMBER.fullmatch(name))
        copied: list[bytes] = []
        for name in parts:
            copied += [text for text in _read(folder / name)[0] if text.startswith(_COPIED)]
            if len(copied) >= _COPIED_AT_ONCE:
                journal.copy(copied)
                copied = []
        if copied:
            journal.copy(copied)
        for name in parts:
            whole_files.remove_tree(folder / name)
        if not disk.listdir(folder):
            disk.remove_directory(folder)
