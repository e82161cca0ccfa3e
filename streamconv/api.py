"""The public functions: plan, convert, verify, diff, check, inspect."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from . import arguments
from .arguments import Paths, PlanOptions, as_path
from .checkpoint import inspected
from .checks.against_manifest import Verified, required_manifest, verify_blocks
from .checks.diff import Diff, diff_checkpoints
from .checks.sample import Sample, parse_sample
from .conversion import Plan
from .engine.progress import OnProgress, Progress
from .errors import UsageError, reading
from .families import Direction, registry
from .output import manifest
from .output.manifest import Manifest
from .paths import PathLike
from .planning import family_check
from .planning.family_check import Finding
from .plans import plan
from .proving import compare
from .report import Report
from .running import memory_limit, ready
from .shares import finish
from .source import Source
from .storage import disk
from .text import setting

if TYPE_CHECKING:
    from typing_extensions import Unpack


#: Arguments of `plan` that only a run reads.
_OF_A_RUN = ("overwrite", "restart", "verify")


def convert(
    source: PathLike,
    dest: PathLike,
    *,
    progress: OnProgress | None = None,
    on: str | None = None,
    workers_per_node: int = 1,
    part: str | None = None,
    **options: Unpack[PlanOptions],
) -> Report:
    """Convert a checkpoint.

    Args:
        source: a checkpoint: a directory or one file.
        dest: the result: a directory, a `.ckpt` file or a torch file.
        progress: called a few times a second. An exception that it raises stops the run, which can be resumed.
        on: let the nodes of a Ray cluster do it, which see the same files: `"ray"` or `"ray://HOST:10001"`, as for
            `verify`. `max_mem` is for each node then.
        workers_per_node: processes on each node; only with `on`.
        part: `"3/16"` for the third of 16 processes that share the work, on any hosts that see the same files; `"auto"`
            or `"auto/16"` where variables of Slurm, Kubernetes, msrun or MPI tell. The last to end, or `finish`, puts
            the result together.
        options: the other arguments of `plan`.

    Raises:
        StreamconvError: see its subclasses; nothing new stands under the final name.
    """
    with ready(source, dest, options, on=on, workers_per_node=workers_per_node, part=part) as runner:
        return runner.run(plan(source, dest, **options), progress)


def verify(
    dest: PathLike,
    *,
    source: PathLike | None = None,
    sample: str | float | None = None,
    seed: int | None = None,
    progress: OnProgress | None = None,
    on: str | None = None,
    workers_per_node: int = 1,
    **options: Unpack[PlanOptions],
) -> Verified:
    """Prove a checkpoint that streamconv wrote: against its manifest, or with `source` against the source.

    With a source, the conversion is planned as the manifest records it (`options` override that), done again in memory,
    and compared byte by byte.

    Args:
        dest: the checkpoint.
        source: what it was converted from.
        sample: read only a share, such as `"5%"` or 0.05, spread evenly over everything. Sizes, names and headers are
            compared in full, CRCs (which cover whole files or tensors) not at all.
        seed: the same seed takes the same sample; by default each run takes another.
        progress: called a few times a second.
        on: let the nodes of a Ray cluster do it: `"ray"` for the cluster of `RAY_ADDRESS`, one that runs on this
            machine, or one that is started for it; `"ray://HOST:10001"` for that of a Ray client's server.
        workers_per_node: processes on each node; only with `on`.
        options: arguments of `plan`; only with `source`.

    Raises:
        VerificationError: a byte differs.
        UsageError: the sample is no share, an option needs a source, or `on` names no cluster.
        StorageError: the cluster fails, or a node does not see the checkpoint.
        StreamconvError: the checkpoint, its manifest or the source cannot be read.
    """
    arguments.check_cluster(on, workers_per_node)
    if on is not None and sample is not None:
        raise UsageError(f"{setting('on')} has no effect on a sample: it is small", f"omit {setting('on')}")
    taken = parse_sample(sample, seed)
    path = as_path(dest, "dest")
    with reading(path, "cannot open"):
        if not disk.mode(path):
            raise FileNotFoundError(errno.ENOENT, "no such file or directory")
    found = manifest.find(path)
    if source is None:
        return _verify_alone(path, found, taken, progress, on, workers_per_node, options)
    return _verify_against(source, path, found, taken, progress, on, workers_per_node, options)


def diff(
    a: PathLike,
    b: PathLike,
    *,
    max_mem: str | int | None = None,
    io: str = "auto",
    strategy: Paths | None = None,
    step: str | int | None = None,
    progress: OnProgress | None = None,
    on: str | None = None,
    workers_per_node: int = 1,
) -> Diff:
    """Compare two checkpoints of any supported formats by name, shape, dtype and value.

    Args:
        a: a directory or a file.
        b: another one; names are compared as they are.
        max_mem: resident memory allowed, in bytes or as a size such as `"16G"`; on a cluster, on each node.
        io: `read` through the page cache, or `direct`, past it; or `auto`, by file system.
        strategy, step: how the ranks of a training hold their tensors, and which step is meant, as for `plan`.
        progress: called a few times a second; counts bytes of both sides.
        on, workers_per_node: let the nodes of a Ray cluster do it, as for `verify`.

    Raises:
        SourceError: one is broken or unreadable, or changes during the run.
        UnsupportedError: the format of one, or a dtype in it, is not supported.
        BudgetError: `max_mem` is too small.
        UsageError: `max_mem` or `io` does not parse, or `on` names no cluster.
        StorageError: the cluster fails, or a node does not see a checkpoint.
    """
    arguments.check_cluster(on, workers_per_node)
    compared: Callable[..., Diff] = diff_checkpoints
    if on is not None:
        from .cluster.diff import diff_on

        compared = partial(diff_on, on, workers_per_node)
    return compared(a, b, max_mem=max_mem, io=io, strategy=strategy, step=step, progress=progress)


def check(
    family: PathLike, source: PathLike, *, config: PathLike | None = None, max_mem: str | int | None = None
) -> Iterator[Finding]:
    """Check a model family against a real checkpoint: unmatched, ambiguous and not invertible tensors.

    Args:
        family: a Python file that defines it, or the name of a known one.
        source: a HuggingFace checkpoint; only headers are read.
        config: the model's config.json if it is not next to the weights.
        max_mem: resident memory allowed, as for `plan`.

    Yields:
        What was found, choice of options by choice of options: `text`, and whether it `is_error`.

    Raises:
        StreamconvError: family, config or source cannot be read.
    """
    path = as_path(family, "family")
    chosen = registry.load(path) if path.suffix == ".py" else registry.find(str(path))
    opened = Source.open(source, max_mem, config).referring(chosen, Direction.FORWARD)
    return family_check.check_family(chosen, opened.understood, opened.config.for_rules)


def inspect(path: PathLike, *, strategy: Paths | None = None, step: str | int | None = None) -> dict[str, object]:
    """Return what a checkpoint holds as plain values: its files, and each tensor's dtype, shape and place.

    Args:
        path: a directory or a file, in any supported format; only headers are read.
        strategy, step: how the ranks of a training hold its tensors, and which step to look at, as for `plan`.

    Raises:
        SourceError: it is broken or unreadable.
        UnsupportedError: its format, or a dtype in it, is not supported.
    """
    return inspected(path, strategy, step).to_json()


def _verify_alone(
    path: Path,
    found: Manifest | None,
    sample: Sample | None,
    progress: OnProgress | None,
    on: str | None,
    workers_per_node: int,
    options: PlanOptions,
) -> Verified:
    """Verify against the manifest, which needs no conversion, and so none of its options."""
    if options:
        names = ", ".join(setting(name) for name in options)
        raise UsageError(
            f"without a source, a checkpoint is compared with its manifest, and {names} would have no effect",
            f"give {setting('source')}, or omit {names}",
        )
    known = required_manifest(found, path)
    if on is not None:
        from .cluster.verify import verify_on

        return verify_on(on, workers_per_node, path, known, progress)
    return verify_blocks(path, known, progress, sample)


def _verify_against(
    source: PathLike,
    path: Path,
    found: Manifest | None,
    sample: Sample | None,
    progress: OnProgress | None,
    on: str | None,
    workers_per_node: int,
    options: PlanOptions,
) -> Verified:
    """Verify against the source, converted as the manifest records it."""
    if unread := [name for name in _OF_A_RUN if name in options]:
        raise UsageError(f"{setting(unread[0])} has no effect: verify writes nothing", f"omit {setting(unread[0])}")
    recorded = cast(PlanOptions, found.arguments if found else {})
    recorded.update(options)
    if on is None:
        planned = plan(source, path, **recorded)
        return compare(planned, planned.destination.paths, planned.budget, progress, sample)
    from .cluster.convert import compare_on
    from .cluster.driver import Cluster

    with Cluster.open(on, workers_per_node, memory_limit(recorded.get("max_mem"))) as cluster:
        cluster.prove([as_path(source, "source"), path])
        return compare_on(cluster, plan(source, path, **recorded), progress)


__all__ = [
    "Diff",
    "Finding",
    "Plan",
    "PlanOptions",
    "Progress",
    "Report",
    "Verified",
    "check",
    "convert",
    "diff",
    "finish",
    "inspect",
    "plan",
    "verify",
]
