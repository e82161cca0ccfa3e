"""Where a conversion runs: in this process, as one share of it among others, or on the nodes of a cluster.

with ready(source, dest, on="ray") as runner:     # the cluster answers, and every node sees source and destination
    runner.run(plan(source, dest))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct

from .arguments import PlanOptions, as_path, as_paths, check_cluster
from .conversion import Plan
from .engine.progress import OnProgress
from .errors import UsageError
from .parts import share
from .parts.share import Share
from .paths import PathLike
from .report import Report
from .text import counted, setting
from .units import parse_size

if TYPE_CHECKING:
    from .cluster.driver import Cluster


class Runner(Struct, frozen=True):
    """Runs a plan where it was asked for.

    Attributes:
        share: which share of the plan this process converts, `None` for all of it.
        cluster: the workers that convert it; without one, this process does.
    """

    share: Share | None = None
    cluster: Cluster | None = None

    @property
    def lines(self) -> list[str]:
        """What to say next to the plan."""
        if self.cluster is not None:
            return [f"cluster  {counted(self.cluster.workers, 'worker')} of the cluster {self.cluster.where}"]
        if self.share is not None:
            return [f"part     {self.share}" + (f" (from {self.share.known})" if self.share.known else "")]
        return []

    def run(self, planned: Plan, progress: OnProgress | None = None) -> Report:
        """Convert as planned.

        Raises:
            StreamconvError: as `Plan.run`.
        """
        if self.cluster is not None:
            from .cluster.convert import convert_on

            return convert_on(self.cluster, planned, progress)
        if self.share is None:
            return planned.run(progress)
        from .shares import convert_share

        return convert_share(planned, self.share, progress)


@contextmanager
def ready(
    source: PathLike,
    dest: PathLike,
    options: PlanOptions,
    *,
    on: str | None = None,
    workers_per_node: int = 1,
    part: str | None = None,
) -> Iterator[Runner]:
    """Make ready what runs a conversion, before it is planned.

    Args:
        source, dest, options: as `plan` takes them.
        on, workers_per_node, part: as `convert` takes them.

    Raises:
        UsageError: one does not parse, or does not go with the others.
        StorageError: the cluster does not answer, or a node does not see the files.
    """
    check_cluster(on, workers_per_node)
    mine = _share(part, options.get("restart", False))
    if on is None:
        yield Runner(mine)
        return
    if mine is not None:
        raise UsageError(f"{setting('part', mine)} and {setting('on', on)} exclude each other", "give one of them")
    from .cluster.driver import Cluster

    with Cluster.open(on, workers_per_node, memory_limit(options.get("max_mem"))) as cluster:
        read = [as_path(source, "source"), *as_paths(options.get("strategy"), "strategy")]
        cluster.prove(read, as_path(dest, "dest"))
        yield Runner(cluster=cluster)


def has_no_share(part: str | None) -> bool:
    """Return whether this process is no worker: msrun starts the same command once more, as its scheduler."""
    return part is not None and share.is_scheduler(part)


def memory_limit(max_mem: str | int | None) -> int | None:
    """Return a memory limit in bytes, `None` where none is given: each node decides then.

    Raises:
        UsageError: it does not parse.
    """
    return None if max_mem is None else parse_size(max_mem, setting("max_mem"))


def _share(part: object, restart: bool) -> Share | None:
    """Return which share of a plan this process converts, `None` for all of it."""
    if part is None:
        return None
    if not isinstance(part, str):
        raise UsageError(f"{setting('part')} must be str, not {type(part).__name__}")
    if restart:
        raise UsageError(
            f"{setting('restart', True)} would discard what the other parts wrote",
            f"omit {setting('restart', True)}; to start over, remove what is unfinished before the parts are started",
        )
    return share.parse(part)
