"""What memory and cores the host gives: read from the kernel, with the limits of control groups (v1 and v2)."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from . import pages, whole_files

try:
    import resource
except ImportError:  # a build of Python without it
    resource = None  # type: ignore[assignment]

_STATM, _MEMINFO = "/proc/self/statm", "/proc/meminfo"
_MAPPINGS = "/proc/self/smaps_rollup"
_LIMIT = 4 << 10
#: Where nobody knows.
_ASSUMED = 1 << 30


class Usage(NamedTuple):
    """Bytes of memory of this process: asked for, resident, and asked for as data."""

    space: int
    resident: int
    data: int


def usage() -> Usage | None:
    """Return what the kernel shows of this process's memory; `None` without /proc."""
    try:
        counts = [int(word) * pages.PAGE for word in whole_files.read_file(_STATM, _LIMIT).split()]
        return Usage(counts[0], counts[1], counts[5])
    except (OSError, LookupError, ValueError):
        return None


def _kibibytes(name: str, path: str) -> int:
    """Return the bytes that a line of a file of /proc states in kB; 0 without that line."""
    with suppress(OSError):
        found = re.search(rb"^%b: +(\d+) kB$" % name.encode(), whole_files.read_file(path, _LIMIT), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


def available_bytes() -> int:
    """Return the bytes of memory available now: the host's, or what the tightest control group (v1 or v2) leaves."""
    return min([_available_of_host(), *cgroup_rooms()])


def _available_of_host() -> int:
    """Return what /proc says; without it the pages that are free, which leaves out what the page cache would give."""
    if available := _kibibytes("MemAvailable", _MEMINFO):
        return available
    for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        with suppress(ValueError, OSError):
            if (count := os.sysconf(name)) > 0:
                return count * pages.PAGE
    return _ASSUMED


def resident_bytes() -> int:
    """Return the bytes of this process that are resident now, exactly where the kernel can count them.

    Linux 6.2 to 6.15 counts pages for each processor, and shows the sum without the last of each: with pages of 64 KiB
    and 128 processors, 16 MiB of a processor may be missing. Counting takes a millisecond for a gigabyte.
    """
    return max(roughly_resident_bytes(), _kibibytes("Rss", _MAPPINGS))


def roughly_resident_bytes() -> int:
    """Return what the kernel shows of that at no cost; without /proc the most that ever was."""
    if own := usage():
        return own.resident
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_bytes(process: int | None = None) -> int:
    """Return the most that was ever resident of a process (by default this one): `VmHWM`; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{process or 'self'}/status").read_text().splitlines()
    except OSError:
        lines = []
    found = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    return found if found or process else resident_bytes()


def cores() -> int:
    """Return how many processor cores this process may use."""
    with suppress(AttributeError, NotImplementedError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_rooms(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return what each control group of this process leaves: its limit less what is charged, without page cache."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    rooms: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            rooms += _rooms(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            rooms += _rooms(
                root / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )
    return rooms


def _rooms(root: Path, path: str, limit: str, usage: str, cache: str) -> list[int]:
    """Return what a group and all groups above it leave. In a container the mount shows the own group as the root."""
    rooms = []
    parts = [p for p in path.split("/") if p]
    for depth in range(len(parts), -1, -1):
        folder = root.joinpath(*parts[:depth])
        try:
            most = (folder / limit).read_text().strip()
            used = int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most.isdecimal():
            rooms.append(max(0, int(most) - used + int(stat.get(cache, 0))))
    return rooms
