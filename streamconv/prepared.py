"""All that is decided before a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from .configs import companions
from .configs.companions import Companions, Home
from .configs.model_config import ModelConfig
from .configs.peft import ALPHA, has_adapters
from .engine.boxes import Cells, is_scattered
from .engine.budget import MIN_REGION, SMALL_REGION, Budget, divide
from .families import Family
from .formats import layout as layouts
from .formats import rank_layout
from .formats.layout import FileLayout
from .formats.rank_layout import Content
from .output.destination import Destination
from .output.settings import Settings
from .planning.cutting import Strategy, written_layouts
from .planning.left_over import OF_CODES
from .planning.mapping import RankFile, TensorMapping
from .planning.outputs import Output
from .ranks import strategy_format
from .rules.statements import TIED, Direction
from .storage import limits
from .storage.access import ChosenAccess
from .storage.memory import resident_bytes
from .tensors.refs import Catalog, TensorRef, TensorSpec
from .tensors.view_nodes import Stored
from .text import counted, in_python, quote, setting
from .units import BLOCK

#: What is said of a source whose slices are held by several ranks.
NOT_COMPARED = (
    f"one copy of each slice is read; the copies in other ranks are not compared: {setting('verify', True)} does"
)


class Prepared(Struct, frozen=True, kw_only=True):
    """All that is decided before a run.

    Attributes:
        catalog: the source's tensors.
        destination: where the result goes.
        config: the model's config.json.
        companions: the files next to the weights, written and copied; none next to a single file.
        family: the model family.
        family_source: how the family is known: the option, the manifest, or the words in config.json.
        given_options: the options that were given, not decided.
        mapping: every output tensor, and the account of every source tensor.
        layout: every output file, to the byte.
        settings: what decides the result's bytes.
        workers: threads asked for, `None` for as many as cores and memory allow.
        budget: how the memory limit is divided.
        reading: how the source's files are accessed.
        writing: how the result's files are accessed.
        overwrite: whether a checkpoint at the destination is replaced.
        restart: whether what an interrupted run left is discarded.
        verify: whether the result is compared with the source before it gets its name.
        asked: the arguments of `plan`, as plain values: another process plans the same with them.
        given_paths: the files and directories that were given besides the source and its config.
    """

    catalog: Catalog
    destination: Destination
    config: ModelConfig
    companions: Companions
    family: Family
    family_source: str
    given_options: frozenset[str]
    mapping: TensorMapping
    layout: FileLayout
    settings: Settings
    workers: int | None
    budget: Budget
    reading: ChosenAccess
    writing: ChosenAccess
    overwrite: bool
    restart: bool
    verify: bool
    asked: Mapping[str, object]
    given_paths: Sequence[Path] = ()

    @property
    def warnings(self) -> Sequence[str]:
        """What may be wrong with the result although nothing stops the run; the report shows it too."""
        return tuple(map(in_python, marked_warnings(self)))

    @property
    def notes(self) -> Sequence[str]:
        """What was decided that is good to know."""
        return tuple(map(in_python, marked_notes(self)))

    @property
    def copied_refs(self) -> Sequence[TensorRef]:
        """The tensors of the source that are written and that several ranks may hold copies of."""
        return [ref for ref in self.catalog.values() if ref.slices and ref.name not in self.mapping.dropped]

    def __repr__(self) -> str:
        source, dest = quote(self.catalog.path), quote(self.destination.path)
        return f"<{type(self).__name__} {source} to {dest}: {counted(self.mapping.tensors, 'tensor')}>"


def marked_warnings(prepared: Prepared) -> Sequence[str]:
    """Return the warnings; settings in them are marked (`text.setting`)."""
    return *prepared.catalog.warnings, *prepared.companions.warnings


def marked_notes(prepared: Prepared) -> Sequence[str]:
    """Return the notes; settings in them are marked (`text.setting`)."""
    copies = prepared.catalog.has_copies and not prepared.verify
    return *prepared.catalog.notes, *prepared.mapping.notes, *([NOT_COMPARED] if copies else [])


def paths_read(prepared: Prepared) -> Sequence[Path]:
    """Return the files and directories that a run reads besides the source's, or that its plan was made of."""
    config = [prepared.config.path] if prepared.config.path else []
    given = (*prepared.given_paths, *prepared.catalog.strategies)
    return [*given, *config, *prepared.companions.copies.values()]


