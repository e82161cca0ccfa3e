"""Running conversions as what is measured: a process of their own, from the cold source until the result is synced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .conversions import removed, streamconv
from .measuring import Run, measure
from .results import Data


def convert(
    source: Path, dest: Path, words: Sequence[str], max_mem: str, prepare: Callable[[], None] | None = None
) -> Run:
    """Convert a cold checkpoint, and remove the result.

    Args:
        source: the checkpoint.
        dest: where the result is put.
        words: further arguments of `streamconv convert`.
        max_mem: the budget.
        prepare: called in the child before the command is.

    Raises:
        BenchmarkError: it failed.
    """
    command = streamconv(["convert", str(source), str(dest), *words, "--max-mem", max_mem, "--quiet"])
    with removed(dest), removed(dest.with_name(f"{dest.name}.partial")):
        return measure(command, [source], prepare=prepare)


def every_round(runs: Mapping[str, list[Run]]) -> Data:
    """What contestants took, round by round, as data: by name, `seconds` and `peak` (bytes)."""
    return {
        name: {"seconds": [run.seconds for run in some], "peak": [run.peak for run in some]}
        for name, some in runs.items()
    }
