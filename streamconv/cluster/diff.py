"""Two checkpoints compared by all nodes of a cluster: each opens both, and compares some of the tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..arguments import Paths, as_path, as_paths
from ..checks.comparison import bytes_to_read
from ..checks.diff import Diff, joined, open_both
from ..engine.progress import OnProgress
from ..paths import PathLike
from ..tensors.refs import Catalog
from ..text import setting
from ..units import parse_size
from .driver import Cluster, Task
from .portions import gathered, portion_bytes
from .steps import Job
from .tensors_job import KIND, from_plain


def diff_on(
    on: str,
    workers_per_node: int,
    a: PathLike,
    b: PathLike,
    *,
    max_mem: str | int | None = None,
    io: str = "auto",
    strategy: Paths | None = None,
    step: str | int | None = None,
    progress: OnProgress | None = None,
) -> Diff:
    """Compare two checkpoints on the nodes of a cluster, by name, shape, dtype and value.

    Args:
        on, workers_per_node: as `Cluster.open` takes them.
        a, b, max_mem, io, strategy, step, progress: as `streamconv.diff` takes them.

    Raises:
        StreamconvError: as `streamconv.diff`, or the cluster's.
    """
    limit = None if max_mem is None else parse_size(max_mem, setting("max_mem"))
    paths, strategies = [as_path(a, "a"), as_path(b, "b")], as_paths(strategy, "strategy")
    words = {"io": io, "step": step, "strategy": [str(path.absolute()) for path in strategies]}
    with Cluster.open(on, workers_per_node, limit) as cluster:
        cluster.prove([*paths, *strategies])
        one, other, _ = open_both(a, b, max_mem=max_mem, io=io, strategy=strategy, step=step)
        job = Job(KIND, {"a": _absolute(paths[0]), "b": _absolute(paths[1]), **words})
        differ: dict[str, Any] = {}
        nbytes = 0
        for result in cluster.run(job, list(_tasks(one, other)), progress):
            differ.update(result.values["differ"])
            nbytes += result.values["bytes"]
    found = (
        from_plain(differ[name], one[name], other[name]) if name in differ else None for name in one if name in other
    )
    return joined(one, other, nbytes, found)


def _tasks(one: Catalog, other: Catalog) -> Iterator[Task]:
    """Yield tasks of about as many bytes: tensors that are in both, in the order of the one."""
    sizes = {name: bytes_to_read(one[name], other[name]) for name in one if name in other}
    most = portion_bytes(sum(sizes.values()))
    for number, (names, nbytes) in enumerate(gathered(sizes.items(), most)):
        yield Task(number, {"names": names}, nbytes)


def _absolute(path: Path) -> str:
    return str(path.absolute())