def decide_companions(
    mapping: TensorMapping, family: Family, catalog: Catalog, config: ModelConfig, destination: Destination
) -> Companions:
    """Return the files that go next to the weights: a model's, or an adapter's.

    Raises:
        SourceError: a file cannot be read.
        UsageError: nothing says how an adapter is scaled.
        UnsupportedError: MindFormers cannot scale an adapter as PEFT does.
    """
    keeps_peft = not mapping.is_adapter and has_adapters(catalog)
    home = Home(config, catalog.directory, catalog.is_repository, keeps_peft)
    if mapping.is_adapter and mapping.direction is Direction.FORWARD:
        specs = [TensorSpec(ref.name, ref.dtype, ref.shape) for ref in catalog.values()]
        found = companions.of_mindspore_adapter(home, specs)
    elif mapping.is_adapter:
        found = companions.of_peft_adapter(home, [o.spec for o in mapping.outputs], mapping.options.get(ALPHA))
    elif destination.paths.is_file:
        return Companions()
    else:
        settled = {**family.config_updates(mapping.options), **({TIED: False} if mapping.untied else {})}
        found = companions.of_model(home, mapping.held_dtype, not _is_quantised(mapping), settled)
    return replace(found, texts={}, copies={}, left={}) if destination.paths.is_file else found


def decide_layout(
    mapping: TensorMapping, settings: Settings, name: str, torch_root: str | None, strategy: Strategy | None
) -> FileLayout:
    """Lay the result out to the byte.

    Args:
        mapping: the tensors to be written.
        settings: what decides the result's bytes.
        name: the destination's name, which a result of one file has.
        torch_root: the key under which a torch file holds the tensors; `None` for the top level.
        strategy: how the tensors are cut for ranks, if they are.

    Raises:
        UnsupportedError: the format cannot hold a tensor.
    """
    if strategy is None:
        specs = [output.spec for output in mapping.outputs]
        return layouts.lay_out(specs, settings.format, name, settings.max_shard_size, settings.crc, torch_root)
    texts = {
        rank_layout.strategy_file(stage.first_rank): strategy_format.encode(number, written_layouts(mapping, stage))
        for number, stage in enumerate(strategy.stages)
    }
    contents = (_content(mapping, file) for file in mapping.rank_files)
    return rank_layout.lay_out_ranks(contents, settings.format, settings.crc, settings.links, texts)


def _content(mapping: TensorMapping, file: RankFile) -> Content:
    held = [mapping.outputs[number] for number in file.outputs]
    specs = [TensorSpec(output.tensor, output.dtype, output.view.shape) for output in held]
    return Content(file.ranks, [output.name for output in held], specs)


def _is_quantised(mapping: TensorMapping) -> bool:
    """Return whether the result may hold codes, and not weights alone."""
    return not mapping.dequantised and any(output.dtype in OF_CODES for output in mapping.outputs)


def decide_budget(mapping: TensorMapping, layout: FileLayout, memory_limit: int, workers: int | None) -> Budget:
    """Divide the memory limit, from what is resident now.

    Use no more workers than can have their files open, and fewer if that is the only way to give a transposed tensor a
    region with long contiguous runs: many short reads cost more than a second worker gains.

    Args:
        mapping: the tensors to be written.
        layout: the files to be written.
        memory_limit: bytes of resident memory allowed.
        workers: threads asked for, `None` for as many as cores and memory allow.

    Raises:
        BudgetError: it does not suffice; the hint names the smallest limit that does.
    """
    # More workers could not have the files open that each needs.
    with_files = limits.most_workers()
    workers = workers and min(workers, with_files)
    sources = sum(map(_sources, mapping.outputs))
    written = sum(len(file.extents) for file in layout.files)
    # One output of every shape: a model has few of them.
    kinds = {(output.view.shape, output.dtype): output for output in mapping.outputs}.values()
    shared = partial(
        divide,
        memory_limit,
        tensors=written,
        sources=sources,
        blocks=layout.total // BLOCK,
        resident=resident_bytes(),
        least_region=_least_region(mapping, kinds),
    )
    most = shared(workers)
    if workers is not None:
        return most
    if most.workers > with_files:
        most = shared(with_files)
    for count in range(most.workers, 0, -1):
        budget = shared(count)
        if not _is_scattered(kinds, budget.region_bytes):
            return budget
    return most


def _least_region(mapping: TensorMapping, kinds: Collection[Output]) -> int:
    """Return the bytes that a window or a box needs: few do where runs in them are long, and nothing is unpacked."""
    if mapping.dequantised or mapping.rank_files or _is_scattered(kinds, SMALL_REGION):
        return MIN_REGION
    return SMALL_REGION


def _is_scattered(kinds: Collection[Output], region: int) -> bool:
    return any(is_scattered(output.view, output.widest, region) for output in kinds)


def _sources(output: Output) -> int:
    """Return how many tensors or slices an output is made from: of slices, as many as it has cells."""
    count = len(output.sources)
    if type(output.view) is Stored:  # most are, and hundreds of thousands
        return count
    is_in_slices = any(ref.slices for leaf in output.view.leaves() for ref in leaf.refs())
    return max(count, len(Cells(output.view))) if is_in_slices else count
