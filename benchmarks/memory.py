"""Memory: the peak by model size, memory over time, and conversions under a container's limit.

1. Peak resident memory of conversions of ever larger models, for several memory limits. The peak does not depend on the
   values, so large sources are sparse files: real headers, holes for data. The output is written in full, and removed
   before the next run; what the disk has no space for is skipped.
2. Resident memory over time, for one conversion.
3. Conversions in a control group whose limit includes the page cache, against the same without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cgroups import limited
from .checkpoints import mixtral_of
from .conversions import CASES, removed, size, source_of
from .machine import room
from .measuring import BenchmarkError, Run, interleaved, ratio, spread
from .results import Data, Say, Setting, Table
from .running import convert, every_round

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Memory"

MIB, GB = 1 << 20, 10**9

#: Memory limits as `--max-mem` takes them, and their bytes.
BUDGETS: Mapping[str, int] = {"160M": 160 * MIB, "1G": 1024 * MIB, "4G": 4096 * MIB}

#: Bytes of the control group's limit, and `--max-mem` of the conversions in it.
LIMIT, IN_LIMIT = 256 * MIB, "160M"

_CAST_AND_TRANSPOSED = ("--dtype", "fp16", "-o", "use_gmm=true")
_IN_A_GROUP = ("same", "fp16", "transposed")
_SPARE = GB


@dataclass(frozen=True)
class _Scale:
    """How large everything is: bytes of models, which are sparse above `dense`, and changes to Mixtral's config."""

    sizes: tuple[int, ...]
    dense: int
    over_time: int
    changes: Mapping[str, Any]


