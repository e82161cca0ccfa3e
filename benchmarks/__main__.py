"""Run benchmarks, and write tables and plots of their results.

    python -m benchmarks [NAMES ...] [--folder DIR] [--memory-folder DIR] [--rounds 5] [--quick] [--out DIR]
    python -m benchmarks --render results.json [--out DIR]

Each name is a module of this package. OUT gets results.json, rewritten after each benchmark, tables.md, and plots as
PNG and SVG. Whatever does not fit into DIR is skipped, with a note: `copies` needs 13 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from . import machine, report
from .measuring import BenchmarkError
from .results import Benchmark, Data, Setting

NAMES = (
    *("copies", "peers", "ranks", "memory", "scaling", "operations", "reading", "proof", "journal", "cluster"),
    "far",
)

_SHARED_MEMORY = Path("/dev/shm")
# The largest source there, and one more copy of it.
_MEMORY_ROOM = 6 * 10**9


def main() -> int:
    """Run what the command line asks for; return the exit code: 1 if a benchmark could not be run."""
    parser = _parser()
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}")
    if arguments.list:
        return _list()
    if arguments.render:
        return _render(arguments.render, arguments.out or arguments.render.parent)
    _check(parser, arguments)
    return _run(arguments, arguments.out or Path("benchmark-results"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)} (default: all)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()),
        metavar="DIR",
        help="directory on the disk to measure; files created there are removed (default: the temporary directory)",
    )
    parser.add_argument(
        "--memory-folder",
        type=Path,
        default=None,
        metavar="DIR",
        help="the same on tmpfs (default: /dev/shm, if that is a tmpfs with enough space)",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="runs of each contestant (default: 5)")
    parser.add_argument("--quick", action="store_true", help="small checkpoints, to check that everything runs")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="directory for the results (default: benchmark-results; with --render, next to FILE)",
    )
    parser.add_argument("--render", type=Path, metavar="FILE", help="only write tables and plots of this results.json")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    return parser


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    for folder in filter(None, (arguments.folder, arguments.memory_folder)):
        if not folder.is_dir():
            parser.error(f"not a directory: {folder}")
    if machine.mount(arguments.folder).kind == "tmpfs":
        parser.error(f"{arguments.folder} is on tmpfs; name a directory on a disk with --folder")
    if arguments.memory_folder and machine.mount(arguments.memory_folder).kind != "tmpfs":
        parser.error(f"--memory-folder: {arguments.memory_folder} is not on tmpfs")
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")


def _list() -> int:
    for name in NAMES:
        try:
            title = _load(name).TITLE
        except ImportError as error:
            title = f"cannot be run here: {error}"
        print(f"{name:12} {title}")
    return 0


def _load(name: str) -> Benchmark:
    # Import only what was asked for: some benchmarks need packages that others do not.
    return cast(Benchmark, importlib.import_module(f"{__package__}.{name}"))


def _render(file: Path, out: Path) -> int:
    results: Data = json.loads(file.read_text())
    out.mkdir(parents=True, exist_ok=True)
    report.write(results, {name: _load(name) for name in results["benchmarks"]}, out)
    print((out / report.TABLES).read_text(), end="")
    return 0


def _run(arguments: argparse.Namespace, out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    with _setting(arguments) as setting:
        results = report.begin(_describe(setting), setting.rounds, setting.quick)
        print(report.heading(results), end="\n\n", flush=True)
        for name in arguments.names or NAMES:
            _measure(name, setting, results)
            report.save(results, out)
            print(_section(name, results), end="\n\n", flush=True)
    report.write(results, {name: _load(name) for name in results["benchmarks"]}, out)
    return 1 if results["failed"] else 0


@contextlib.contextmanager
def _setting(arguments: argparse.Namespace) -> Iterator[Setting]:
    """Yield empty folders on disk and on tmpfs; remove them at the end."""
    memory = arguments.memory_folder or _shared_memory()
    with _empty(arguments.folder) as on_disk, _empty(memory) if memory else contextlib.nullcontext() as in_memory:
        yield Setting(on_disk, in_memory, arguments.rounds, arguments.quick)


@contextlib.contextmanager
def _empty(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=folder) as found:
        yield Path(found)


def _shared_memory() -> Path | None:
    folder = _SHARED_MEMORY
    usable = folder.is_dir() and machine.mount(folder).kind == "tmpfs" and machine.room(folder) >= _MEMORY_ROOM
    return folder if usable else None


def _describe(setting: Setting) -> Data:
    return machine.describe(setting.places, setting.quick)


def _measure(name: str, setting: Setting, results: Data) -> None:
    """Put into `results` what a benchmark measured, or why it could not be run."""
    try:
        measured = _load(name).measure(setting, lambda words: print(f"{name}: {words}", file=sys.stderr, flush=True))
    except (BenchmarkError, ImportError, OSError, subprocess.SubprocessError) as error:
        results["failed"][name] = str(error)
    else:
        # The same values as when they are read back from the file.
        results["benchmarks"][name] = json.loads(json.dumps(measured))


def _section(name: str, results: Data) -> str:
    if name in results["failed"]:
        return report.failure(name, results["failed"][name])
    return report.section(_load(name), results["benchmarks"][name])


if __name__ == "__main__":
    sys.exit(main())
