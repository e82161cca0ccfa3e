"""The results of a run of benchmarks: `results.json`, and what is made from it at any time: `tables.md` and plots."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from . import machine
from .results import Benchmark, Data

RESULTS = "results.json"
TABLES = "tables.md"

_PACKAGES = ("streamconv", "numpy", "ml_dtypes", "numkong")
_NO_PLOTS = "no plots: matplotlib is not installed; install it with: pip install '.[benchmarks]'"


def begin(described: Data, rounds: int, quick: bool) -> Data:
    """Return results without any benchmark yet: machine, versions, commit and date.

    `benchmarks` will hold what each measured, `failed` why one could not be run.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": described,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": _commit(),
        "rounds": rounds,
        "quick": quick,
        "benchmarks": {},
        "failed": {},
    }


def _commit() -> str | None:
    """Return the commit of this code, with `-dirty` if anything has changed since; `None` outside a repository."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.check_output(words, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def save(results: Data, folder: Path) -> None:
    """Write `results.json`; the old one stays until the new one is complete."""
    new = folder / f"{RESULTS}.new"
    new.write_text(json.dumps(results, indent=1) + "\n")
    new.replace(folder / RESULTS)


def heading(results: Data) -> str:
    """Return the machine, the versions and the date as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    facts = [*machine.lines(results["machine"]), f"{versions}, commit {results['commit']}"]
    facts.append(f"{results['date']}, {results['rounds']} rounds, median (least-most)")
    if results["quick"]:
        facts.append("a quick run: it shows that everything runs; the figures mean nothing")
    return "\n".join(["# Benchmarks", "", *(f"- {fact}" for fact in facts)])


def section(benchmark: Benchmark, data: Data) -> str:
    """Return what a benchmark measured as Markdown: its tables, then its notes."""
    tables = [table.markdown() for table in benchmark.tables(data)]
    notes = [f"- {note}" for note in data.get("notes", [])]
    return "\n\n".join([f"## {benchmark.TITLE}", *tables, *(["\n".join(notes)] if notes else [])])


def failure(name: str, why: str) -> str:
    """Return as Markdown why a benchmark could not be run."""
    return f"## {name}\n\nnot measured:\n\n```\n{why.strip()}\n```"


def write(results: Data, benchmarks: Mapping[str, Benchmark], folder: Path) -> None:
    """Write `tables.md`, and every plot as PNG and SVG."""
    sections = [section(benchmarks[name], data) for name, data in results["benchmarks"].items()]
    failures = [failure(name, why) for name, why in results["failed"].items()]
    (folder / TABLES).write_text("\n\n".join([heading(results), *sections, *failures]) + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        print(_NO_PLOTS)
        return
    for name, data in results["benchmarks"].items():
        for file, figure in benchmarks[name].figures(data).items():
            for ending in ("png", "svg"):
                figure.savefig(folder / f"{file}.{ending}", dpi=150)