# Mixtral's matrices at full size, but one expert and a small vocabulary, so that a model can be as small as 0.5 GB.
# With an embedding much larger than all else, the peak would depend on whether one worker or two get it and the head.
_LAYERS = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_local_experts": 1,
    "vocab_size": 2000,
}
_TINY = {"hidden_size": 512, "intermediate_size": 1024, "num_local_experts": 1, "vocab_size": 2000}
_FULL = _Scale(tuple(n * GB // 2 for n in (1, 2, 4, 8, 16, 32, 64)), 2 * GB, 4 * GB, _LAYERS)
_QUICK = _Scale((20_000_000, 40_000_000), 20_000_000, 40_000_000, _TINY)


def measure(setting: Setting, say: Say) -> Data:
    """Measure all three parts."""
    scale = _QUICK if setting.quick else _FULL
    data: Data = {
        "sizes": [_peaks(setting.folder, scale, size, say) for size in scale.sizes],
        "over_time": _over_time(setting.folder, scale, say),
        "limited": _limited(setting, say),
    }
    data["notes"] = [data[part]["note"] for part in ("over_time", "limited") if "note" in data[part]]
    return data


def tables(data: Data) -> Sequence[Table]:
    """Return the peaks by size and memory limit, and the cost of the control group's limit."""
    return [_table_of_peaks(data["sizes"]), _table_of_limited(data["limited"])]


def figures(data: Data) -> Mapping[str, Figure]:
    """Plot peak by size, and memory over time."""
    return {
        "memory-over-size": _figure_of_peaks(data["sizes"]),
        "memory-over-time": _figure_over_time(data["over_time"]),
    }


# -- peak over size ----------------------------------------------------------------------------------------------------


def _peaks(folder: Path, scale: _Scale, wanted: int, say: Say) -> Data:
    """Return the peak in bytes for each memory limit, `None` if the result does not fit the disk."""
    source, sparse = folder / "source", wanted > scale.dense
    with removed(source):
        nbytes = size(mixtral_of(source, wanted, sparse, **scale.changes))
        peaks: dict[str, int | None] = {}
        for budget in BUDGETS:
            say(f"peak memory: {nbytes / GB:.2f} GB in {budget}")
            fits = room(folder) > nbytes + _SPARE
            peaks[budget] = convert(source, folder / "dest", _CAST_AND_TRANSPOSED, budget).peak if fits else None
    return {"bytes": nbytes, "sparse": sparse, "peaks": peaks}


def _table_of_peaks(sizes: Sequence[Data]) -> Table:
    rows = [
        (f"{one['bytes'] / GB:.2f} GB", "holes" if one["sparse"] else "random", *map(_mib, one["peaks"].values()))
        for one in sizes
    ]
    differences = [f"{_difference(_column(sizes, budget)):.1f} %" for budget in BUDGETS]
    heads = [f"peak MiB in {budget} ({limit // MIB})" for budget, limit in BUDGETS.items()]
    return Table(("source", "data", *heads), [*rows, ("most above least (goal: under 10 %)", "", *differences)])


def _mib(peak: int | None) -> str:
    return "no room" if peak is None else f"{peak / MIB:.0f}"


def _column(sizes: Sequence[Data], budget: str) -> list[tuple[int, int]]:
    """Return (bytes of the source, peak) for the sizes that were measured."""
    return [(one["bytes"], one["peaks"][budget]) for one in sizes if one["peaks"][budget] is not None]


def _difference(column: Sequence[tuple[int, int]]) -> float:
    """Return how far the highest peak is above the lowest, in percent of the lowest."""
    peaks = [peak for _, peak in column]
    return 100 * (max(peaks) / min(peaks) - 1) if peaks else 0.0


def _figure_of_peaks(sizes: Sequence[Data]) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (budget, limit) in enumerate(BUDGETS.items()):
        column = _column(sizes, budget)
        colour = f"C{number}"
        axes.plot([size / GB for size, _ in column], [p / MIB for _, p in column], "o-", color=colour, label=budget)
        axes.axhline(limit / MIB, color=colour, linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="source, GB", ylabel="peak resident memory, MiB")
    axes.set_title("Peak memory over the model's size (dashed: the budget)")
    axes.legend(title="--max-mem")
    return figure


# -- memory over time --------------------------------------------------------------------------------------------------


def _over_time(folder: Path, scale: _Scale, say: Say) -> Data:
    source = folder / "source"
    if room(folder) < 2 * scale.over_time + _SPARE:
        return {"note": "memory over time: not measured, no room"}
    with removed(source):
        nbytes = size(mixtral_of(source, scale.over_time, **scale.changes))
        say(f"memory over time: {nbytes / GB:.2f} GB in 1G")
        run = convert(source, folder / "dest", _CAST_AND_TRANSPOSED, "1G")
    return {"bytes": nbytes, "budget": "1G", "seconds": run.seconds, "memory": run.memory}


def _figure_over_time(found: Data) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if "note" in found:
        axes.set_title(found["note"])
        return figure
    axes.plot([second for second, _ in found["memory"]], [resident / MIB for _, resident in found["memory"]])
    axes.axhline(BUDGETS[found["budget"]] / MIB, color="C3", linestyle="--", label=f"--max-mem {found['budget']}")
    axes.set(xlabel="seconds", ylabel="resident memory, MiB", ylim=(0, None))
    axes.set_title(f"Memory over time: {found['bytes'] / GB:.1f} GB, cast and experts transposed")
    axes.legend()
    return figure


# -- in a control group ------------------------------------------------------------------------------------------------


def _limited(setting: Setting, say: Say) -> Data:
    try:
        with limited(LIMIT):
            pass  # check that groups can be made, before anything else is
        with source_of("mixtral", setting.folder, setting.quick) as source:
            return {"bytes": size(source), "cases": _in_a_group(source, setting.rounds, say)}
    except BenchmarkError as error:
        # Without root there may be no group, but the curves are still worth keeping.
        return {"note": f"in a control group: not measured, {error}", "cases": {}}


def _in_a_group(source: Path, rounds: int, say: Say) -> Data:
    cases, dest = {}, source.with_name("dest")
    for case in (CASES[name] for name in _IN_A_GROUP):
        say(f"in a control group of {LIMIT // MIB} MiB: {case.title}")
        free = partial(convert, source, dest, case.options, IN_LIMIT)
        inside = partial(_convert_inside, source, dest, case.options)
        cases[case.title] = every_round(interleaved({"without": free, "with": inside}, rounds))
    return cases


def _convert_inside(source: Path, dest: Path, words: Sequence[str]) -> Run:
    """Convert in a group of its own: pages in the page cache stay charged to the group that read them."""
    with limited(LIMIT) as join:
        return convert(source, dest, words, IN_LIMIT, prepare=join)


def _table_of_limited(found: Data) -> Table:
    heads = ("case", "without limit, s", f"in {LIMIT // MIB} MiB, s", "ratio", "goal", "peak MiB")
    rows = [_row(name, case["without"], case["with"]) for name, case in found["cases"].items()]
    return Table(heads, rows)


def _row(name: str, free: Data, inside: Data) -> tuple[str, ...]:
    slower = ratio(inside["seconds"], free["seconds"])
    peak = f"{max(inside['peak']) / MIB:.0f}"
    return name, f"{spread(free['seconds']):.2f}", f"{spread(inside['seconds']):.2f}", f"{slower:.2f}", "1.5", peak
