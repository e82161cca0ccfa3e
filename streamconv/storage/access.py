"""How files are accessed: through the page cache, or past it. The user chooses, or the file system decides."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from enum import Enum
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from ..errors import UsageError
from ..tensors.extents import SourceFile
from ..text import format_size, quote, setting
from . import disk, mounts, pages, streams
from .in_order import in_order
from .mounts import mount_of

_AUTO = "auto"
_REQUESTED = "requested"
_PROBES = 16

#: The file systems that are read and written past the page cache unless something else is asked.
TAKES_DIRECT = ("ext4", "xfs")

#: Bytes of a run worth a request of its own past the page cache: shorter runs gain from the cache's read-ahead, and
#: from its merging of requests.
DIRECT_LEAST = 1 << 20

#: The same where part of a tensor is read, such as a head: read-ahead would fetch what this read does not need.
DIRECT_LEAST_OF_PART = 64 << 10


class Access(Enum):
    """How files are read and written. The values are the words that `io` takes."""

    READ = "read"
    """Sources are read, and outputs written, through the page cache."""

    DIRECT = "direct"
    """Long runs are read and written past the page cache (O_DIRECT), where the file system allows it."""

    FAR = "far"
    """The same, in pieces of which several are on their way at once: for storage where each request takes long."""

    @property
    def is_direct(self) -> bool:
        """Whether long runs go past the page cache."""
        return self is not Access.READ


class ChosenAccess(Struct, frozen=True):
    """An access and why it was chosen; `str` gives both, such as `direct (ext4, huge pages)`.

    Attributes:
        access: how the files are accessed.
        reason: the file system and what else decided, or that the access was requested.
        writes: files are written.
    """

    access: Access
    reason: str
    writes: bool = False

    @property
    def way(self) -> str:
        """The access in a word: `read`, `written`, `direct` or `far`."""
        if self.access is not Access.READ:
            return str(self.access.value)
        return "written" if self.writes else "read"

    def __str__(self) -> str:
        return f"{self.way} ({self.reason})"


def check_io(io: str) -> None:
    """Refuse a word that names no access.

    Raises:
        UsageError: not one of `auto`, `read`, `direct`, `far`.
    """
    words = (_AUTO, *(access.value for access in Access))
    if io not in words:
        raise UsageError(f"unknown value for {setting('io')}: {quote(io)}", f"choose one of {', '.join(words)}")


def for_reading(io: str, files: Sequence[SourceFile], reads_once: bool = True) -> ChosenAccess:
    """Choose how windows of the source's files are read.

    Args:
        io: a word that `check_io` accepts. Only `auto` leaves a choice.
        files: all files of the source.
        reads_once: every byte is read once at most. Files that are read again, and files that the page cache holds
            already, are not read past it.
    """
    if io != _AUTO:
        return ChosenAccess(Access(io), _REQUESTED)
    if not files:
        return ChosenAccess(Access.READ, "no files")
    chosen = _fastest(files[0].path)
    if not chosen.access.is_direct:
        return chosen
    if not reads_once:
        return ChosenAccess(Access.READ, "parts may be read again")
    if are_mostly_cached(files, streams.AT_ONCE if chosen.access is Access.FAR else 1):
        return ChosenAccess(Access.READ, "already in the page cache")
    return chosen


def for_writing(io: str, directory: Path) -> ChosenAccess:
    """Choose how files in `directory` are written. Only `auto` leaves a choice."""
    chosen = _fastest(directory) if io == _AUTO else ChosenAccess(Access(io), _REQUESTED)
    return replace(chosen, writes=True)


def _fastest(path: Path) -> ChosenAccess:
    """Choose `far` for what is reached over a network or through another process, `direct` for disks, else `read`.

    A disk takes huge pages in few large requests, and pages of 4 KiB in so many small ones that it is slower than
    through the page cache (figures: `docs/performance.md`); pages of 64 KiB are large enough by themselves. Files are
    never mapped: it gains nothing, and a page fault that meets a lost network or a broken disk is not an error but a
    signal.
    """
    mount = mount_of(path)
    if mount is None:
        return ChosenAccess(Access.READ, "unknown file system")
    if mounts.is_far(mount.kind):
        return ChosenAccess(Access.FAR, f"{mount.kind}, {streams.AT_ONCE} requests at once")
    if mount.kind not in TAKES_DIRECT:
        return ChosenAccess(Access.READ, mount.kind)
    if pages.PAGE >= pages.LARGE_PAGE:
        return ChosenAccess(Access.DIRECT, f"{mount.kind}, pages of {format_size(pages.PAGE)}")
    if not pages.has_huge_pages():
        return ChosenAccess(Access.READ, f"{mount.kind}, no huge pages")
    return ChosenAccess(Access.DIRECT, f"{mount.kind}, huge pages")


def are_mostly_cached(files: Sequence[SourceFile], at_once: int = 1) -> bool:
    """Return whether the page cache holds most of the files, judged by a few bytes spread over them.

    Args:
        files: the files.
        at_once: how many are opened at a time.
    """
    with closing(in_order(_probes(files), [_cached_of] * at_once)) as found:
        return 2 * sum(found) > _PROBES


def _probes(files: Sequence[SourceFile]) -> Iterator[tuple[Path, list[int]]]:
    """Yield the places to look at, by file."""
    total, before = sum(file.size for file in files), 0
    places = [total * number // _PROBES for number in range(_PROBES)]
    for file in files:
        inside = [place - before for place in places if before <= place < before + file.size]
        before += file.size
        if inside:
            yield file.path, inside


def _cached_of(probe: tuple[Path, list[int]]) -> int:
    with suppress(OSError):
        return sum(are_cached(*probe))
    return 0


def are_cached(path: Path, offsets: Iterable[int]) -> list[bool]:
    """Return for each offset whether the page cache is known to hold the byte there."""
    descriptor = disk.open_file(path, os.O_RDONLY)
    try:
        return [_is_cached(descriptor, offset) for offset in offsets]
    finally:
        disk.close_quietly(descriptor)


def _is_cached(descriptor: int, offset: int) -> bool:
    with suppress(OSError):
        return disk.is_cached(descriptor, offset)
    return False
