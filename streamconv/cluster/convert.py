"""A conversion, and a comparison with its source, on all nodes of a cluster: each converts or compares parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace

from ..checks.against_manifest import Verified
from ..conversion import Plan, run_spread
from ..engine.progress import OnProgress
from ..parts.cutting import Part, cut_parts
from ..parts.scopes import Scopes
from ..prepared import Prepared
from ..proving import compare_frames
from ..report import Report
from .driver import Cluster, Task
from .parts_job import COMPARE, CONVERT
from .steps import Job


def convert_on(cluster: Cluster, planned: Plan, progress: OnProgress | None = None) -> Report:
    """Convert as planned; the workers convert the parts, and this process puts them together.

    Args:
        cluster: the workers, which see what this process sees.
        planned: the conversion.
        progress: called a few times a second. An exception that it raises stops the run, which can be resumed.

    Raises:
        StreamconvError: as `Plan.run`, or the cluster's.
    """

    def spread(parts: Sequence[Part], done: int, hold: Callable[[], None]) -> int:
        job = Job(CONVERT, planned.asked)
        results = _results(cluster, job, planned, parts, partial(_holding, hold, progress))
        # What comes now is this process's work, with the memory of its node.
        cluster.dismiss()
        return sum(values["read"] for values in results)

    report = run_spread(planned, spread, progress)
    return replace(report, nodes=tuple(cluster.records))


def _holding(hold: Callable[[], None], progress: OnProgress | None, event: Any) -> None:
    hold()
    if progress:
        progress(event)


def compare_on(cluster: Cluster, planned: Prepared, progress: OnProgress | None = None) -> Verified:
    """Convert again in the memory of the workers, and compare every byte with the result at its final name.

    Raises:
        VerificationError: a byte differs.
        StreamconvError: the cluster's.
    """
    compare_frames(planned, planned.destination.paths)
    parts = cut_parts(planned.mapping, planned.layout)
    _results(cluster, Job(COMPARE, planned.asked), planned, parts, progress)
    files = sum(1 for _ in planned.layout.names)
    nbytes = planned.mapping.nbytes
    return Verified(files, planned.mapping.tensors, nbytes, nbytes, nodes=cluster.records)


def _results(
    cluster: Cluster, job: Job, planned: Prepared, parts: Sequence[Part], progress: OnProgress | None
) -> list[Any]:
    scopes = Scopes(planned.mapping, planned.layout)
    tasks = [Task(part.number, {"part": part.number}, scopes.of(part).nbytes) for part in parts]
    total, left = planned.mapping.nbytes, sum(task.nbytes for task in tasks)
    found = cluster.run(job, tasks, progress, total=total, resumed=max(0, total - left))
    return [result.values for result in found]
