"""Run conversions to be measured: each in a process of its own, from a cold source until the result is synced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from .conversions import removed, streamconv, words
from .machine import busy_seconds
from .measuring import Run, measure
from .results import Data


def run_and_remove(
    command: Sequence[str],
    source: Path,
    dest: Path,
    *,
    env: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Run:
    """Run a command that reads a cold `source`, and remove what it wrote to `dest`, complete or not.

    Args:
        command: the program and its arguments.
        source, dest: the directories it reads and writes.
        env: its environment; by default this process's.
        prepare: called in the child before the command is.

    Raises:
        BenchmarkError: the command failed.
    """
    watched = partial(busy_seconds, dest.parent)
    with removed(dest), removed(dest.with_name(f"{dest.name}.partial")):
        return measure(command, [source], env=env, prepare=prepare, watched=watched)


def convert(
    source: Path, dest: Path, options: Sequence[str], max_mem: str, prepare: Callable[[], None] | None = None
) -> Run:
    """Convert a cold checkpoint, and remove the result.

    Args:
        source: the checkpoint.
        dest: where the result is written.
        options: further arguments of `streamconv convert`.
        max_mem: the memory limit.
        prepare: called in the child before the command is.

    Raises:
        BenchmarkError: the command failed.
    """
    return run_and_remove(streamconv(words(options, source, dest, max_mem)), source, dest, prepare=prepare)


def every_round(runs: Mapping[str, list[Run]]) -> Data:
    """Return what contestants took, round by round, by name: `seconds`, `cpu` seconds, `peak` and `read` bytes."""
    return {
        name: {what: [getattr(run, what) for run in some] for what in ("seconds", "peak", "cpu", "read")}
        for name, some in runs.items()
    }
