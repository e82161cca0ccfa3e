"""Prove a result, all of it or a sample: convert again in memory, and compare every byte with what is on disk."""

from __future__ import annotations

from msgspec.structs import replace

from .checks.against_manifest import Verified
from .checks.against_source import CompareSink, chosen_boxes, sharing_memory, with_more_workers
from .checks.sample import Sample
from .engine import workers
from .engine.budget import Budget
from .engine.progress import OnProgress, Progress
from .errors import VerificationError
from .output.paths import ResultPaths
from .prepared import Prepared


def compare(
    planned: Prepared,
    paths: ResultPaths,
    budget: Budget,
    progress: OnProgress | None = None,
    sample: Sample | None = None,
) -> Verified:
    """Convert again in memory, all or a sample, and compare every byte with the result at `paths`.

    Raises:
        VerificationError: a byte differs.
    """
    if planned.workers is None:
        budget = with_more_workers(budget)
    budget, way = sharing_memory(budget, io_of(planned))
    sink = CompareSink(planned.layout, paths, way)
    try:
        chosen = chosen_boxes(planned.layout, sample) if sample else None
        tally = workers.run(planned.mapping, sink, budget, planned.reading.access, progress, chosen=chosen)
        if sample is None:
            sink.finish()
    finally:
        sink.close()
    files = sum(1 for _ in planned.layout.names)
    return Verified(files, planned.mapping.tensors, tally.done, planned.mapping.nbytes)


def compare_frames(planned: Prepared, paths: ResultPaths) -> None:
    """Compare sizes, headers, indices and checksums, where others compared the tensors.

    Raises:
        VerificationError: a byte differs.
    """
    _, way = sharing_memory(planned.budget, io_of(planned))
    sink = CompareSink(planned.layout, paths, way)
    try:
        sink.finish()
    finally:
        sink.close()


def io_of(planned: Prepared) -> str:
    """Return the word that says how files are accessed, which holds for a result that is compared too."""
    return str(planned.asked.get("io", "auto"))


def not_kept(error: VerificationError) -> VerificationError:
    """Return the error with what it means for a result that was written just before."""
    error.add("the storage did not keep what was written to it", "check the device, then convert again")
    return error


def verifying(progress: OnProgress | None) -> OnProgress | None:
    """Return the function that reports the progress of a comparison."""

    def report(event: Progress) -> None:
        if progress:
            progress(replace(event, file=f"verifying {event.file}"))

    return report if progress else None
