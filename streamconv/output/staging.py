"""The place where a destination is built: `DEST.partial`, with its journal beside it, held by one process at a time.

    claim    lock the journal that an earlier run left      →  is it finished? is it of the same conversion?
    begin    make what is missing, and say who holds it
    commit   manifest, seal, rename, sync                   →  nothing is left but the result
    release  keep what is on record, or leave nothing

The order of steps is such that after a crash between any two the next run knows where it stands: the journal is made
before what it speaks of, and removed after it.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

import psutil
import xxhash

from ..errors import DestinationError, storing
from ..storage import disk
from ..text import quote
from .fingerprint import Fingerprint, differences
from .journal import Heading, Journal, Owner, heading
from .manifest import MANIFEST

#: Where neither the file system has locks nor the owner is on this host: how long it must not have written anything.
_SILENCE = 600.0
_JITTER = 1.0
_TRIES = 9


class Partial:
    """`DEST.partial` and its journal. A context manager: it claims what an earlier run left, and lets go in the end.

    Args:
        path: the final name.
        single: it is one file, with its manifest beside it.
        conversion: what is converted to what, as the journal has it.
        restart: what an earlier run left is thrown away.
    """

    def __init__(self, path: Path, single: bool, conversion: Fingerprint, restart: bool = False) -> None:
        self.path, self.single, self._conversion = path, single, conversion
        self.place = path.with_name(f"{path.name}.partial")
        self.journal_path = path.with_name(f"{path.name}.partial.streamconv")
        self.is_worth_keeping = self.is_in_place = False
        self._restart = restart
        self._aside = path.with_name(f"{path.name}.partial.old")
        self._beside = path.with_name(f"{path.name}.{MANIFEST}")
        self._waiting = path.with_name(f"{path.name}.{MANIFEST}.partial")
        self._lock: int | None = None
        self._journal: Journal | None = None
        self._begun = False
        self.heading = Heading()

    def __enter__(self) -> Partial:
        """Claim what an earlier run left.

        Raises:
            DestinationError: another process holds it, or what is in its place is not ours.
            StorageError: it cannot be read.
        """
        with self._letting_go(), storing(self.journal_path, "cannot open"):
            if disk.exists(self.journal_path):
                self._claim(0)
            elif disk.exists(self.place) and not self._is_empty_directory():
                raise DestinationError(f"{quote(self.place)} is in the way and was not made by streamconv: move it")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._begun and not (self.is_worth_keeping or self.is_in_place):
            with suppress(OSError):
                self._put_back()
                self._remove()
        self._release()

    # -- the lock ------------------------------------------------------------------------------------------------------

    def _claim(self, flags: int) -> None:
        """Open and lock the journal, and read what it says of the run as a whole."""
        for _ in range(_TRIES):
            descriptor = self._lock = disk.open_file(
                self.journal_path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags
            )
            if not stat.S_ISREG(disk.fstat(descriptor).st_mode):
                raise DestinationError(f"{quote(self.journal_path)} is in the way and is no file: move it")
            is_locked = disk.lock(descriptor)
            self._journal = Journal(self.journal_path, descriptor)
            self.heading = heading(self._journal.records())
            if is_locked is False or (is_locked is None and self._is_held(descriptor)):
                raise DestinationError(self._words_of_holder())
            if self._is_still_there(descriptor):
                return
            # Its holder ended between our opening and our locking it.
            self._release()
            flags |= os.O_CREAT
        raise DestinationError(f"{quote(self.journal_path)} comes and goes: another process works there; run again")

    def _is_still_there(self, descriptor: int) -> bool:
        exists = disk.exists(self.journal_path)
        return exists and os.path.samestat(disk.stat(self.journal_path), disk.fstat(descriptor))

    def _is_held(self, descriptor: int) -> bool:
        """Whether the owner on record may still be writing, where no lock tells."""
        owner = self.heading.owner
        if owner is None:
            return False
        if owner.host == socket.gethostname():
            return owner.process != os.getpid() and _is_alive(owner)
        return time.time() - disk.fstat(descriptor).st_mtime < _SILENCE

    def _words_of_holder(self) -> str:
        owner = self.heading.owner
        who = "another process"
        if owner is not None:
            since = datetime.fromtimestamp(owner.since)
            who = f"process {owner.process} on {quote(owner.host)} (since {since:%Y-%m-%d %H:%M:%S})"
        return f"{quote(self.place)} is being written by {who}: wait for it to end, or stop it"

    @contextmanager
    def _letting_go(self) -> Iterator[None]:
        """Let go if the block fails: nobody leaves a context that was not entered."""
        try:
            yield
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        descriptor, self._lock, self._journal = self._lock, None, None
        if descriptor is not None:
            disk.close_quietly(descriptor)

    # -- an earlier run ------------------------------------------------------------------------------------------------

    def is_finished(self) -> bool:
        """Whether an earlier run put its result in place, and was stopped before it had tidied up."""
        sealed = self.heading.sealed
        if (
            sealed is None
            or not disk.exists(self.path)
            or disk.device_and_inode(self.path) != (sealed.device, sealed.inode)
        ):
            return False
        manifests = (self._beside, self._waiting) if self.single else (self.path / MANIFEST,)
        return any(disk.is_file(one) and _digest_of(one) == sealed.digest for one in manifests)

    def finish_cleanup(self) -> None:
        """Do what an earlier run did not come to, after it put its result in place.

        Raises:
            StorageError: the file system refuses.
        """
        with storing(self.path, "cannot tidy up after"):
            if self.single and disk.exists(self._waiting):
                disk.rename(self._waiting, self._beside)
            disk.sync_directory(self.path.parent)
            self._tidy()

    def check_same(self) -> None:
        """Refuse to go on from another conversion.

        Raises:
            DestinationError: it is another; the message says in what, and both ways out.
        """
        begun = self.heading.conversion
        if begun and self.heading.has_records and not self._restart:
            self._refuse(differences(begun, self._conversion))

    def _refuse(self, different: list[str]) -> None:
        if different:
            raise DestinationError(
                f"{quote(self.place)} holds an unfinished conversion that is not this one: {'; '.join(different)}. "
                "To go on with that one, give source and options as they were; to throw it away, add --restart"
            )

    def allocated(self, names: list[str]) -> int:
        """Bytes on disk that the files of these names, or the single one, take already."""
        with storing(self.place, "cannot look at"):
            found = [disk.stat(path, follow=False) for path in self._paths(names) if disk.exists(path)]
        return 512 * sum(status.st_blocks for status in found)

    def has_file(self, name: str, size: int) -> bool:
        """Whether the file of that name, or the single one, is there and as long as it was made."""
        path = self.place if self.single else self.place / name
        with storing(path, "cannot look at"):
            found = disk.stat(path, follow=False) if disk.exists(path) else None
        return found is not None and stat.S_ISREG(found.st_mode) and found.st_size == size

    def forget(self, names: list[str]) -> None:
        """Let the system forget what it remembers of the files of these names, or the single one: they are synced."""
        for path in self._paths(names):
            with storing(path, "cannot open"):
                descriptor = disk.open_file(path, os.O_RDONLY)
                disk.drop_cache(descriptor)
                disk.close_quietly(descriptor)

    def _paths(self, names: list[str]) -> list[Path]:
        return [self.place] if self.single else [self.place / name for name in names]

    # -- this run ------------------------------------------------------------------------------------------------------

    def begin(self, names: list[str]) -> Journal:
        """Make what is missing, remove what does not belong there, and say in the journal who holds it.

        Args:
            names: the files that hold tensors.

        Raises:
            DestinationError: another process holds it.
            StorageError: the file system refuses.
        """
        with storing(self.journal_path, "cannot create"):
            if self._lock is None:
                self._claim(os.O_CREAT)
                self.check_same()
            self._begun = True
            self.is_worth_keeping = self.heading.has_records
            if self._restart or self.heading.conversion != self._conversion:
                self._empty()
                self.journal.append([self._conversion])
                disk.sync_directory(self.path.parent)
            self.journal.append([["held", os.getpid(), socket.gethostname(), time.time()]])
        with storing(self.place, "cannot create"):
            if not self.single:
                self._make_directory(names)
        return self.journal

    @property
    def journal(self) -> Journal:
        """The journal; only while it is held."""
        if self._journal is None:
            raise ValueError(f"{self.journal_path} is not held")
        return self._journal

    def _empty(self) -> None:
        """Nothing of an earlier run is left, and nothing of it is believed, but where it put the old destination."""
        self.is_worth_keeping = False
        self.heading = Heading(is_aside=self.heading.is_aside)
        self.journal.clear()
        if self.heading.is_aside:
            self.journal.append([["aside"]])
        self._remove_place()

    def _make_directory(self, names: list[str]) -> None:
        if not disk.exists(self.place):
            disk.make_directory(self.place)
            disk.sync_directory(self.path.parent)
        for name in disk.listdir(self.place):
            if name not in names:
                _remove(self.place / name)

    # -- the end -------------------------------------------------------------------------------------------------------

    def commit(self, manifest: bytes) -> None:
        """Give the built and synced files their final name, with their manifest.

        Raises:
            StorageError: the file system refuses.
        """
        with storing(self.path, "cannot put in place"):
            self._commit_file(manifest) if self.single else self._commit_directory(manifest)
        with storing(self.place, "cannot tidy up"):
            self._tidy()

    def _seal(self, manifest: bytes) -> None:
        """From here on a run that finds this inode under the final name knows that all is done."""
        self.journal.append([["sealed", _digest(manifest), *disk.device_and_inode(self.place)]])

    def _commit_file(self, manifest: bytes) -> None:
        """The old manifest goes first, the new one comes last: never does one stand beside another's checkpoint."""
        disk.write_synced(self._waiting, manifest)
        disk.sync_directory(self.path.parent)
        self._seal(manifest)
        if disk.exists(self._beside):
            disk.remove(self._beside)
            disk.sync_directory(self.path.parent)
        disk.rename(self.place, self.path)
        disk.sync_directory(self.path.parent)
        self.is_in_place = True
        disk.rename(self._waiting, self._beside)
        disk.sync_directory(self.path.parent)

    def _commit_directory(self, manifest: bytes) -> None:
        disk.write_synced(self.place / MANIFEST, manifest)
        disk.sync_directory(self.place)
        self._seal(manifest)
        if not disk.is_directory(self.path) or not disk.listdir(self.path):
            disk.rename(self.place, self.path)
        elif not disk.exchange(self.place, self.path):
            self._put_aside()
        disk.sync_directory(self.path.parent)
        self.is_in_place = True

    def _put_aside(self) -> None:
        """Where the file system cannot swap two names: the old one aside, the new one in its place."""
        self.journal.append([["aside"]])
        self.heading.is_aside = True
        disk.rename(self.path, self._aside)
        try:
            disk.rename(self.place, self.path)
        except OSError:
            disk.rename(self._aside, self.path)
            raise

    def _put_back(self) -> None:
        """The old destination, if a crash came between the two renames, and there is no new one to take its place."""
        if self.heading.is_aside and disk.exists(self._aside) and not disk.exists(self.path):
            disk.rename(self._aside, self.path)

    def _tidy(self) -> None:
        """Remove all but the result."""
        if self.heading.is_aside and disk.exists(self._aside):
            disk.remove_tree(self._aside)
        self._remove()

    def _remove(self) -> None:
        self._remove_place()
        if disk.exists(self.journal_path):
            disk.remove(self.journal_path)

    def _remove_place(self) -> None:
        for path in (self._waiting, self.place) if self.single else (self.place,):
            if disk.exists(path):
                _remove(path)

    def _is_empty_directory(self) -> bool:
        is_one = not self.single and not disk.is_link(self.place) and disk.is_directory(self.place)
        return is_one and not disk.listdir(self.place)


def _remove(path: Path) -> None:
    if stat.S_ISDIR(disk.mode(path, follow=False)):
        disk.remove_tree(path)
    else:
        disk.remove(path)


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def _digest_of(path: Path) -> str:
    return _digest(disk.read_file(path, disk.stat(path).st_size))


def _is_alive(owner: Owner) -> bool:
    """Whether that very process still runs: numbers are given out again."""
    try:
        return psutil.Process(owner.process).create_time() <= owner.since + _JITTER
    except psutil.Error:
        return False
