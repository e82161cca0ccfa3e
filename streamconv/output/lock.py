"""The journal's lock: one process at a time builds a result."""

from __future__ import annotations

import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ..errors import DestinationError
from ..storage import disk, whole_files
from ..text import format_time, quote
from .journal import Heading, Journal, Owner, heading
from .paths import ResultPaths

#: Where neither the file system has locks nor the owner is on this host: how long it must not have written anything.
SILENCE = 600.0
_JITTER = 1.0

#: The files in which processes that share a journal note that they are at work, and what is in them at the end.
SHARE, ENDED = "share-", b"ended"
_TRIES = 9


class InUseError(DestinationError):
    """Another process builds the result."""


class JournalLock:
    """The journal of a result, held by this process from `claim` to `release`. A context manager: it releases.

    Attributes:
        heading: what the journal says of the run as a whole; empty before it is claimed.
        has_locks: whether the file system has locks, as far as that was tried.
    """

    def __init__(self, paths: ResultPaths) -> None:
        self._paths = paths
        self._descriptor: int | None = None
        self._is_new, self.has_locks = False, True
        self._journal: Journal | None = None
        self.heading = Heading()

    def __enter__(self) -> JournalLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def is_held(self) -> bool:
        """Whether this process holds the journal."""
        return self._descriptor is not None

    @property
    def journal(self) -> Journal:
        """The journal; only while it is held."""
        if self._journal is None:
            raise ValueError(f"{self._paths.journal} is not held")
        return self._journal

    def claim(self, create: bool = False, shared: bool = False) -> None:
        """Open and lock the journal, and read what it says of the run as a whole.

        Args:
            create: make the journal where there is none.
            shared: together with others that convert parts; whoever claims it alone is refused in the meantime.

        Raises:
            DestinationError: another process holds it, or what has its name is no file.
            OSError: it cannot be opened.
        """
        flags = os.O_RDWR | disk.NO_FOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
        for _ in range(_TRIES):
            self._descriptor = descriptor = self._opened(flags)
            self._read_heading(descriptor, shared)
            if self._is_still_there(descriptor):
                return
            # Its holder ended between our opening and our locking it.
            self.release()
            flags |= os.O_CREAT
        raise DestinationError(
            f"{quote(self._paths.journal)} is being created and removed by another process",
            "wait for that process to finish, then run again",
        )

    def _opened(self, flags: int) -> int:
        """Open the journal, and note whether it was made for that: only one process can have made it."""
        self._is_new = False
        if flags & os.O_CREAT:
            with suppress(FileExistsError):
                descriptor = disk.open_file(self._paths.journal, flags | os.O_EXCL)
                self._is_new = True
                return descriptor
        return disk.open_file(self._paths.journal, flags)

    def _read_heading(self, descriptor: int, shared: bool) -> None:
        """Lock the journal, then read its heading, which names the holder if it is locked already."""
        if not stat.S_ISREG(disk.fstat(descriptor).st_mode):
            raise DestinationError(
                f"{quote(self._paths.journal)} exists and is not a regular file", "move it, then run again"
            )
        is_locked = disk.lock(descriptor, shared)
        self.has_locks = is_locked is not None
        self._journal = Journal(self._paths.journal, descriptor)
        self.heading = heading(self._journal.records())
        if is_locked is False or (
            is_locked is None and (self._has_owner(descriptor) or (not shared and self._has_shares()))
        ):
            raise self._is_taken()

    def release(self) -> None:
        """Close the journal, which unlocks it."""
        descriptor, self._descriptor, self._journal = self._descriptor, None, None
        if descriptor is not None:
            disk.close_quietly(descriptor)

    def _is_still_there(self, descriptor: int) -> bool:
        path = self._paths.journal
        return disk.exists(path) and os.path.samestat(disk.stat(path), disk.fstat(descriptor))

    def _has_owner(self, descriptor: int) -> bool:
        """Whether the owner on record may still be writing, where no lock tells."""
        owner = self.heading.owner
        if self.heading == Heading():
            # Whoever made it has not written its first line yet, or died before.
            return not self._is_new and time.time() - disk.fstat(descriptor).st_mtime < SILENCE
        if owner is None:
            return False
        if owner.host == socket.gethostname():
            return owner.process != os.getpid() and _is_alive(owner)
        return time.time() - disk.fstat(descriptor).st_mtime < SILENCE

    def _has_shares(self) -> bool:
        """Whether processes that share the journal may still be at work, where no lock tells."""
        parts = self._paths.parts
        is_shared = self.heading.owner is None and disk.is_directory(parts)
        shares = [parts / name for name in disk.listdir(parts) if name.startswith(SHARE)] if is_shared else []
        return any(is_at_work(one) and time.time() - disk.stat(one).st_mtime < SILENCE for one in shares)

    def _is_taken(self) -> InUseError:
        owner, who = self.heading.owner, "another process"
        if owner is not None:
            who = f"process {owner.process} on {quote(owner.host)} (since {format_time(owner.since)})"
        return InUseError(
            f"{quote(self._paths.partial)} is being written by {who}", "wait for it to finish, or stop it"
        )


def is_at_work(share: Path) -> bool:
    """Return whether a process noted in this file that it is at work on its share, and not that it has ended.

    Raises:
        OSError: it cannot be read.
    """
    return whole_files.read_file(share, len(ENDED)) != ENDED


def _is_alive(owner: Owner) -> bool:
    """Whether that very process still runs: process numbers are reused."""
    import psutil

    try:
        return psutil.Process(owner.process).create_time() <= owner.since + _JITTER
    except psutil.Error:
        return False
