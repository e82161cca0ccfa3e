"""A plan is made: parse what was given → open the source → recognise the model → lay out → divide the memory."""

from __future__ import annotations

from collections.abc import Mapping

from . import arguments
from .arguments import Paths, as_path
from .conversion import Plan
from .families import Value
from .formats.layout import HF_SAFETENSORS, PEFT
from .output import format_choice
from .output.settings import Settings
from .paths import PathLike
from .planning.options import parse_options
from .prepared import decide_budget, decide_companions, decide_layout
from .rules.statements import Direction
from .source import Source
from .storage import access
from .tensors import dtypes
from .text import setting
from .units import DEFAULT_SHARD_SIZE, parse_size


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
        workers: threads; by default two for each core, as memory allows, at most 16.
        config: the model's config.json if it is not next to the weights, or a MindFormers YAML; for `mindone`, the
            directory of a checkpoint of the other side.
        io: `read` and write through the page cache; `direct`, past it; `far`, past it with many requests at once; or
            `auto`, by file system.
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
    asked = dict(locals())
    arguments.check(**asked)
    shard_size = parse_size(max_shard_size, setting("max_shard_size"))
    from_ranks, to_ranks = arguments.strategies(strategy, dest_strategy, reverse=reverse, model=model, links=links)
    opened = Source.open(source, max_mem, config, from_ranks, step)
    destination = format_choice.destination(as_path(dest, "dest"))
    direction = Direction.REVERSE if reverse else Direction.FORWARD
    chosen, family_source = opened.family(model, family, direction)
    kind = format_choice.choose_format(format, destination, direction, chosen, crc, bool(to_ranks))
    given = parse_options(chosen, options or {})
    opened = opened.referring(chosen, direction)
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
        asked=arguments.plain(**asked),
        given_paths=[
            *(*from_ranks, *to_ranks, *opened.referred),
            *([as_path(family, "family")] if family is not None else []),
        ],
    )
