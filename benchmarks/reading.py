"""Windows of the source mapped, or read into buffers: what `--io map` and `--io read` cost, on disk and on tmpfs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import plots
from .conversions import CASES, Case, size, source_of
from .machine import room
from .measuring import Spread, interleaved, ratio, spread
from .results import Data, Say, Setting, Table
from .running import convert, every_round

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Mapping or reading"
BUDGET = "1G"

_CASES = ("same", "fp16", "transposed")


def measure(setting: Setting, say: Say) -> Data:
    """Convert with either, in interleaved rounds, as far as there is room."""
    found = []
    for where, folder in setting.places.items():
        with source_of("mixtral", folder, setting.quick) as source:
            for case in (CASES[name] for name in _CASES):
                if room(folder) > case.growth * size(source):
                    say(f"{case.title} on {where}")
                    found.append({"case": case.title, "where": where, **_measure(source, case, setting.rounds)})
    return {"cases": found}


def _measure(source: Path, case: Case, rounds: int) -> Data:
    dest = source.with_name("dest")
    ways = {io: partial(convert, source, dest, (*case.options, "--io", io), BUDGET) for io in ("map", "read")}
    return every_round(interleaved(ways, rounds))


def tables(data: Data) -> Sequence[Table]:
    """A row for each case and place."""
    columns = ("case", "where", "mapped, s", "read, s", "mapped / read (least-most)")
    rows = [
        (
            one["case"],
            one["where"],
            *(f"{spread(one[io]['seconds']):.2f}" for io in ("map", "read")),
            f"{_ratio(one):.2f}",
        )
        for one in data["cases"]
    ]
    return [Table(columns, rows)]


def _ratio(one: Data) -> Spread:
    return ratio(one["map"]["seconds"], one["read"]["seconds"])


def figures(data: Data) -> Mapping[str, Figure]:
    """Ratios with their ranges."""
    series: dict[str, dict[str, Spread]] = {}
    for one in data["cases"]:
        series.setdefault(one["where"], {})[one["case"]] = _ratio(one)
    return {"reading": plots.ratios(TITLE, "seconds mapped / seconds read", series)}
