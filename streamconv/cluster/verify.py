"""A result verified against its manifest by all nodes of a cluster: each reads ranges of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ..checks.against_manifest import Verified, block_size, blocks_to_read, differs, paths_of, verified
from ..engine.progress import OnProgress
from ..output.manifest import Manifest
from .blocks_job import KIND
from .driver import Cluster, Task
from .portions import gathered, portion_bytes
from .steps import Job

Range = list[Any]
"""A file's name, its size, the number of the first block, and the digests of all blocks."""


def verify_on(
    on: str, workers_per_node: int, path: Path, manifest: Manifest, on_progress: OnProgress | None = None
) -> Verified:
    """Read every file that a manifest lists, on the nodes of a cluster, and compare the digests of its blocks.

    Args:
        on, workers_per_node: as `Cluster.open` takes them.
        path: the checkpoint.
        manifest: its manifest.
        on_progress: called now and then.

    Raises:
        StreamconvError: as `against_manifest.verify_blocks`, or the cluster's.
    """
    paths = paths_of(path)
    chosen = blocks_to_read(paths, manifest)
    tasks = list(_tasks([(name, *manifest.files[name], numbers) for name, numbers in chosen.items()]))
    job = Job(KIND, {"path": str(path.absolute()), "is_file": paths.is_file})
    with Cluster.open(on, workers_per_node) as cluster:
        cluster.prove([path])
        for result in cluster.run(job, tasks, on_progress):
            if result.values["differs"]:
                name, number = result.values["differs"]
                raise differs(paths, name, number, manifest)
        return replace(verified(manifest, sum(task.nbytes for task in tasks)), nodes=cluster.records)


def _tasks(files: Sequence[tuple[str, int, Sequence[str], Sequence[int]]]) -> Iterator[Task]:
    """Yield tasks of about as many bytes: ranges of blocks, of one file or several."""
    most = portion_bytes(sum(size for _, size, _, numbers in files if numbers))
    for number, (ranges, nbytes) in enumerate(gathered(_ranges(files, most), most)):
        yield Task(number, {"ranges": ranges}, nbytes)


def _ranges(files: Sequence[tuple[str, int, Sequence[str], Sequence[int]]], most: int) -> Iterator[tuple[Range, int]]:
    """Yield ranges of blocks with their bytes, `most` at most; an empty one for a file that is not read."""
    for name, size, digests, numbers in files:
        step = max(1, most // block_size(size, 0)) if size else 1
        for first in range(0, len(numbers), step) if numbers else [0]:
            some = numbers[first : first + step]
            # A block that the manifest has no digest of differs.
            known = [digests[number] if number < len(digests) else "" for number in some]
            yield [name, size, first, known], sum(block_size(size, number) for number in some)
