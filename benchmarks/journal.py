"""The cost of the journal: conversions with and without it, with a cold cache, until synced, in interleaved rounds.

Off: nothing is synced or recorded before the end. Mute: everything is synced as usual, and nothing recorded. All else
is the same. CPU is the share of a run's processor time that recording takes, measured in one more run.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import checkpoints, plots
from .conversions import CASES, MODELS, Case, removed, words
from .measuring import Spread, interleaved, ratio, spread
from .results import Data, Say, Setting, Table
from .running import run_and_remove

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "What the journal costs"
BUDGET = "512M"

# Python that is run first, in the process of the conversion.
_OFF = "import streamconv.output.recorder as r; r.BATCH = r.MAX_UNRECORDED = 1 << 60; r.PAUSE = 1e6"
_MUTE = "import streamconv.output.journal as j; j.Journal.append = lambda self, records: None"
_CPU = """
import atexit, resource, sys, time
import streamconv.output.journal as j
spent, append = [0.0], j.Journal.append
def timed(self, records):
    before = time.thread_time()
    append(self, records)
    spent[0] += time.thread_time() - before
def tell():
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(spent[0] / (used.ru_utime + used.ru_stime), file=sys.stderr)
j.Journal.append = timed
atexit.register(tell)
"""
_WAYS = {"with": "", "off": _OFF, "mute": _MUTE}


def measure(setting: Setting, say: Say) -> Data:
    """Measure the cases of a 1.0 GB Mixtral, on disk."""
    source = setting.folder / "source"
    rows = []
    with removed(source):
        MODELS["mixtral"].small(source) if setting.quick else checkpoints.mixtral(source, num_hidden_layers=1)
        for case in (case for case in CASES.values() if case.model == "mixtral"):
            say(case.title)
            rows.append({"case": case.title, **_measure_case(case, source, setting.folder / "dest", setting.rounds)})
    return {"budget": BUDGET, "cases": rows}


def _measure_case(case: Case, source: Path, dest: Path, rounds: int) -> Data:
    told = words(case.options, source, dest, BUDGET)
    ways = {name: partial(run_and_remove, _after(before, told), source, dest) for name, before in _WAYS.items()}
    runs = interleaved(ways, rounds)
    with removed(dest):
        said = subprocess.run(_after(_CPU, told), check=True, capture_output=True, text=True).stderr
    return {"cpu": float(said.split()[-1]), **{name: [one.seconds for one in some] for name, some in runs.items()}}


def _after(before: str, told: list[str]) -> list[str]:
    """Return the command line of a conversion that first runs some Python in the same process."""
    return [sys.executable, "-c", f"{before}\nfrom streamconv.cli.main import main; main()", *told]


def tables(data: Data) -> list[Table]:
    """Return one table, with a row per case."""
    columns = ("case", "with s", "off s", "mute s", "with / off (least-most)", "with / mute (least-most)", "CPU")
    return [Table(columns, [_row(one) for one in data["cases"]])]


def _row(one: Data) -> list[str]:
    seconds = (f"{spread(one[name]):.2f}" for name in _WAYS)
    return [one["case"], *seconds, *(f"{_ratio(one, name):.2f}" for name in ("off", "mute")), f"{one['cpu']:.1%}"]


def _ratio(one: Data, other: str) -> Spread:
    return ratio(one["with"], one[other])


def figures(data: Data) -> dict[str, Figure]:
    """Plot ratios with their ranges."""
    series = {name: {one["case"]: _ratio(one, name) for one in data["cases"]} for name in ("off", "mute")}
    return {"journal": plots.ratios(TITLE, "seconds with / seconds without", series)}
