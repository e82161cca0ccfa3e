"""Tensors of two checkpoints compared: what a worker does of a diff. It opens both once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..checks.comparison import Comparison
from ..checks.diff import open_both
from ..checks.difference import Difference
from ..checks.elements import Compared, Element
from ..errors import SourceChangedError
from ..tensors.refs import Catalog, TensorRef
from ..text import quote
from .kinds import IsStopped, OnWork

#: The kind of this job, for the driver.
KIND = "diff"


class TensorsJob:
    """Pairs of tensors by name.

    A task has `names`. Its result is `differ`, tensor → how its elements compare as plain values, or `None` where they
    cannot be compared, for tensors that differ, and the `bytes` that were compared.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        limit = arguments["memory_limit"]
        paths = arguments["a"], arguments["b"]
        words = {name: arguments[name] for name in ("io", "strategy", "step")}
        self._one, self._other, _ = open_both(*paths, max_mem=limit, **words)
        self._comparison = Comparison(self._one, self._other, limit, arguments["io"])

    def run(self, task: Mapping[str, Any], progress: OnWork, is_stopped: IsStopped) -> dict[str, Any]:
        """Compare the tensors of a task; `progress` ends it where the run has ended."""
        before = self._comparison.done
        differ = {}
        for name in task["names"]:
            refuse_missing(name, self._one, self._other)
        compared = self._comparison.compare(
            task["names"], lambda done, file: progress(done - before, done - before, file)
        )
        for name, found in compared:
            if found:
                differ[name] = [found.kind, plain(found.compared)]
        return {"differ": differ, "bytes": self._comparison.done - before}


def refuse_missing(name: str, *sides: Catalog) -> None:
    """Refuse a tensor that the driver saw, and that is no longer there.

    Raises:
        SourceChangedError: it is missing.
    """
    for side in sides:
        if name not in side:
            raise SourceChangedError(f"{quote(side.path)} changed during the run: it has no tensor {quote(name)} now")


def plain(found: Compared | None) -> dict[str, Any] | None:
    """Return how elements compare as plain values."""
    if found is None:
        return None
    counts = {name: getattr(found, name) for name in ("elements", "unequal", "bits_only", "nans", "largest")}
    firsts = {name: getattr(found, name) and [*getattr(found, name)] for name in ("first", "first_bits")}
    return {**counts, **firsts}


def from_plain(found: Sequence[Any], one: TensorRef, other: TensorRef) -> Difference:
    """Return a difference from its kind, and the plain values of how its elements compare."""
    kind, values = found
    if values is None:
        return Difference(kind, one, other)
    firsts = {name: values[name] and Element(*values[name]) for name in ("first", "first_bits")}
    return Difference(kind, one, other, Compared(one.dtype, other.dtype, **{**values, **firsts}))
