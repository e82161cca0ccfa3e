"""streamconv against other tools: seconds from a cold cache until synced, and peak memory.

MindFormers' converter of Llama checkpoints; MindSpore's `ckpt_to_safetensors` and `safetensors_to_ckpt`;
compressed-tensors' dequantizer of FP8 checkpoints, with one worker. Each runs in a virtual environment of its own
(`environments.py`), streamconv with `--max-mem 256M`; start-up counts on both sides. After the last round, both outputs
are compared, tensor by tensor.

Needs some 15 GB of disk and memory. A tool whose environment cannot be made here is skipped, and a note says why.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import measuring
from ..conversions import streamconv
from ..measuring import BenchmarkError, Run, interleaved, ratios, spread
from ..results import Data, Say, Setting, Table
from .environments import Environment, variables
from .tasks import TASKS, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Against other converters"

_MOST_ROUNDS = 3
_TIMES = ("seconds, other tool", "seconds, streamconv", "times faster")
_MEMORY = ("peak memory, other tool", "peak memory, streamconv", "fraction")


def measure(setting: Setting, say: Say) -> Data:
    """Make the environments, unless `setting.quick` (then only those that exist are used), and run all tasks.

    Returns:
        `tasks`: names, bytes written, whether both wrote the same, and for `theirs` and `ours` the seconds and peak
        bytes, round by round.
    """
    notes: list[str] = []
    environments = dict.fromkeys(task.environment for task in TASKS)
    ready = {one for one in environments if _prepared(one, setting, say, notes)}
    tasks = [task for task in TASKS if task.environment in ready]
    measured: list[Data] = []
    for make, group in itertools.groupby(tasks, lambda task: task.source):
        folder = setting.folder / "source"
        folder.mkdir()
        try:
            say(f"making a checkpoint: {make.__name__}")
            source = make(folder, setting.quick)
            for task in group:
                _measure_task(task, source, setting, say, measured, notes)
        finally:
            shutil.rmtree(folder)
    return {"tasks": measured, "notes": notes}


def tables(data: Data) -> Sequence[Table]:
    """Return seconds as median (least-most) of all rounds, ratios by round, and the highest memory of any round."""
    columns = ("other tool", "task", "written", *_TIMES, *_MEMORY, "same tensors")
    return [Table(columns, [_row(task) for task in data["tasks"]])] if data["tasks"] else []


def figures(data: Data) -> Mapping[str, Figure]:
    """Plot seconds and peak memory as pairs of bars, on a logarithmic scale."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    tasks = data["tasks"]
    figure = Figure(figsize=(11, 1.2 + 0.75 * len(tasks)), layout="constrained")
    seconds, memory = figure.subplots(1, 2, sharey=True)
    for side, name, offset in (("ours", "streamconv", -0.2), ("theirs", "other tool", 0.2)):
        places = [place + offset for place in range(len(tasks))]
        runs = [_runs(task[side]) for task in tasks]
        _bars(seconds, places, [spread(one.seconds for one in some).median for some in runs], name)
        _bars(memory, places, [_peak(some) / 1e6 for some in runs], name)
    seconds.set(xscale="log", xlim=(1, 2 * seconds.get_xlim()[1]), xlabel="seconds, median")
    memory.set(xscale="log", xlim=(10, 4 * memory.get_xlim()[1]), xlabel="peak memory, MB")
    seconds.set_yticks(range(len(tasks)), [f"{task['tool']}\n{task['title']}" for task in tasks])
    seconds.invert_yaxis()
    figure.legend(*seconds.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return {"peers": figure}


def _bars(axes: Axes, places: list[float], values: list[float], label: str) -> None:
    axes.bar_label(axes.barh(places, values, 0.4, label=label), fmt=_number, padding=2)


def _number(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1}f}"


def _prepared(environment: Environment, setting: Setting, say: Say, notes: list[str]) -> bool:
    try:
        environment.prepare(not setting.quick, say)
    except BenchmarkError as error:
        notes.append(_not_measured(environment.tool, error))
        return False
    return True


def _measure_task(task: Task, source: Path, setting: Setting, say: Say, measured: list[Data], notes: list[str]) -> None:
    say(f"{task.environment.tool}: {task.title}")
    theirs, ours = setting.folder / "theirs", setting.folder / "ours"
    contestants = {
        "theirs": lambda: _run(task.theirs(source, theirs), source, theirs),
        "ours": lambda: _run(task.ours(source, ours), source, ours),
    }
    try:
        runs = interleaved(contestants, min(setting.rounds, _MOST_ROUNDS))
        measured.append({**_names(task, theirs, ours), **{name: [*map(_figures, some)] for name, some in runs.items()}})
    except BenchmarkError as error:
        notes.append(_not_measured(f"{task.environment.tool}, {task.title}", error))
    finally:
        shutil.rmtree(theirs, ignore_errors=True)
        shutil.rmtree(ours, ignore_errors=True)


def _run(command: list[str], source: Path, folder: Path) -> Run:
    """Run a command that writes into an empty folder, and keep what it wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return measuring.measure(command, [source], env=variables(folder))


def _names(task: Task, theirs: Path, ours: Path) -> Data:
    result = theirs / task.their_name
    files = result.rglob("*") if result.is_dir() else [result]
    return {
        "tool": task.environment.tool,
        "title": task.title,
        "bytes": sum(file.stat().st_size for file in files),
        "same": _same(result, ours / task.our_name),
    }


def _same(one: Path, other: Path) -> bool:
    """Return whether two checkpoints have the same tensors, bit for bit."""
    command = streamconv(["diff", str(one), str(other), "--max-mem", "512M", "--quiet"])
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def _figures(one: Run) -> dict[str, Any]:
    return {key: value for key, value in asdict(one).items() if key != "memory"}


def _runs(figures: list[Data]) -> list[Run]:
    return [Run(**one) for one in figures]


def _not_measured(what: str, error: BenchmarkError) -> str:
    """Return a note with the last line of an error message: in a traceback, the exception."""
    return f"{what}: not measured, {str(error).strip().splitlines()[-1]}"


def _peak(runs: list[Run]) -> int:
    return max(one.peak for one in runs)


def _row(task: Data) -> tuple[str, ...]:
    theirs, ours = _runs(task["theirs"]), _runs(task["ours"])
    return (
        task["tool"],
        task["title"],
        f"{task['bytes'] / 1e9:.2f} GB",
        f"{spread(one.seconds for one in theirs):.1f}",
        f"{spread(one.seconds for one in ours):.1f}",
        f"{ratios(theirs, ours):.1f}",
        f"{_peak(theirs) / 1e6:,.0f} MB",
        f"{_peak(ours) / 1e6:,.0f} MB",
        f"1/{_peak(theirs) / _peak(ours):.0f}",
        "yes" if task["same"] else "NO",
    )
