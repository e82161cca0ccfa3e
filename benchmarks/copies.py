"""streamconv against what the device itself needs for the same bytes, and against `cp -r` of what it writes.

The output of each case is written once, untimed, and kept. Then each round converts the source, copies that output, and
reads and writes as many bytes as fast as the device can, in random order, with a cold cache, until synced; what they
wrote is removed. The device's time is that of its reads and writes alone, without the start of a process. Measured on
disk, and on tmpfs, where no disk hides the cost of the converter itself. Where `cp` would share blocks, an option makes
it copy them.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from streamconv.text import format_size

from . import machine, plots
from .conversions import CASES, MODELS, Case, removed, size, source_of, streamconv, words
from .measuring import Spread, interleaved, ratio, spread
from .measuring import measure as measure_once
from .results import Data, Say, Setting, Table
from .running import convert, run_and_remove

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Conversion against the device, and against a copy"
BUDGET = "1G"
_GOAL = "1.10"


def measure(setting: Setting, say: Say) -> Data:
    """Measure every case on disk and on tmpfs; skip, with a note, what there is no space for."""
    data: Data = {"budget": BUDGET, "cases": [], "notes": []}
    if setting.memory is None:
        data["notes"].append("on tmpfs: not measured, no tmpfs with enough room")
    for (where, folder), model in product(setting.places.items(), MODELS):
        _measure_model(model, where, folder, setting, say, data)
    return data


def _measure_model(model: str, where: str, folder: Path, setting: Setting, say: Say, data: Data) -> None:
    say(f"making {model} on {where}")
    with source_of(model, folder, setting.quick) as source:
        for case in (case for case in CASES.values() if case.model == model):
            if machine.room(folder) < 2 * case.growth * size(source):
                data["notes"].append(f"{case.title} on {where}: not measured, no room")
                continue
            say(f"{case.title} on {where}")
            figures = _measure_case(case, source, folder, setting.rounds)
            data["cases"].append({"case": case.title, "where": where, **figures})


def _measure_case(case: Case, source: Path, folder: Path, rounds: int) -> Data:
    reference, dest = folder / "reference", folder / "dest"
    copy = ["cp", "-r", *machine.never_share(folder), str(reference), str(dest)]
    with removed(reference):
        measure_once(streamconv(words(case.options, source, reference, BUDGET)))
        contestants = {
            "streamconv": partial(convert, source, dest, case.options, BUDGET),
            "cp": partial(run_and_remove, copy, reference, dest),
            "device": partial(run_and_remove, _device_time(source, dest, size(reference)), source, dest),
        }
        runs = interleaved(contestants, rounds)
        return {
            "read": size(source),
            "written": size(reference),
            "peaks": [one.peak for one in runs["streamconv"]],
            "busy": [one.busy for one in runs["streamconv"]],
            "cpu": {name: [one.cpu for one in some] for name, some in runs.items()},
            **{name: [one.seconds for one in some] for name, some in runs.items()},
            "device": [float(one.said) for one in runs["device"]],
        }


def _device_time(source: Path, dest: Path, count: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.device_time", str(source), "--write", str(dest), str(count)]


def tables(data: Data) -> list[Table]:
    """Return one table, with a row per case and place."""
    columns = (
        "case",
        "where",
        "read",
        "written",
        "streamconv s",
        "device s",
        "of the device's time",
        "goal",
        "device busy",
        "cp s",
        "of cp's time",
        "CPU s",
        "CPU s of cp",
        f"peak memory ({data['budget']})",
    )
    return [Table(columns, [_row(one) for one in data["cases"]])]


def _row(one: Data) -> list[str]:
    return [
        one["case"],
        one["where"],
        f"{one['read'] / 1e9:.2f} GB",
        f"{one['written'] / 1e9:.2f} GB",
        f"{spread(one['streamconv']):.2f}",
        f"{spread(one['device']):.2f}",
        f"{_ratio(one, 'device'):.2f}",
        _GOAL if one["where"] == "disk" else "",
        f"{spread(one['busy']).median:.0%}" if any(one["busy"]) else "",
        f"{spread(one['cp']):.2f}",
        f"{_ratio(one, 'cp'):.2f}",
        *(f"{spread(one['cpu'][name]).median:.1f}" for name in ("streamconv", "cp")),
        format_size(max(one["peaks"])),
    ]


def _ratio(one: Data, other: str) -> Spread:
    return ratio(one["streamconv"], one[other])


def figures(data: Data) -> dict[str, Figure]:
    """Plot ratios with their ranges, disk and tmpfs next to each other."""
    series: dict[str, dict[str, Spread]] = {}
    for one in data["cases"]:
        series.setdefault(one["where"], {})[one["case"]] = _ratio(one, "device")
    return {"copies": plots.ratios(TITLE, "seconds of streamconv / seconds that the device needs", series)}
