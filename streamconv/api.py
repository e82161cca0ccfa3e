"""The public functions: plan, convert, verify, diff, check, inspect.

A plan is made in the order of `plan`: parse what was given → open the source → recognise the model → decide its options
→ lay out the result → divide the memory.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from . import arguments
from .arguments import Paths, PlanOptions, as_path
from .checkpoint import inspected
from .checks.against_manifest import Verified, required_manifest, verify_blocks
from .checks.diff import Diff, diff_checkpoints
from .checks.sample import Sample, parse_sample
from .conversion import Plan, compare
from .engine.progress import OnProgress, Progress
from .errors import UsageError, reading
from .families import Value, registry
from .formats.layout import HF_SAFETENSORS, PEFT
from .output import format_choice, manifest
from .output.manifest import Manifest
from .output.settings import Settings
from .paths import PathLike
from .planning import family_check
from .planning.family_check import Finding
from .planning.options import parse_options
from .prepared import decide_budget, decide_companions, decide_layout
from .report import Report
from .rules.statements import Direction
from .source import Source
from .storage import access, disk
from .tensors import dtypes
from .text import setting
from .units import DEFAULT_SHARD_SIZE, parse_size

if TYPE_CHECKING:
    from typing_extensions import Unpack


#: Arguments of `plan` that only a run reads.
_OF_A_RUN = ("overwrite", "restart", "verify")


def plan(
    source: PathLike,
    dest: PathLike,
    *,
    model: str | None = None,
    family: PathLike | None = None,
    reverse: bool = False,
    dtype: str | None = None,
    options: Mapping[str, Value] | None = None,
    format: str | None = None,  # noqa: A002 - the command line's word
    max_mem: str | int | None = None,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    workers: int | None = None,
    config: PathLike | None = None,
    io: str = "auto",
    crc: bool = False,
    strategy: Paths | None = None,
    step: str | int | None = None,
    dest_strategy: Paths | None = None,
    links: bool = True,
    overwrite: bool = False,
    restart: bool = False,
    verify: bool = False,
) -> Plan:
    """Plan a conversion: names, shapes, dtypes, sizes, memory. Only headers are read, and nothing is written.

    Args:
        source: a checkpoint: a directory or one file.
        dest: the result: a directory, a `.ckpt` file, or a torch file (`.bin`, `.pt`, `.pth`).
        model: the model family; by default recognised from config.json.
        family: a Python file that defines a family of your own, instead of `model`.
        reverse: convert from MindSpore to HuggingFace.
        dtype: `fp32`, `fp16` or `bf16` for every float tensor; by default every tensor keeps its dtype.
        options: options of the family by name.
        format: `safetensors` (MindSpore's), `ckpt`, `hf` or `torch`; by default inferred from `dest` and the direction.
        max_mem: resident memory allowed, in bytes or as a size such as `"16G"`; by default a quarter of what is
            available, at most 2 GiB.
        max_shard_size: bytes of an output shard at most, or a size such as `"5GB"`.
        workers: threads; by default as many as cores and memory allow, at most 4.
        config: the model's config.json if it is not next to the weights, or a MindFormers YAML.
        io: `read` and write through the page cache, or `direct`, past it; or `auto`, by file system.
        crc: append MindSpore's CRC to a `.ckpt`.
        strategy: strategy files of a training, or their directory: how MindSpore's side is cut for ranks. `dest` gets
            a file for each rank; in reverse and with model `raw` they are the source's, by default those next to it.
        step: which step of a training, such as `"1_10"` or 1000; by default the newest complete one.
        dest_strategy: with model `raw`, where `strategy` is the source's, that of the destination.
        links: where ranks hold the same, write one file and link the others to it.
        overwrite: replace a checkpoint that exists at `dest`.
        restart: discard what an interrupted run left instead of resuming it.
        verify: compare the result with the source before it gets its name, and all copies of slices with each other.

    Returns:
        The plan: `print` it, look at it, `run` it.

    Raises:
        UsageError: an argument does not parse, or does not go with the others.
        SourceError: the source is broken, incomplete or unreadable.
        UnsupportedError: the model, an option or a tensor is not supported.
        BudgetError: `max_mem` is too small; the hint names the smallest that works.
    """
    arguments.check(**locals())
    shard_size = parse_size(max_shard_size, setting("max_shard_size"))
    from_ranks, to_ranks = arguments.strategies(strategy, dest_strategy, reverse=reverse, model=model, links=links)
    opened = Source.open(source, max_mem, config, from_ranks, step)
    destination = format_choice.destination(as_path(dest, "dest"))
    direction = Direction.REVERSE if reverse else Direction.FORWARD
    chosen, family_source = opened.family(model, family, direction)
    kind = format_choice.choose_format(format, destination, direction, chosen, crc, bool(to_ranks))
    given = parse_options(chosen, options or {})
    mapping = opened.map(chosen, direction, dtypes.target(dtype), given)
    cut = opened.strategy(to_ranks)
    mapping = opened.cut(mapping, cut) if cut else mapping
    kind = PEFT if mapping.is_adapter and kind == HF_SAFETENSORS else kind
    settings = Settings.of(mapping, kind, shard_size, crc, links)
    placed = decide_layout(mapping, settings, destination.path.name, chosen.torch_root, cut)
    return Plan(
        catalog=opened.catalog,
        destination=destination,
        config=opened.config,
        companions=decide_companions(mapping, chosen, opened.catalog, opened.config, destination),
        family=chosen,
        family_source=family_source,
        given_options=frozenset(given),
        mapping=mapping,
        layout=placed,
        settings=settings,
        workers=workers,
        budget=decide_budget(mapping, placed, opened.memory_limit, workers),
        reading=access.for_reading(io, opened.catalog.files),
        writing=access.for_writing(io, destination.path.parent),
        overwrite=overwrite,
        restart=restart,
        verify=verify,
        given_paths=[*from_ranks, *to_ranks, *([as_path(family, "family")] if family is not None else [])],
    )


def convert(
    source: PathLike, dest: PathLike, *, progress: OnProgress | None = None, **options: Unpack[PlanOptions]
) -> Report:
    """Convert a checkpoint.

    Args:
        source: a checkpoint: a directory or one file.
        dest: the result: a directory, a `.ckpt` file or a torch file.
        progress: called a few times a second. An exception that it raises stops the run, which can be resumed.
        options: the other arguments of `plan`.

    Raises:
        StreamconvError: see its subclasses; nothing new stands under the final name.
    """
    return plan(source, dest, **options).run(progress)


def verify(
    dest: PathLike,
    *,
    source: PathLike | None = None,
    sample: str | float | None = None,
    seed: int | None = None,
    progress: OnProgress | None = None,
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
        options: arguments of `plan`; only with `source`.

    Raises:
        VerificationError: a byte differs.
        UsageError: the sample is no share, or an option needs a source.
        StreamconvError: the checkpoint, its manifest or the source cannot be read.
    """
    taken = parse_sample(sample, seed)
    path = as_path(dest, "dest")
    with reading(path, "cannot open"):
        if not disk.mode(path):
            raise FileNotFoundError(errno.ENOENT, "no such file or directory")
    found = manifest.find(path)
    if source is None:
        return _verify_alone(path, found, taken, progress, options)
    if unread := [name for name in _OF_A_RUN if name in options]:
        raise UsageError(f"{setting(unread[0])} has no effect: verify writes nothing", f"omit {setting(unread[0])}")
    recorded = cast(PlanOptions, found.arguments if found else {})
    recorded.update(options)
    planned = plan(source, dest, **recorded)
    return compare(planned, planned.destination.paths, planned.budget, progress, taken)


def diff(
    a: PathLike,
    b: PathLike,
    *,
    max_mem: str | int | None = None,
    io: str = "auto",
    strategy: Paths | None = None,
    step: str | int | None = None,
    progress: OnProgress | None = None,
) -> Diff:
    """Compare two checkpoints of any supported formats by name, shape, dtype and value.

    Args:
        a: a directory or a file.
        b: another one; names are compared as they are.
        max_mem: resident memory allowed, in bytes or as a size such as `"16G"`.
        io: `read` through the page cache, or `direct`, past it; or `auto`, by file system.
        strategy, step: how the ranks of a training hold their tensors, and which step is meant, as for `plan`.
        progress: called a few times a second; counts bytes of both sides.

    Raises:
        SourceError: one is broken or unreadable, or changes during the run.
        UnsupportedError: the format of one, or a dtype in it, is not supported.
        BudgetError: `max_mem` is too small.
        UsageError: `max_mem` or `io` does not parse.
    """
    return diff_checkpoints(a, b, max_mem=max_mem, io=io, strategy=strategy, step=step, progress=progress)


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
    opened = Source.open(source, max_mem, config)
    return family_check.check_family(chosen, opened.catalog, opened.config.values)


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
    path: Path, found: Manifest | None, sample: Sample | None, progress: OnProgress | None, options: PlanOptions
) -> Verified:
    """Verify against the manifest, which needs no conversion, and so none of its options."""
    if options:
        names = ", ".join(setting(name) for name in options)
        raise UsageError(
            f"without a source, a checkpoint is compared with its manifest, and {names} would have no effect",
            f"give {setting('source')}, or omit {names}",
        )
    return verify_blocks(path, required_manifest(found, path), progress, sample)


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
    "inspect",
    "plan",
    "verify",
]
