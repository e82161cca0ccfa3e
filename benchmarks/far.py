"""Storage that lies elsewhere: a source on a file system where every request takes milliseconds.

A loop through FUSE shows a folder on tmpfs, each request delayed, each stream at a rate. Needs root and /dev/fuse.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from . import far_mount
from .conversions import removed, source_of, streamconv, words
from .measuring import BenchmarkError, Run, interleaved, ratio, spread
from .measuring import measure as run
from .results import Data, Say, Setting, Table
from .running import every_round

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Storage that lies elsewhere"
BUDGET = "1G"

#: Seconds a request, and bytes a second of one stream.
_LATENCIES = (0.0, 0.001, 0.005, 0.020)
_RATES = (1e9, 1e8)
_WAYS = ("auto", "read")


def measure(setting: Setting, say: Say) -> Data:
    """Convert a source that is far, at each latency and rate, as `--io auto` chooses and through the page cache."""
    if setting.memory is None:
        raise BenchmarkError("no tmpfs with enough room")
    if os.geteuid() or not Path("/dev/fuse").exists():
        raise BenchmarkError("mounting needs root and /dev/fuse")
    found = []
    with source_of("mixtral", setting.memory, setting.quick) as source:
        for rate in _RATES:
            say(f"{rate / 1e6:.0f} MB/s a stream")
            contestants = {
                f"{way} {latency}": partial(_convert, source, way, latency, rate)
                for latency in _LATENCIES
                for way in _WAYS
            }
            found.append({"rate": rate, "rounds": every_round(interleaved(contestants, setting.rounds))})
    return {"rates": found}


def _convert(source: Path, way: str, latency: float, rate: float) -> Run:
    dest = source.with_name("dest")
    with mounted(source, latency, rate) as far, removed(dest):
        return run(streamconv(words(["--io", way], far, dest, BUDGET)), synced=False)


@contextmanager
def mounted(folder: Path, latency: float, rate: float) -> Iterator[Path]:
    """Show a folder as if it were far away; yield where.

    Raises:
        BenchmarkError: it cannot be mounted here.
    """
    point = folder.with_name("far")
    point.mkdir()
    command = [sys.executable, "-m", "benchmarks.far_mount", str(folder), str(point)]
    command += ["--latency", str(latency), "--rate", str(rate)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = server.stdout.readline() if server.stdout else ""
        if said != "mounted\n":
            raise BenchmarkError(f"cannot mount: {said.strip()}")
        yield point
    finally:
        far_mount.unmount(point)
        server.wait()
        point.rmdir()


def tables(data: Data) -> Sequence[Table]:
    """Return a row for each rate and latency."""
    columns = (
        "latency",
        "a stream",
        "auto, s",
        "part of the rate at 0 ms",
        "page cache, s",
        "auto / page cache",
    )
    return [Table(columns, [_row(one, latency) for one in data["rates"] for latency in _LATENCIES])]


def _row(one: Data, latency: float) -> Sequence[str]:
    auto, read = (one["rounds"][f"{way} {latency}"]["seconds"] for way in _WAYS)
    return (
        f"{latency * 1000:.0f} ms",
        f"{one['rate'] / 1e6:.0f} MB/s",
        f"{spread(auto):.2f}",
        f"{_kept(one, 'auto', latency):.2f}",
        f"{spread(read):.2f}",
        f"{ratio(auto, read):.2f}",
    )


def figures(data: Data) -> dict[str, Figure]:
    """Plot what part of the rate is left, over the latency, for each rate of a stream."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for one, way in product(data["rates"], _WAYS):
        kept = [_kept(one, way, latency) for latency in _LATENCIES]
        label = f"{'auto' if way == 'auto' else 'page cache'}, {one['rate'] / 1e6:.0f} MB/s a stream"
        axes.plot([latency * 1000 for latency in _LATENCIES], kept, "o-" if way == "auto" else "o--", label=label)
    axes.set(title=TITLE, xlabel="ms a request", ylabel="part of the rate of auto at 0 ms", ylim=(0, None))
    axes.legend()
    return {"far": figure}


def _kept(one: Data, way: str, latency: float) -> float:
    return ratio(one["rounds"][f"auto {_LATENCIES[0]}"]["seconds"], one["rounds"][f"{way} {latency}"]["seconds"]).median
