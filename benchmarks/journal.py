"""What the journal costs: conversions with it and without, cold cache, until synced, interleaved.

    python -m benchmarks.journal [--folder DIR] [--rounds 7] [--max-mem 512M]

Off: nothing is synced or put on record before the end. Mute: all is synced as ever, and nothing put on record. All else
is the same, the order in each round random. CPU is the share of a run's processor time that putting on record takes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from streamconv import samples
from streamconv.families import find

from .__main__ import _CASES, _CONFIG, _timed

_OFF = "import streamconv.recorder as r; r.BATCH = r.WINDOW = 1 << 60; r.PAUSE = 1e6; "
_MUTE = "import streamconv.journal as j; j.Journal.append = lambda self, records: None; "
_CPU = """
import atexit, resource, sys, time
import streamconv.journal as j
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
_RUN = "from streamconv.cli import main; main()"


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.journal")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: the temporary directory)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--max-mem", default="512M")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, dest = Path(folder) / "source", Path(folder) / "dest"
        samples.write_hf(source, _CONFIG, samples.hf_specs(find("mixtral"), _CONFIG), 500_000_000)
        print(f"{'case':20} {'with s':>8} {'off s':>8} {'mute s':>8} {'with/off':>20} {'with/mute':>20} {'CPU':>6}")
        for name, words in _CASES.items():
            command = ["convert", str(source), str(dest), *words, "--max-mem", arguments.max_mem, "--quiet"]
            print(_case(name, source, dest, command, arguments.rounds), flush=True)


def _case(name: str, source: Path, dest: Path, command: list[str], rounds: int) -> str:
    times: dict[str, list[float]] = {"": [], _OFF: [], _MUTE: []}
    for _ in range(rounds):
        for before in random.sample(list(times), len(times)):
            times[before].append(_timed(lambda b=before: _run(b, command), source))  # type: ignore[misc]
            shutil.rmtree(dest)
    seconds = " ".join(f"{statistics.median(some):8.2f}" for some in times.values())
    share = float(_run(_CPU, command).split()[-1])
    shutil.rmtree(dest)
    ratios = f"{_ratios(times[''], times[_OFF]):>20} {_ratios(times[''], times[_MUTE]):>20}"
    return f"{name:20} {seconds} {ratios} {share:6.2%}"


def _ratios(ones: list[float], others: list[float]) -> str:
    """Least, median and largest ratio of pairs."""
    ratios = sorted(one / other for one, other in zip(ones, others, strict=True))
    return f"{ratios[0]:.2f} {statistics.median(ratios):.3f} {ratios[-1]:.2f}"


def _run(before: str, command: list[str]) -> str:
    """Run a conversion in a process of its own; what it says on stderr."""
    words = [sys.executable, "-c", before + _RUN, *command]
    return subprocess.run(words, check=True, capture_output=True, text=True).stderr


if __name__ == "__main__":
    main()
