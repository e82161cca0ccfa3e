"""Scaling: workers, threads against processes, the number of tensors, planning, start-up, the largest tensor.

Each part writes its sources, runs all its contestants in interleaved rounds, and removes the sources. Where only names
and sizes matter, the sources are sparse files: real headers, holes for data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from . import hand_over, plots
from .checkpoints import deepseek_v3, matrices
from .conversions import CASES, MODELS, Case, removed, size, source_of, streamconv
from .machine import room
from .measuring import Run, Spread, interleaved, ratio, spread
from .measuring import measure as run
from .results import Data, Say, Setting, Table
from .running import convert, every_round

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Scaling"

MIB, GB = 1 << 20, 10**9

#: Memory limit of the conversions, and of those of the largest tensors.
BUDGET, SMALL_BUDGET = "1G", "256M"

_CASES = ("same", "fp16", "transposed", "fp8")
_RAW = ("--model", "raw", "--format", "hf")
_ROW = 10_000  # bytes of a row of 5,000 bfloat16
_MOST_ROUNDS = 3  # of the largest tensors, which write 17 GB in each


def measure(setting: Setting, say: Say) -> Data:
    """Measure all parts."""
    return {
        "workers": list(_workers(setting, say)),
        "hand_over": hand_over.measure(setting, say),
        "counts": _counts(setting, say),
        "planning": _planning(setting, say),
        "largest": _largest(setting, say),
    }


def tables(data: Data) -> Sequence[Table]:
    """Return a table for each part."""
    return [
        _table_of_workers(data["workers"]),
        *hand_over.tables(data["hand_over"]),
        _table_of_counts(data["counts"]),
        _table_of_planning(data["planning"]),
        _table_of_largest(data["largest"]),
    ]


def figures(data: Data) -> Mapping[str, Figure]:
    """Plot speed-up by workers and by threads, time by number of tensors, and time and memory by largest tensor."""
    return {
        "scaling-workers": _figure_of_workers(data["workers"]),
        "scaling-threads": hand_over.figure(data["hand_over"]),
        "scaling-tensors": _figure_of_counts(data["counts"]),
        "scaling-largest": _figure_of_largest(data["largest"]),
    }


# -- workers -----------------------------------------------------------------------------------------------------------


def _workers(setting: Setting, say: Say) -> Iterator[Data]:
    """Measure every case with each number of workers, on disk and on tmpfs, where there is enough space."""
    for (where, folder), model in product(setting.places.items(), MODELS):
        with source_of(model, folder, setting.quick) as source:
            for case in (CASES[name] for name in _CASES if CASES[name].model == model):
                if room(folder) > case.growth * size(source):
                    say(f"workers: {case.title} on {where}")
                    rounds = _by_workers(source, case, setting.rounds)
                    yield {"case": case.title, "where": where, "rounds": rounds}


def _by_workers(source: Path, case: Case, rounds: int) -> Data:
    dest = source.with_name("dest")
    cores = len(os.sched_getaffinity(0))
    contestants = {
        str(count): partial(convert, source, dest, (*case.options, "--workers", str(count)), BUDGET)
        for count in (1, 2, 4)
        if count <= max(2, cores)
    }
    return every_round(interleaved(contestants, rounds))


def _table_of_workers(found: Sequence[Data]) -> Table:
    counts = list(found[0]["rounds"]) if found else []
    heads = [f"{count} worker{'s' * (count != '1')}, s" for count in counts]
    rows = [
        (
            one["case"],
            one["where"],
            *(f"{spread(one['rounds'][count]['seconds']):.2f}" for count in counts),
            *(f"{_speed_up(one, count):.2f}" for count in counts[1:]),
        )
        for one in found
    ]
    return Table(("case", "where", *heads, *(f"speed-up with {count} workers" for count in counts[1:])), rows)


def _speed_up(found: Data, count: str) -> Spread:
    """Return how many times faster `count` workers are than one, round by round."""
    return ratio(found["rounds"]["1"]["seconds"], found["rounds"][count]["seconds"])


def _figure_of_workers(found: Sequence[Data]) -> Figure:
    series: dict[str, dict[str, Spread]] = {}
    for one in found:
        for count in list(one["rounds"])[1:]:
            series.setdefault(f"{count} workers, {one['where']}", {})[one["case"]] = _speed_up(one, count)
    return plots.ratios("Workers", "times as fast as one worker", series)


# -- number of tensors -------------------------------------------------------------------------------------------------


def _counts(setting: Setting, say: Say) -> list[Data]:
    """Measure planning and converting 1 GB in ever more tensors."""
    total, counts = (10_000_000, (100, 1_000)) if setting.quick else (GB, (1_000, 10_000, 100_000))
    dest = setting.folder / "dest"
    contestants: dict[str, Callable[[], Run]] = {}
    say(f"number of tensors: {total / GB:.2f} GB in each of {', '.join(map(str, counts))}")
    with ExitStack() as sources:
        for count in counts:
            source = setting.folder / f"source-{count}"
            sources.enter_context(removed(source))
            matrices(source, count, total // count // 2_000, 1_000)
            contestants[f"plan {count}"] = partial(_plan, source, _RAW)
            contestants[f"convert {count}"] = partial(convert, source, dest, _RAW, BUDGET)
        runs = every_round(interleaved(contestants, setting.rounds))
    return [{"count": n, "plan": runs[f"plan {n}"], "convert": runs[f"convert {n}"]} for n in counts]


def _plan(source: Path, words: Sequence[str]) -> Run:
    dest = source.with_name("dest")
    command = streamconv(["plan", str(source), str(dest), *words, "--max-mem", BUDGET])
    return run(command, [source], synced=False)


def _table_of_counts(found: Sequence[Data]) -> Table:
    rows = [(f"{one['count']:,}", *_seconds_and_peak(one["plan"]), *_seconds_and_peak(one["convert"])) for one in found]
    return Table(("tensors in 1 GB", "plan, s", "peak MiB", "convert, s", "peak MiB"), rows)


def _seconds_and_peak(found: Data) -> tuple[str, str]:
    return f"{spread(found['seconds']):.2f}", f"{max(found['peak']) / MIB:.0f}"


def _figure_of_counts(found: Sequence[Data]) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for command in ("plan", "convert"):
        medians = [spread(one[command]["seconds"]).median for one in found]
        axes.plot([one["count"] for one in found], medians, "o-", label=command)
    axes.set(xscale="log", xlabel="tensors in the same bytes", ylabel="seconds", ylim=(0, None))
    axes.set_title("Number of tensors")
    axes.legend()
    return figure


# -- planning and start-up ---------------------------------------------------------------------------------------------


def _planning(setting: Setting, say: Say) -> Data:
    """Measure planning DeepSeek-V3 from its headers, and `--help`."""
    say("planning DeepSeek-V3, and start-up")
    source = setting.folder / "source"
    with removed(source):
        deepseek_v3(source)
        contestants = {
            "plan": partial(_plan, source, ("-o", "layout=mcore")),
            "help": partial(run, streamconv(["--help"]), synced=False),
        }
        return every_round(interleaved(contestants, setting.rounds))


def _table_of_planning(found: Data) -> Table:
    rows = [
        ("plan of DeepSeek-V3, 91,991 tensors", *_seconds_and_peak(found["plan"]), "3"),
        ("streamconv --help", *_seconds_and_peak(found["help"]), "0.3"),
    ]
    return Table(("command", "seconds", "peak MiB", "goal, s"), rows)


# -- largest tensor ----------------------------------------------------------------------------------------------------


def _largest(setting: Setting, say: Say) -> list[Data]:
    """Measure casts of at least 1 GB of holes, in tensors of one size; skip what the disk has no space for."""
    total, sizes = (GB // 100, (MIB, GB // 100)) if setting.quick else (GB, (10**6, 10**8, GB, 15 * GB))
    dest, words = setting.folder / "dest", (*_RAW, "--dtype", "fp16")
    written: dict[int, int] = {}
    contestants: dict[str, Callable[[], Run]] = {}
    say(f"largest tensor: {', '.join(f'{one / 1e6:,.0f} MB' for one in sizes)} in {SMALL_BUDGET}")
    with ExitStack() as sources:
        for largest in (one for one in sizes if room(setting.folder) > one + GB):
            source = setting.folder / f"source-{largest}"
            sources.enter_context(removed(source))
            matrices(source, max(1, total // largest), largest // _ROW, _ROW // 2, sparse=True)
            written[largest] = size(source)
            contestants[str(largest)] = partial(convert, source, dest, words, SMALL_BUDGET)
        runs = every_round(interleaved(contestants, min(setting.rounds, _MOST_ROUNDS)))
    return [{"largest": one, "written": nbytes, "convert": runs[str(one)]} for one, nbytes in written.items()]


def _table_of_largest(found: Sequence[Data]) -> Table:
    rows = [
        (
            f"{one['largest'] / 1e6:,.0f} MB",
            f"{one['written'] / GB:.2f}",
            f"{spread(_seconds_per_gb(one)):.2f}",
            f"{max(one['convert']['peak']) / MIB:.0f}",
        )
        for one in found
    ]
    return Table(("largest tensor", "GB written", "s per GB", f"peak MiB in {SMALL_BUDGET}"), rows)


def _seconds_per_gb(found: Data) -> list[float]:
    return [second * GB / found["written"] for second in found["convert"]["seconds"]]


def _figure_of_largest(found: Sequence[Data]) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    time, memory = figure.subplots(1, 2)
    sizes = [one["largest"] / 1e6 for one in found]
    time.plot(sizes, [spread(_seconds_per_gb(one)).median for one in found], "o-")
    memory.plot(sizes, [max(one["convert"]["peak"]) / MIB for one in found], "o-", label="peak")
    memory.axhline(256, color="C3", linestyle="--", label=f"--max-mem {SMALL_BUDGET}")
    time.set(xscale="log", xlabel="largest tensor, MB", ylabel="seconds per GB written", ylim=(0, None))
    memory.set(xscale="log", xlabel="largest tensor, MB", ylabel="peak resident memory, MiB", ylim=(0, None))
    memory.legend()
    figure.suptitle("Largest tensor")
    return figure
