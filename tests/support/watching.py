"""Shared by tests of budgets: memory and bytes read, seen from outside of the process that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from os import fsync
from pathlib import Path
from typing import Any

from support import nowhere


@dataclass(frozen=True)
class Seen:
    """What was seen of a run from outside: peak resident memory and bytes fetched from the disk, and its report."""

    peak: int
    fetched: int
    report: dict[str, Any]


def watch(arguments: list[str], code: int = 0) -> Seen:
    command = [sys.executable, "-m", "streamconv", *arguments, "--quiet", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=nowhere()) as process:
        peaks: dict[int, int] = {}
        fetched = 0
        while process.poll() is None:
            for pid in descendants(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), number(f"/proc/{pid}/status", "VmHWM:") * 1024)
            fetched = max(fetched, number(f"/proc/{process.pid}/io", "read_bytes:"))
            time.sleep(0.005)
        out, err = process.communicate()
    assert process.returncode == code, err
    return Seen(sum(peaks.values()), fetched, json.loads(out))


def drop_from_cache(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def descendants(pid: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(c) for thread in threads for c in (thread / "children").read_text().split()]
    except OSError:
        children = []
    return [pid, *(p for child in children for p in descendants(child))]


def number(path: str, key: str) -> int:
    """The number after `key` in a file of /proc; 0 where the process is gone."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)
