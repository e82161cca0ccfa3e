"""A cluster: what a second worker brings, what the driver costs, and what a model predicts for many nodes.

1. One conversion by one worker and by two on this machine, and without any, on disk and on tmpfs (`cluster_runs`).
2. The driver alone, for DeepSeek-V3 from its headers (`cluster_driver`): real plan, real parts, realistic journals.
3. Predictions for DeepSeek-V3 on 1 to 256 nodes (`simulation`), from the real plan's parts and what 1 and 2 measured,
   for the clusters in `SHARED`. `python -m benchmarks.simulation` predicts for others.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import cluster_runs, simulation
from .checkpoints import deepseek_v3
from .conversions import removed
from .measuring import BenchmarkError, Run, interleaved, spread
from .measuring import measure as run
from .results import Data, Say, Setting, Table
from .simulation import END, IDLE, START, Load, Machines, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "A cluster"

MIB, GB = 1 << 20, 10**9

#: File systems that the nodes share, by what they read and write in all, bytes a second.
SHARED: Mapping[str, float] = {
    "NFS, 2 GB/s": 2 * GB,
    "Lustre, 40 GB/s": 40 * GB,
    "Lustre, 200 GB/s": 200 * GB,
}
#: Bytes a second that a node reads and writes, and how many of its cores convert.
BANDWIDTH, CORES = 2.5 * GB, 8
#: How many nodes.
NODES = tuple(2**n for n in range(9))

_FEW = "256"
_MOST_ROUNDS = 3
_SMALL = {"num_hidden_layers": 4, "n_routed_experts": 8}
# Steps of the driver by when they happen; the rest is neither, or the workers'.
_STARTS = ("plan", "write and read tokens", "fingerprint", "cut parts", "scopes of parts", "make files")
_ENDS = ("copy the parts' journals", "read the journal", "look for boxes that are left", "finish files", "manifest")


def measure(setting: Setting, say: Say) -> Data:
    """Measure the workers and the driver, and predict; without Ray, the workers are skipped, with a note."""
    data: Data = {"notes": []}
    try:
        data["workers"] = cluster_runs.measure(setting, say)
    except BenchmarkError as error:
        data["notes"].append(f"workers: not measured, {str(error).strip().splitlines()[-1]}")
    data["driver"] = _driver(setting, say)
    data["model"] = _model(data)
    return data


# -- the driver --------------------------------------------------------------------------------------------------------


def _driver(setting: Setting, say: Say) -> Data:
    """Measure the driver with few parts, and with as many as the plan has."""
    source = setting.folder / "v3"
    counts = {"few": [_FEW], "plan's": []}
    with removed(source):
        say("the driver, for DeepSeek-V3")
        deepseek_v3(source, **(_SMALL if setting.quick else {}))
        found = {name: _fill(source, name, count) for name, count in counts.items()}
        try:
            ways = {name: partial(_drive, source, name, count) for name, count in counts.items()}
            runs = interleaved(ways, min(setting.rounds, _MOST_ROUNDS))
        finally:
            for name in counts:
                shutil.rmtree(_journals(source, name), ignore_errors=True)
    return {name: {**found[name], **_steps(some)} for name, some in runs.items()}


def _journals(source: Path, name: str) -> Path:
    return source.with_name(f"journals of {name}")


def _words(way: str, source: Path, journals: Path, count: Sequence[str]) -> list[str]:
    words = [way, str(source), str(source.with_name("dest")), str(journals), str(source.with_name("out")), *count]
    return [sys.executable, "-m", "benchmarks.cluster_driver", *words]


def _fill(source: Path, name: str, count: Sequence[str]) -> Data:
    run(_words("fill", source, _journals(source, name), count), synced=False)
    found: Data = json.loads(source.with_name("out").read_text())
    return found


def _drive(source: Path, name: str, count: Sequence[str]) -> Run:
    """Run the driver with a copy of the journals, and remove the result; `said` is what it measured."""
    journals, dest = source.with_name("journals"), source.with_name("dest")
    with removed(journals), removed(dest), removed(dest.with_name("dest.partial")):
        shutil.copytree(_journals(source, name), journals)
        found = run(_words("drive", source, journals, count), synced=False)
    return Run(found.seconds, found.peak, cpu=found.cpu, said=source.with_name("out").read_text())


def _steps(runs: Sequence[Run]) -> Data:
    steps = [json.loads(one.said)["seconds"] for one in runs]
    return {
        "seconds": [one.seconds for one in runs],
        "cpu": [one.cpu for one in runs],
        "peak": [one.peak for one in runs],
        "steps": {name: [one[name] for one in steps] for name in steps[0]},
    }


def _median(driver: Data, name: str, clock: int = 0) -> float:
    return spread(one[clock] for one in driver["steps"][name]).median


# -- predictions -------------------------------------------------------------------------------------------------------


def _model(data: Data) -> Data:
    """Return the model's parameters for DeepSeek-V3, in seconds and bytes a second.

    Workers plan when the driver has. What Ray takes to start is what the command takes longer with it, besides the
    conversion: the rest is the same without.
    """
    driver = data["driver"]["plan's"]
    start = sum(_median(driver, name) for name in _STARTS) + _median(driver, "plan")
    model = {"parts": driver["parts"], "end": sum(_median(driver, name) for name in _ENDS)}
    if "workers" not in data:
        return {**model, "start": start, "per_part": 0.0, "processor": GB * CORES}
    workers = data["workers"]
    known = cluster_runs.machines_of(workers)["tmpfs"]
    runs = workers["tmpfs" if "tmpfs" in workers else "disk"]
    besides = [np.subtract(runs[way]["whole"], runs[way]["conversion"]) for way in ("1", "alone")]
    ray = float(np.median(besides[0] - besides[1]))
    return {**model, "start": start + ray, "per_part": known.per_part, "processor": known.processor * CORES}


def _predictions(data: Data) -> dict[str, dict[int, Prediction]]:
    model = data["model"]
    parts = [Load(*part) for part in model["parts"]]
    known = Machines(0, model["processor"], BANDWIDTH, 0, model["start"], model["end"], model["per_part"])
    return {
        name: simulation.predictions(parts, replace(known, shared=shared), NODES) for name, shared in SHARED.items()
    }


# -- tables and plots --------------------------------------------------------------------------------------------------


def tables(data: Data) -> Sequence[Table]:
    """Return tables of workers, of the model's check, of the driver, and of predictions for each file system."""
    workers = data.get("workers")
    return [
        *([cluster_runs.table(workers), cluster_runs.table_of_checks(workers)] if workers else []),
        _table_of_driver(data["driver"]),
        *(simulation.table(f"nodes: {name}", found) for name, found in _predictions(data).items()),
    ]


