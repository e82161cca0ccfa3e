"""Conversions by the workers of a cluster on this machine, measured: one worker, two, and the same without a cluster.

Every worker has one thread, and so has the conversion without a cluster. What counts is the time in which parts are
converted: for a cluster the seconds from the first part to the last, without one those of the whole conversion.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import streamconv
from streamconv.parts.cutting import cut_parts
from streamconv.parts.scopes import Scopes

from . import checkpoints, machine
from .conversions import SMALL_DEEPSEEK3, removed, words
from .conversions import streamconv as program
from .measuring import Run, interleaved, ratio, spread
from .measuring import measure as run
from .results import Data, Say, Setting, Table
from .simulation import Load, Machines, predict

CASE = "FP8 -> bf16, experts transposed"
GOAL = 1.7

_BUDGET = "3G"
_OPTIONS = {"use_gmm": "true"}
# Ray has ten processes and more.
_POLL = 1.0
# Ray's workers give way to all others by default; without a cluster, nothing does.
_RAY = {"RAY_ADDRESS": "local", "RAY_worker_niceness": "0"}
_WAYS: Mapping[str, list[str]] = {
    "alone": [],
    "1": ["--on", "ray", "--workers-per-node", "1"],
    "2": ["--on", "ray", "--workers-per-node", "2"],
}


def measure(setting: Setting, say: Say) -> Data:
    """Measure on disk and on tmpfs, a quick run in one place: Ray takes long to start. The plan's parts are added."""
    found: Data = {}
    for where, folder in list(setting.places.items())[-1 if setting.quick else 0 :]:
        source = folder / "source"
        say(f"{CASE} on {where}")
        with removed(source):
            small = {**SMALL_DEEPSEEK3, "num_hidden_layers": 2} if setting.quick else {"n_routed_experts": 16}
            checkpoints.deepseek3(source, **small)
            found["parts"] = _parts(source)
            found[where] = _measure_in(source, setting.rounds)
    speeds = machine.describe({"disk": setting.folder}, setting.quick)["folders"]["disk"]["both"]
    return {"cores": len(os.sched_getaffinity(0)), "speeds": speeds, **found}


def _parts(source: Path) -> list[list[float]]:
    planned = streamconv.plan(source, source.with_name("dest"), options=_OPTIONS, max_mem=_BUDGET)
    scopes = Scopes(planned.mapping, planned.layout)
    return [[part.cost, scopes.of(part).nbytes] for part in cut_parts(planned.mapping, planned.layout)]


def _measure_in(source: Path, rounds: int) -> Data:
    loads: list[float] = []

    def convert(ways: list[str]) -> Run:
        loads.append(os.getloadavg()[0])
        return _convert(source, ways)

    contestants: dict[str, Callable[[], Run]] = {name: partial(convert, ways) for name, ways in _WAYS.items()}
    runs = interleaved(contestants, rounds)
    return {"load": loads, **{name: _figures(some) for name, some in runs.items()}}


def _convert(source: Path, ways: list[str]) -> Run:
    """Convert with a cluster of this run's own, whatever others run on this machine."""
    options = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
    dest = source.with_name("dest")
    command = program([*words([*options, "--workers", "1", *ways], source, dest, _BUDGET), "--json"])
    with removed(dest), removed(dest.with_name("dest.partial")):
        return run(command, [source], env={**os.environ, **_RAY}, poll=_POLL)


def _figures(runs: list[Run]) -> Data:
    """Return what every round took: the whole command, the conversion in it, and the parts of that."""
    reports = [json.loads(run.said[run.said.index("{") :]) for run in runs]
    return {
        "whole": [run.seconds for run in runs],
        "read": [report["read_bytes"] for report in reports],
        "conversion": [report["seconds"] for report in reports],
        "parts": [_seconds_of_parts(report) for report in reports],
        "peak": [report["peak_bytes"] for report in reports],
    }


def _seconds_of_parts(report: Mapping[str, Any]) -> float:
    return float(report["nodes"][0]["seconds"] if report.get("nodes") else report["seconds"])


# -- the model, and what was measured ----------------------------------------------------------------------------------


def machines_of(found: Data) -> dict[str, Machines]:
    """Return the model's parameters for this machine, by place.

    The rate of a processor is that of the conversion without a cluster on tmpfs, and what a part takes besides is what
    one worker there takes longer. The disk's bandwidth is that of reading and writing at once. On tmpfs nothing else
    limits.
    """
    place = "tmpfs" if "tmpfs" in found else "disk"
    alone, one = (found[place][way]["parts"] for way in ("alone", "1"))
    written = sum(nbytes for _, nbytes in found["parts"])
    longer = spread(ours - theirs for ours, theirs in zip(one, alone, strict=True)).median
    per_part = max(0.0, longer) / len(found["parts"])
    disk = spread(found["speeds"]).median
    known = Machines(1, written / spread(alone).median, float("inf"), float("inf"), per_part=per_part)
    return {"tmpfs": known, "disk": replace(known, bandwidth=disk, shared=disk)}


def checked(found: Data) -> list[tuple[str, int, float, float]]:
    """Return predicted and measured seconds of the parts, by place and number of workers."""
    parts = [Load(*part) for part in found["parts"]]
    machines = machines_of(found)
    return [
        (where, count, predicted.seconds, spread(found[where][str(count)]["parts"]).median)
        for where in machines
        if where in found
        for count in (1, 2)
        for predicted in [predict(parts, replace(machines[where], nodes=count))]
    ]


def table(found: Data) -> Table:
    """Return what was measured."""
    columns = (
        f"{CASE}: what is measured, where",
        "without a cluster, s",
        "1 worker, s",
        "2 workers, s",
        "1 worker / without",
        "times as fast with 2",
        "goal",
    )
    rows = [_row(found[where], where, what) for where in ("tmpfs", "disk") if where in found for what in _MEASURED]
    return Table(columns, rows)


_MEASURED = {"parts": "parts", "conversion": "conversion", "whole": "command, with start-up and Ray"}


def _row(runs: Data, where: str, what: str) -> tuple[str, ...]:
    alone, one, two = (runs[way][what] for way in _WAYS)
    return (
        f"{_MEASURED[what]}, {where}",
        *(f"{spread(some):.1f}" for some in (alone, one, two)),
        f"{ratio(one, alone):.2f}",
        f"{ratio(one, two):.2f}",
        f"{GOAL}" if (where, what) == ("tmpfs", "parts") else "",
    )


def table_of_checks(found: Data) -> Table:
    """Return the model's predictions next to what was measured."""
    rows = [
        (f"{count} worker{'s' * (count > 1)}, {where}", f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}")
        for where, count, ours, theirs in checked(found)
    ]
    return Table(("parts", "predicted, s", "measured, s", "predicted / measured"), rows)
