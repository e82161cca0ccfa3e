"""A control group that limits memory including page cache, as a container does. Linux only, v1 or v2."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .measuring import BenchmarkError

_MOUNTS = Path("/proc/self/mounts")
_OWN = Path("/proc/self/cgroup")
_ATTEMPTS = 50


@contextmanager
def limited(limit: int) -> Iterator[Callable[[], None]]:
    """Make a control group of at most `limit` bytes; remove it at the end.

    Yields:
        A function that a child calls before its command runs, to join the group.

    Raises:
        BenchmarkError: there are no control groups for memory, or this user may not make one.
    """
    try:
        group = _make(limit)
    except OSError as error:
        raise BenchmarkError(f"cannot make a control group for memory here: {error}") from error
    try:
        yield lambda: _join(group)
    finally:
        _remove(group)


def _make(limit: int) -> Path:
    parent, setting = _place()
    group = parent / f"streamconv-benchmark-{os.getpid()}"
    group.mkdir()
    try:
        (group / setting).write_text(str(limit))
    except OSError:
        _remove(group)
        raise
    return group


def _place() -> tuple[Path, str]:
    """Return where a group can be made, and the name of its limit.

    Under v2 that is next to our own group, not in it: a group that holds processes cannot have a child with a limit.
    """
    mounts = [line.split() for line in _MOUNTS.read_text().splitlines()]
    for _, where, kind, options, *_ in mounts:
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(where), "memory.limit_in_bytes"
    for _, where, kind, *_ in mounts:
        if kind == "cgroup2":
            parent = Path(where, _own_group().parent.relative_to("/"))
            if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                return parent, "memory.max"
    raise OSError("neither version 1 nor version 2 delegates the memory controller")


def _own_group() -> Path:
    """Return this process's v2 group, relative to the visible root."""
    lines = _OWN.read_text().splitlines()
    return Path(next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/"))


def _join(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _remove(group: Path) -> None:
    """Remove a group once its last process is gone for the kernel too, which may be a moment after it was reaped."""
    for _ in range(_ATTEMPTS):
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)
