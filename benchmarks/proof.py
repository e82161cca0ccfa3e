"""Proof at reading speed: `verify` and `diff` of what is on a cold disk, and what that disk needs for the same bytes.

The disk's time is what it takes to read the same files past the page cache and do nothing with them (`device_time`), in
the same rounds.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import plots
from .conversions import removed, size, source_of, streamconv, words
from .machine import room
from .measuring import BenchmarkError, Run, Spread, interleaved, ratio, spread
from .measuring import measure as run
from .results import Data, Say, Setting, Table
from .running import every_round

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Proof at reading speed"
MODEL, BUDGET, GOAL = "mixtral", "1G", 1.1

_MIB = 1 << 20


def measure(setting: Setting, say: Say) -> Data:
    """Measure every command on a cold checkpoint of 2.5 GB, and the disk that it lies on."""
    found = []
    with source_of(MODEL, setting.folder, setting.quick) as source:
        dest, copy = setting.folder / "dest", setting.folder / "copy"
        if room(setting.folder) < 3 * size(source):
            raise BenchmarkError(f"{setting.folder} has not enough space for two copies of {size(source)} bytes")
        with removed(dest), removed(copy):
            say("preparing")
            run(streamconv(words((), source, dest, BUDGET)))
            shutil.copytree(source, copy)
            commands: dict[str, tuple[list[str | Path], list[Path]]] = {
                "verify DEST": (["verify", dest], [dest]),
                "verify SOURCE DEST": (["verify", source, dest, "--max-mem", BUDGET], [source, dest]),
                "diff A B": (["diff", source, copy, "--max-mem", BUDGET], [source, copy]),
            }
            for title, (command, cold) in commands.items():
                say(title)
                found.append({"command": title, **_measure(command, cold, setting.rounds)})
    return {"commands": found}


def _measure(command: Sequence[str | Path], cold: Sequence[Path], rounds: int) -> Data:
    ways = {
        "ours": partial(_run, streamconv([*map(str, command), "--quiet"]), cold),
        "disk": partial(_read, cold),
    }
    return {"bytes": sum(map(size, cold)), **every_round(interleaved(ways, rounds))}


def _run(command: Sequence[str], cold: Sequence[Path]) -> Run:
    return run(command, cold, synced=False)


def _read(cold: Sequence[Path]) -> Run:
    found = _run([sys.executable, "-m", f"{__package__}.device_time", *map(str, cold)], cold)
    return replace(found, seconds=float(found.said))


def tables(data: Data) -> Sequence[Table]:
    """Return a row per command: its time, the disk's, their ratio, processor time and memory."""
    columns = ("command", "GB", "s", "the disk's s", f"ratio (goal {GOAL})", "CPU s", "peak MiB")
    rows = [
        (
            one["command"],
            f"{one['bytes'] / 10**9:.2f}",
            *(f"{spread(one[way]['seconds']):.2f}" for way in ("ours", "disk")),
            f"{_ratio(one):.2f}",
            f"{spread(one['ours']['cpu']).median:.1f}",
            f"{max(one['ours']['peak']) / _MIB:.0f}",
        )
        for one in data["commands"]
    ]
    return [Table(columns, rows)]


def _ratio(one: Data) -> Spread:
    return ratio(one["ours"]["seconds"], one["disk"]["seconds"])


def figures(data: Data) -> Mapping[str, Figure]:
    """Plot the ratios to the disk's time, with their ranges."""
    series = {"to the disk": {one["command"]: _ratio(one) for one in data["commands"]}}
    return {"proof": plots.ratios(TITLE, "seconds / seconds of the disk", series)}
