"""The cost of each value of `--io`, on disk and on tmpfs: through the page cache, or past it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from . import plots
from .conversions import CASES, MODELS, Case, size, source_of
from .machine import room
from .measuring import Spread, interleaved, ratio, spread
from .results import Data, Say, Setting, Table
from .running import convert, every_round

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Through the page cache, or past it"
BUDGET = "1G"

_CASES = ("same", "fp16", "transposed", "fp8")
_WAYS = ("read", "direct")
_RATIOS = {"direct / read": "direct"}


def measure(setting: Setting, say: Say) -> Data:
    """Convert with each value of `--io`, in interleaved rounds, where there is enough space."""
    found = []
    for (where, folder), model in product(setting.places.items(), MODELS):
        with source_of(model, folder, setting.quick) as source:
            for case in (CASES[name] for name in _CASES if CASES[name].model == model):
                if room(folder) > case.growth * size(source):
                    say(f"{case.title} on {where}")
                    found.append({"case": case.title, "where": where, **_measure(source, case, setting.rounds)})
    return {"cases": found}


def _measure(source: Path, case: Case, rounds: int) -> Data:
    dest = source.with_name("dest")
    ways = {io: partial(convert, source, dest, (*case.options, "--io", io), BUDGET) for io in _WAYS}
    return every_round(interleaved(ways, rounds))


def tables(data: Data) -> Sequence[Table]:
    """Return a row per case and place: time and processor time for each `--io`, and the ratio to `read`."""
    columns = ("case", "where", *(f"{way} s" for way in _WAYS), *(f"CPU s, {way}" for way in _WAYS), *_RATIOS)
    rows = [
        (
            one["case"],
            one["where"],
            *(f"{spread(one[way]['seconds']):.2f}" for way in _WAYS),
            *(f"{spread(one[way]['cpu']).median:.1f}" for way in _WAYS),
            *(f"{_ratio(one, way):.2f}" for way in _RATIOS.values()),
        )
        for one in data["cases"]
    ]
    return [Table(columns, rows)]


def _ratio(one: Data, way: str) -> Spread:
    return ratio(one[way]["seconds"], one["read"]["seconds"])


def figures(data: Data) -> Mapping[str, Figure]:
    """Plot ratios with their ranges."""
    series: dict[str, dict[str, Spread]] = {}
    for one in data["cases"]:
        for label, way in _RATIOS.items():
            series.setdefault(f"{label}, {one['where']}", {})[one["case"]] = _ratio(one, way)
    return {"reading": plots.ratios(TITLE, "seconds / seconds through the page cache", series)}