def _table_of_driver(found: Data) -> Table:
    columns = [
        "the driver, DeepSeek-V3",
        *(f"{len(one['parts']):,} parts: {what}" for one in found.values() for what in ("s", "CPU s")),
        "goal",
    ]
    few = found["few"]
    rows = [
        (name, *(f"{_median(one, name, clock):.2f}" for one in found.values() for clock in (0, 1)), "")
        for name in few["steps"]
    ]
    whole = (f"{spread(one[what]):.1f}" for one in found.values() for what in ("seconds", "cpu"))
    peaks = (text for one in found.values() for text in (f"{max(one['peak']) / MIB:.0f}", ""))
    return Table(columns, [*rows, ("the process", *whole, "10"), ("peak MiB", *peaks, "500")])


def figures(data: Data) -> Mapping[str, Figure]:
    """Plot time and its shares over the number of nodes."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    time, spent = figure.subplots(1, 2)
    for name, found in _predictions(data).items():
        time.plot(list(found), [one.seconds / 60 for one in found.values()], "o-", label=name)
        spent.plot(list(found), [100 * _unused(one) for one in found.values()], "o-", label=name)
    time.set(xlabel="nodes", ylabel="minutes", xscale="log", yscale="log", title="Time (predicted)")
    spent.set(xlabel="nodes", ylabel="% of the nodes' time", xscale="log", ylim=(0, 100))
    spent.set_title("Nodes idle, start and end included")
    for axes in (time, spent):
        axes.set_xticks(NODES, map(str, NODES))
        axes.minorticks_off()
        axes.legend()
    return {"cluster": figure}


def _unused(one: Prediction) -> float:
    return sum(one.spent.get(name, 0) for name in (IDLE, START, END)) / one.seconds
