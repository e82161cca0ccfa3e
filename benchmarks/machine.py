"""The machine that was measured on: processor, memory, kernel, and the file systems with their speed."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from streamconv.storage.mounts import Mount, mount_of
from streamconv.storage.regions import Region
from streamconv.text import format_size

from .measuring import drop, spread
from .results import Data

_BLOCK = 16 << 20

_SHARES_BLOCKS = {"bcachefs", "btrfs", "ocfs2", "xfs", "zfs"}

# Memory kept for the processes of a benchmark themselves, when the file system is in memory.
_PROCESSES = 2 << 30


def describe(folders: Mapping[str, Path], quick: bool) -> Data:
    """Describe the machine and each folder's file system, by a name such as `disk`; writes and reads 1 GB there."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": psutil.virtual_memory().total,
        "load": os.getloadavg()[0],
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "folders": {name: _describe_folder(folder, quick) for name, folder in folders.items()},
    }


def lines(data: Data) -> list[str]:
    """Return a description as lines for people."""
    machine = f"{data['processor']}, {data['cores']} cores, {format_size(data['memory'])} of memory"
    software = f"{data['kernel']}, {data['python']}, load of others at the start {data['load']:.1f}"
    return [machine, software, *(_line(*one) for one in data["folders"].items())]


def room(folder: Path) -> int:
    """Return the free bytes there; on tmpfs, no more than memory has free."""
    free = shutil.disk_usage(folder).free
    return min(free, psutil.virtual_memory().available - _PROCESSES) if mount(folder).kind == "tmpfs" else free


def mount(folder: Path) -> Mount:
    """Return the file system that holds a folder."""
    return mount_of(folder) or Mount("unknown", "unknown", "")


def busy_seconds(folder: Path) -> float | None:
    """Return for how long the device below a folder has had requests, since it was started; `None` without a device.

    Source: Linux, Documentation/block/stat.rst, the tenth figure, in milliseconds.
    """
    file = Path("/sys/dev/block", mount(folder).number, "stat")
    return int(file.read_text().split()[9]) / 1000 if file.exists() else None


def never_share(folder: Path) -> list[str]:
    """Return options with which `cp` copies blocks there that it would otherwise share."""
    return ["--reflink=never"] if mount(folder).kind in _SHARES_BLOCKS else []


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _describe_folder(folder: Path, quick: bool) -> Data:
    found = mount(folder)
    speeds = list(_speeds(folder, 64 << 20 if quick else 1 << 30))
    return {
        "file_system": found.kind,
        "device": found.device,
        "read_ahead": _read_ahead(found.number),
        **{way: [one[way] for one in speeds] for way in ("write", "read", "both")},
    }


def _read_ahead(number: str) -> int | None:
    """Return the bytes that the kernel reads ahead; a partition has the value of its disk."""
    device = Path(f"/sys/dev/block/{number}").resolve()
    places = (Path(f"/sys/class/bdi/{number}"), device / "bdi", device / "queue", device.parent / "queue")
    for place in places:
        if (file := place / "read_ahead_kb").exists():
            return int(file.read_text()) * 1024
    return None


def _speeds(folder: Path, size: int, repeats: int = 3) -> Iterator[dict[str, float]]:
    """Yield the bytes per second at which the device writes, reads, and does both at once, for each repeat."""
    one, other = folder / "speed-1", folder / "speed-2"
    region = Region(_BLOCK)
    # Random, since some disks compress.
    buffer = region.array(min(size, _BLOCK), np.dtype(np.uint8))
    buffer[...] = np.frombuffer(os.urandom(len(buffer)), np.uint8)
    write, read = (partial(work, size=size, buffer=buffer.data) for work in (_write, _read))
    try:
        for _ in range(repeats):
            speeds = {"write": size / _seconds(partial(write, one))}
            drop(one)
            speeds["read"] = size / _seconds(partial(read, one))
            drop(one)
            speeds["both"] = 2 * size / _seconds(partial(read, one), partial(write, other))
            yield speeds
            other.unlink()
    finally:
        one.unlink(missing_ok=True)
        other.unlink(missing_ok=True)


def _seconds(*works: Callable[[], None]) -> float:
    """Return how long functions take that run in parallel."""
    started = time.monotonic()
    with ThreadPoolExecutor(len(works)) as threads:
        for done in [threads.submit(work) for work in works]:
            done.result()
    return time.monotonic() - started


def _write(path: Path, size: int, buffer: memoryview) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        for offset in range(0, size, len(buffer)):
            os.pwrite(descriptor, buffer, offset)
        os.fsync(descriptor)


def _read(path: Path, size: int, buffer: memoryview) -> None:
    with opened(path, os.O_RDONLY) as descriptor:
        for offset in range(0, size, len(buffer)):
            os.preadv(descriptor, [buffer], offset)


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file for access past the page cache, where the file system supports that."""
    try:
        descriptor = os.open(path, flags | os.O_DIRECT)
    except OSError:
        descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _line(name: str, folder: Data) -> str:
    ahead = "" if folder["read_ahead"] is None else f", read-ahead {format_size(folder['read_ahead'])}"
    read, write, both = (spread(speed / 1e9 for speed in folder[way]) for way in ("read", "write", "both"))
    return (
        f"{name}: {folder['file_system']} on {folder['device']}{ahead}, past the page cache reads {read:.2f} GB/s, "
        f"writes {write:.2f} GB/s, both at once {both:.2f} GB/s in all"
    )
