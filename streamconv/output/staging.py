"""The place where a result is built, and how it gets its final name.

    enter    lock the journal that an earlier run left      →  is it finished? is it of the same conversion?
    begin    make what is missing, and say who holds it
    commit   manifest, seal, rename, sync                   →  nothing is left but the result
    leave    keep what is on record, or leave nothing

The order of steps is such that after a crash between any two the next run knows where it stands: the journal is made
before what it speaks of, and removed after it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import xxhash

from ..errors import DestinationError, storing
from ..storage import disk, whole_files
from ..text import quote, setting
from . import leftovers
from .fingerprint import Fingerprint, differences
from .journal import Heading, Journal
from .lock import JournalLock
from .paths import ResultPaths
from .trial import remove_trial, try_place

#: Seconds between two records of who holds the journal, far fewer than a silent owner is waited for.
_HOLD_EVERY = 60.0


class Staging:
    """`DEST.partial` and its journal. A context manager: it claims what an earlier run left, and releases it.

    Args:
        paths: the names of the result.
        fingerprint: which conversion it is, as the journal has it.
        restart: what an earlier run left is discarded.

    Attributes:
        is_worth_keeping: whether what was built can be resumed from; else a run that fails removes it.
        is_in_place: whether the result has its final name.
    """

    def __init__(self, paths: ResultPaths, fingerprint: Fingerprint, restart: bool = False) -> None:
        self.paths = paths
        self.is_worth_keeping = self.is_in_place = False
        self._fingerprint, self._restart = fingerprint, restart
        self._lock = JournalLock(paths)
        self._begun = False
        self._held = 0.0

    def __enter__(self) -> Staging:
        """Claim what an earlier run left.

        Raises:
            DestinationError: another process holds it, or what is in its place is not ours.
            StorageError: it cannot be read.
        """
        try:
            with storing(self.paths.journal, "cannot open"):
                if disk.exists(self.paths.journal):
                    self._lock.claim()
                    leftovers.check_claimed(self.paths, self._heading, self._restart)
                else:
                    leftovers.check_unclaimed(self.paths)
                self._check_aside()
        except BaseException:
            # Nobody leaves a context that was not entered.
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if kind is not None and self._begun and not (self.is_worth_keeping or self.is_in_place):
                with suppress(OSError):
                    self._restore_replaced()
                    self._remove()

    def _check_aside(self) -> None:
        """Trust that an old result is aside where the journal says so, and only as long as that is there."""
        if not self._heading.is_aside:
            leftovers.check_no_other_aside(self.paths)
        elif not disk.exists(self.paths.replaced):
            self._note_aside(False)

    # -- an earlier run ------------------------------------------------------------------------------------------------

    @property
    def _heading(self) -> Heading:
        return self._lock.heading

    def is_finished(self) -> bool:
        """Return whether an earlier run put its result in place, and was stopped before it had cleaned up."""
        sealed, path = self._heading.sealed, self.paths.path
        with storing(path, "cannot read"):
            if sealed is None or not disk.exists(path) or disk.device_and_inode(path) != (sealed.device, sealed.inode):
                return False
            manifests = (self.paths.manifest, *([self.paths.pending_manifest] if self.paths.is_file else []))
            return any(disk.is_file(one) and _digest_of(one) == sealed.digest for one in manifests)

    def finish_cleanup(self) -> None:
        """Do what an earlier run did not get to after it put its result in place.

        Raises:
            StorageError: the file system refuses.
        """
        with storing(self.paths.path, "cannot clean up after"):
            if self.paths.is_file and disk.exists(self.paths.pending_manifest):
                disk.rename(self.paths.pending_manifest, self.paths.manifest)
            disk.sync_directory(self.paths.path.parent)
            self._clean_up()

    def is_shared(self) -> bool:
        """Return whether an earlier process made the place for parts that several of them write."""
        return self._heading.arguments is not None

    def check_same(self, discarding: str = "") -> None:
        """Refuse to resume another conversion; but what is no longer there is not in its way.

        Args:
            discarding: how to discard it, where that is not to run again with `restart`.

        Raises:
            DestinationError: it is another; the message says how it differs, the hint both ways out.
        """
        begun = self._heading.conversion
        if not begun or not self._heading.has_records or self._restart:
            return
        with storing(self.paths.partial, "cannot stat"):
            is_there = disk.exists(self.paths.partial)
        if not is_there:
            return
        if different := differences(begun, self._fingerprint):
            raise DestinationError(
                f"{quote(self.paths.partial)} holds a different unfinished conversion: {'; '.join(different)}",
                "to resume it, repeat its source and options; "
                + (discarding or f"to discard it, add {setting('restart', True)}"),
            )

    # -- this run ------------------------------------------------------------------------------------------------------

    def begin(self, names: Sequence[str]) -> Journal:
        """Make what is missing, remove what does not belong there, and record in the journal who holds it.

        Args:
            names: the files that hold tensors.

        Raises:
            DestinationError: another process holds it.
            StorageError: the file system refuses.
        """
        with storing(self.paths.journal, "cannot create"):
            if not self._lock.is_held:
                self._lock.claim(create=True)
                leftovers.check_claimed(self.paths, self._heading, self._restart)
                self.check_same()
            self._begun = True
            self.is_worth_keeping = self._heading.has_records
            if self._restart or differences(self._heading.conversion, self._fingerprint):
                self._discard_earlier()
                # With its holder at once: who has no locks goes by that.
                self._note_held(self._fingerprint)
                disk.sync_directory(self.paths.path.parent)
            else:
                self._note_held()
            try_place(self.paths)
        with storing(self.paths.partial, "cannot create"):
            if not self.paths.is_file:
                self._make_directory(names)
        return self._journal

    def hold(self) -> None:
        """Say again who holds the journal, if that was last said a minute ago: where no lock tells, its time does."""
        if time.monotonic() - self._held > _HOLD_EVERY:
            self._note_held()

    def _note_held(self, *first: object) -> None:
        self._held = time.monotonic()
        self._journal.append([*first, ["held", os.getpid(), socket.gethostname(), time.time()]])

    @property
    def _journal(self) -> Journal:
        return self._lock.journal

    def _discard_earlier(self) -> None:
        """Remove what an earlier run left, and forget its records, but for where it put the old destination."""
        self.is_worth_keeping = False
        self._lock.heading = Heading(is_aside=self._heading.is_aside)
        # In this order: of what is built without a journal that says so, nobody could tell whose it is.
        self._remove_built()
        disk.sync_directory(self.paths.path.parent)
        self._journal.clear()
        if self._heading.is_aside:
            self._note_aside(True)

    def _make_directory(self, names: Sequence[str]) -> None:
        if not disk.exists(self.paths.partial):
            disk.make_directory(self.paths.partial)
            disk.sync_directory(self.paths.path.parent)
        leftovers.remove_others(self.paths, names)
        for folder in sorted({Path(name).parent for name in names}):
            whole_files.make_directories(self.paths.partial, folder)

    # -- the end -------------------------------------------------------------------------------------------------------

    def commit(self, manifest: bytes) -> None:
        """Give the built and synced files their final name, with their manifest.

        Raises:
            StorageError: the file system refuses.
        """
        with storing(self.paths.path, "cannot put in place"):
            self._commit_file(manifest) if self.paths.is_file else self._commit_directory(manifest)
        with storing(self.paths.partial, "cannot clean up"):
            self._clean_up()

    def _seal(self, manifest: bytes) -> None:
        """Record that a run that finds this inode under the final name has nothing left to do."""
        self._journal.append([["sealed", _digest(manifest), *disk.device_and_inode(self.paths.partial)]])

    def _commit_file(self, manifest: bytes) -> None:
        """Remove the old manifest first and add the new one last: none ever stands next to another's checkpoint."""
        folder = self.paths.path.parent
        whole_files.write_synced(self.paths.pending_manifest, manifest)
        disk.sync_directory(folder)
        self._seal(manifest)
        if disk.exists(self.paths.manifest):
            disk.remove(self.paths.manifest)
            disk.sync_directory(folder)
        disk.rename(self.paths.partial, self.paths.path)
        disk.sync_directory(folder)
        self.is_in_place = True
        disk.rename(self.paths.pending_manifest, self.paths.manifest)
        disk.sync_directory(folder)

    def _commit_directory(self, manifest: bytes) -> None:
        path, partial = self.paths.path, self.paths.partial
        whole_files.write_synced(self.paths.pending_manifest, manifest)
        disk.sync_directory(partial)
        self._seal(manifest)
        if not disk.is_directory(path) or not disk.listdir(path):
            disk.rename(partial, path)
        elif not disk.exchange(partial, path):
            self._replace_in_two_steps()
        disk.sync_directory(path.parent)
        self.is_in_place = True

    def _replace_in_two_steps(self) -> None:
        """Move the old result aside and the new one in its place, where the file system cannot swap two names."""
        self._check_aside()
        self._note_aside(True)
        disk.rename(self.paths.path, self.paths.replaced)
        try:
            disk.rename(self.paths.partial, self.paths.path)
        except OSError:
            disk.rename(self.paths.replaced, self.paths.path)
            raise

    def _note_aside(self, is_aside: bool) -> None:
        self._journal.append([["aside", is_aside]])
        self._heading.is_aside = is_aside

    def _restore_replaced(self) -> None:
        """Put the old result back, if a crash came between the two renames and no new one takes its place."""
        if self._heading.is_aside and disk.exists(self.paths.replaced) and not disk.exists(self.paths.path):
            disk.rename(self.paths.replaced, self.paths.path)

    def _clean_up(self) -> None:
        """Remove all but the result."""
        if self._heading.is_aside and disk.exists(self.paths.replaced):
            whole_files.remove_tree(self.paths.replaced)
        self._remove()

    def _remove(self) -> None:
        self._remove_built()
        if disk.exists(self.paths.journal):
            disk.remove(self.paths.journal)

    def _remove_built(self) -> None:
        pending = [self.paths.pending_manifest] if self.paths.is_file else []
        for path in (*pending, self.paths.partial, self.paths.parts):
            if disk.exists(path):
                whole_files.remove_any(path)
        remove_trial(self.paths)


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def _digest_of(path: Path) -> str:
    return _digest(whole_files.read_file(path, disk.stat(path).st_size))
