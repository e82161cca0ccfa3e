"""How files are accessed: mapped, through the page cache, or past it. The user says, or the file system decides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

from ..errors import UsageError
from ..tensors.refs import SourceFile
from ..text import quote
from . import disk

_AUTO = "auto"
_IN_MEMORY = ("tmpfs", "ramfs")
_TAKES_DIRECT = ("ext4", "xfs")
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
_MOUNTS = 4 << 20
_PROBES = 16

#: Bytes of a run that are worth a request of their own, past the page cache: shorter ones gain from its reading ahead,
#: and from its putting them together.
DIRECT_LEAST = 1 << 20

#: The same where a part of a tensor is read, such as a head: what would be read ahead is for another time.
DIRECT_LEAST_OF_PART = 64 << 10


class Access(Enum):
    """How bytes come from files and get there; the values are words of `--io`."""

    MAP = "map"
    """Sources are mapped, window by window; outputs are written through the page cache."""

    READ = "read"
    """Sources are read, and outputs written, through the page cache."""

    DIRECT = "direct"
    """The device itself moves what is long enough, past the page cache, where the file system lets it."""


def check_io(io: str) -> None:
    """Refuse what is no way to access files.

    Raises:
        UsageError: not one of `auto`, `map`, `read`, `direct`.
    """
    ways = (_AUTO, *(way.value for way in Access))
    if io not in ways:
        raise UsageError(f"--io {quote(io)}: not one of {', '.join(ways)}")


def of_source(io: str, files: Sequence[SourceFile], once: bool = True) -> Access:
    """How windows come from the files of a source: as `io` says, or as is fastest for `auto`.

    Not past the page cache where that has them already, or where who reads them may come back: not just `once`.
    """
    if io != _AUTO:
        return Access(io)
    found = _fastest(files[0].path) if files else Access.READ
    return Access.READ if found is Access.DIRECT and (not once or _are_cached(files)) else found


def of_destination(io: str, folder: Path) -> Access:
    """How files come into a folder: as `io` says, or as is fastest for `auto`."""
    return _fastest(folder) if io == _AUTO else Access(io)


def _fastest(path: Path) -> Access:
    """Mapped where files are in memory anyway; past the page cache where the processor would be what limits.

    A disk takes huge pages in few large requests, and pages of 4 KiB in so many small ones that it is slower than
    through the page cache (figures: `docs/performance.md`). Elsewhere files are read, not mapped: a page fault that
    meets a lost network or a broken disk is not an error but a signal.
    """
    kind = _file_system(path)
    if kind in _IN_MEMORY:
        return Access.MAP
    return Access.DIRECT if kind in _TAKES_DIRECT and _has_huge_pages() else Access.READ


def _are_cached(files: Sequence[SourceFile]) -> bool:
    """Whether the page cache has most of the files, judged by a few bytes all over them."""
    total = sum(file.size for file in files)
    places, before, found = [total * number // _PROBES for number in range(_PROBES)], 0, 0
    for file in files:
        inside = [place - before for place in places if before <= place < before + file.size]
        before += file.size
        if inside:
            with suppress(OSError):
                found += sum(disk.are_cached(file.path, inside))
    return 2 * found > _PROBES


def _file_system(path: Path) -> str:
    """The type of the file system that `path` lies on, from the mount table."""
    try:
        device = disk.stat(path).st_dev
        lines = disk.read_file("/proc/self/mountinfo", _MOUNTS).decode(errors="replace").splitlines()
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return next((line.split(" - ")[1].split()[0] for line in lines if line.split()[2] == wanted), "")


def _has_huge_pages() -> bool:
    """Whether the system gives huge pages to who asks for them."""
    with suppress(OSError):
        return b"[never]" not in disk.read_file(_HUGE_PAGES, 1 << 10)
    return False
