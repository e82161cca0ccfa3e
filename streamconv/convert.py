"""The recipe: open → recognise → plan → lay out → budget → build → prove → put in place. Also the public Python API."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from . import (
    adapters,
    checking,
    disk,
    dtypes,
    engine,
    families,
    identity,
    layout,
    manifest,
    memory,
    sampling,
    target,
    verify,
)
from . import config as configs
from .engine import OnProgress, Progress
from .errors import SourceChangedError, StreamconvError, UsageError, VerificationError, quote, reading, storing
from .families import Family, Value
from .formats import open_catalog
from .journal import Ledger
from .layout import HF_SAFETENSORS, PEFT
from .options import Question, decided_plan, parse_options, said_options
from .partial import Partial
from .recorder import Recorder
from .report import Prepared, Report
from .rules import TIED, Direction
from .sources import alike, check_io, check_unchanged, uses_mapping
from .units import format_size, parse_size
from .writer import FileSink

PathLike = str | os.PathLike[str]

DEFAULT_SHARD = "5GB"

#: Errors after which nothing that was built is trusted.
_MAKES_WORTHLESS = (SourceChangedError, VerificationError)


class Conversion(Prepared):
    """A conversion that is planned to the last byte, and not begun. `print` it, look at it, `run` it."""

    def check(self) -> None:
        """What can be wrong although the plan is made.

        Raises:
            BudgetError: the memory budget is too small.
            UsageError: nothing tells how an adapter is scaled.
        """
        self.budget  # noqa: B018 - raises
        if self.plan.is_adapter and self.plan.direction is Direction.REVERSE:
            self._adapter_config()

    def run(self, on_progress: OnProgress | None = None) -> Report:
        """Convert.

        What an earlier run of the same conversion made durable is not done again.

        Raises:
            StreamconvError: see its subclasses; nothing new is left under the final name.
        """
        started = time.monotonic()
        budget, mapped = self.budget, uses_mapping(self.io, self.catalog.files)
        conversion = identity.describe(self, _version())
        with Partial(self.destination.path, self.destination.single, conversion, self.restart) as partial:
            if partial.is_finished() and not self.restart:
                partial.settle()
                tally = engine.Tally(self.plan.nbytes, self.plan.nbytes, self.plan.nbytes)
            else:
                tally = self._run(partial, budget, mapped, on_progress)
        return Report(self, budget, tally, time.monotonic() - started, memory.peak_bytes())

    def _run(
        self, partial: Partial, budget: memory.Budget, mapped: bool, on_progress: OnProgress | None
    ) -> engine.Tally:
        """Check → build → prove → put in place."""
        partial.check_same()
        self.destination.check(self.catalog, self.overwrite)
        names = [file.name for file in self.layout.files]
        self.destination.check_room(self.layout.total - partial.allocated(names))
        for check in self.plan.checks:
            engine.check_same_bytes(check, budget, mapped)
        recorder = self._recorder(partial, names)
        try:
            tally, digests = self._build(partial.place, recorder, budget, mapped, on_progress)
            if self.verify:
                self._prove(partial, budget, mapped, on_progress)
            check_unchanged(self.catalog.files)
            # Hours may have passed: what came to lie at the destination meanwhile is not ours to replace either.
            self.destination.check(self.catalog, self.overwrite)
            record = manifest.write(self.plan, self.layout, self.max_shard_size, digests, tally.overflowed, _version())
            partial.commit(record)
        except BaseException as error:
            partial.is_worth_keeping = recorder.safe > 0 and not isinstance(error, _MAKES_WORTHLESS)
            if isinstance(error, StreamconvError):
                error.add(self._what_is_left(partial, recorder.safe))
            raise
        return tally

    def _prove(self, partial: Partial, budget: memory.Budget, mapped: bool, on_progress: OnProgress | None) -> None:
        """Read what was built from the disk, not out of the page cache, and compare it with the source."""
        partial.forget([file.name for file in self.layout.files])
        try:
            self._compare(partial.place, budget, mapped, on_progress)
        except VerificationError as error:
            error.add("the storage did not keep what was written to it: check the device, and convert again")
            raise

    def _recorder(self, partial: Partial, names: list[str]) -> Recorder:
        """What earlier runs left, and the journal to go on with."""
        journal = partial.begin(names)
        ledger = Ledger(self.plan.outputs, self.layout.files)
        with storing(partial.journal_path, "cannot read"):
            ledger.load(journal.records(), lambda file: partial.holds(file.name, file.size))
        return Recorder(journal, ledger, {name: number for number, name in enumerate(names)})

    def _build(
        self,
        place: Path,
        recorder: Recorder,
        budget: memory.Budget,
        mapped: bool,
        on_progress: OnProgress | None,
    ) -> tuple[engine.Tally, Mapping[str, list[str]]]:
        """All files, durable, with the digests of their blocks."""
        sink = FileSink(self.layout, place, self.destination.single, recorder)
        tally = engine.Tally(self.plan.nbytes, recorder.safe, recorder.safe, overflowed=dict(recorder.overflowed))
        try:
            with recorder.recording(sink.sync):
                engine.run(self.plan, sink, budget, mapped, on_progress, record=recorder, tally=tally)
            digests = sink.finish()
        finally:
            sink.close()
        if not self.destination.single:
            self._write_companions(place)
        return tally, digests

    def _what_is_left(self, partial: Partial, safe: int) -> str:
        if partial.is_in_place:
            return f"{quote(partial.path)} is complete all the same: give the command again, and the rest is tidied up"
        if not partial.is_worth_keeping:
            return "nothing is left of it"
        return (
            f"{format_size(safe)} of {format_size(self.plan.nbytes)} are safe in {quote(partial.place)}: "
            "the same command goes on from there, and with --restart it begins anew"
        )

    def _write_companions(self, place: Path) -> None:
        """Indices, the mended config, tokenizer and generation files."""
        with storing(place, "cannot write into"):
            for name, data in {**self.layout.texts, **self._configs()}.items():
                disk.write_synced(place / name, data)
            for path in configs.companions(self.config, self.catalog.directory):
                disk.copy_synced(path, place / path.name)

    def _configs(self) -> Mapping[str, bytes]:
        """The config of what is written: a model's, or an adapter's."""
        if not self.plan.is_adapter:
            return {configs.CONFIG: self._mended_config()} if self.config.goes_along else {}
        if self.plan.direction is Direction.REVERSE:
            return {adapters.CONFIG: self._adapter_config()}
        beside = self.catalog.directory / adapters.CONFIG
        with reading(beside):
            return {adapters.CONFIG: disk.read_file(beside, configs.LIMIT)} if disk.is_file(beside) else {}

    def _adapter_config(self) -> bytes:
        alpha = self.plan.options.get(adapters.ALPHA)
        return adapters.peft_config(self.plan.outputs, self.config, self.catalog.directory, alpha)

    def _mended_config(self) -> bytes:
        settled = {**self.family.settled(self.plan.options), **({TIED: False} if self.plan.untied else {})}
        return configs.mended(self.config, self.plan.held_dtype, bool(self.plan.dequantised), settled)

    def compare(self, on_progress: OnProgress | None = None, sample: sampling.Sample | None = None) -> verify.Verified:
        """Convert again in memory, all or a sample, and compare every byte with the destination.

        Raises:
            VerificationError: a byte differs.
        """
        mapped = uses_mapping(self.io, self.catalog.files)
        return self._compare(self.destination.path, self.budget, mapped, on_progress, sample)

    def _compare(
        self,
        path: Path,
        budget: memory.Budget,
        mapped: bool,
        on_progress: OnProgress | None,
        sample: sampling.Sample | None = None,
    ) -> verify.Verified:
        sink = verify.CompareSink(self.layout, path)
        try:
            chosen = verify.chosen_boxes(self.layout, sample) if sample else None
            tally = engine.run(self.plan, sink, budget, mapped, on_progress, chosen=chosen)
            if sample is None:
                sink.finish()
        finally:
            sink.close()
        files = len(self.layout.files) + len(self.layout.texts)
        return verify.Verified(files, len(self.plan.outputs), tally.done, self.plan.nbytes)


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
    max_shard_size: str | int = DEFAULT_SHARD,
    workers: int | None = None,
    config: PathLike | None = None,
    io: str = "auto",
    crc: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    verify: bool = False,
) -> Conversion:
    """Plan a conversion: names, shapes, dtypes, sizes, memory; no tensor byte is read, nothing is written.

    Args:
        source: a checkpoint: a directory or one file.
        dest: what to make of it: a directory, a `.ckpt` file, or a torch file (`.bin`, `.pt`, `.pth`).
        model: the family; recognised from config.json where absent.
        family: a Python file that defines a family of your own, in place of `model`.
        reverse: from MindSpore to HuggingFace.
        dtype: `fp32`, `fp16` or `bf16` for every float tensor; as they are where absent.
        options: the family's options by name.
        format: `safetensors` (MindSpore's), `ckpt`, `hf` or `torch`; from `dest` and direction where absent.
        max_mem: bytes of resident memory, or a size such as `"16G"`.
        max_shard_size: bytes of a shard at the most, or a size such as `"5GB"`.
        workers: threads; as many as cores and memory allow where absent.
        config: the model's config.json where it does not lie beside the weights, or a MindFormers YAML.
        io: `map` windows of the source, `read` them, or `auto`.
        crc: append MindSpore's CRC to a `.ckpt`.
        overwrite: replace a checkpoint that is at `dest`.
        restart: throw away what an earlier run left, instead of going on from it.
        verify: compare the result with the source before it gets its name.

    Raises:
        StreamconvError: see its subclasses; the message says what to do.
    """
    _check_words(io, workers)
    limit = memory.default_limit() if max_mem is None else parse_size(max_mem, "--max-mem")
    shard = parse_size(max_shard_size, "--max-shard-size")
    source, destination = Path(source), target.destination(Path(dest))
    catalog = open_catalog(source, lambda: memory.header_room(limit))
    memory.check_planning(limit, len(catalog))
    model_config = configs.load(catalog.directory, Path(config) if config else None, memory.header_room(limit))
    made_by = manifest.find(source, memory.header_room(limit))
    chosen, recognised = _family(model, family, model_config, made_by)
    direction = Direction.REVERSE if reverse else Direction.FORWARD
    kind = target.kind(format, destination, direction, chosen, crc)
    given = parse_options(chosen, options or {})
    question = Question(catalog, chosen, model_config.values, direction, dtypes.target(dtype), alike)
    planned = decided_plan(question, given, made_by, said_options(chosen, model_config.said))
    if planned.is_adapter and kind == HF_SAFETENSORS:
        kind = PEFT
    specs = [output.spec for output in planned.outputs]
    placed = layout.lay_out(specs, kind, destination.path.name, shard, crc, chosen.torch_root)
    conversion = Conversion(
        catalog,
        destination,
        model_config,
        chosen,
        recognised,
        planned,
        placed,
        limit,
        shard,
        workers,
        io,
        overwrite,
        restart,
        verify,
    )
    conversion.check()
    return conversion


def convert(source: PathLike, dest: PathLike, *, progress: OnProgress | None = None, **arguments: object) -> Report:
    """Convert a checkpoint; the arguments are those of `plan`, and `progress` is called now and then.

    Raises:
        StreamconvError: see its subclasses; nothing is left under the final name.
    """
    return plan(source, dest, **arguments).run(progress)  # type: ignore[arg-type]


def check(family: PathLike, source: PathLike, config: PathLike | None = None) -> Iterator[checking.Finding]:
    """What there is to say of a family for a real checkpoint: unmatched, ambiguous, not invertible.

    Args:
        family: a Python file that defines it, or the name of one that is known.
        source: a HuggingFace checkpoint; only headers are read.
        config: the model's config.json where it does not lie beside the weights.

    Raises:
        StreamconvError: family, config or source cannot be read.
    """
    path = Path(family)
    chosen = families.load(path) if path.suffix == ".py" else families.find(str(family))
    catalog = open_catalog(Path(source), lambda: memory.header_room(memory.default_limit()))
    values = configs.load(catalog.directory, Path(config) if config else None).values
    return checking.check_family(chosen, catalog, values)


def _check_words(io: str, workers: int | None) -> None:
    check_io(io)
    if workers is not None and not 1 <= workers <= 256:
        raise UsageError(f"--workers {workers}: a number between 1 and 256 is needed")


def _family(
    model: str | None, own: PathLike | None, config: configs.ModelConfig, made_by: manifest.Manifest | None
) -> tuple[Family, str]:
    if own is not None:
        family = families.load(own)
        if model not in (None, family.name):
            raise UsageError(f"--family {quote(own)} is {quote(family.name)}, not {quote(model)}: leave --model away")
        return family, quote(own)
    if model is not None:
        return families.choose(model, config.values), "--model"
    if made_by is not None and isinstance(made_by["model"], str):
        return families.find(made_by["model"]), made_by.path.name
    return families.recognise(config.values)


def verify_checkpoint(
    first: PathLike,
    second: PathLike | None = None,
    *,
    progress: OnProgress | None = None,
    fraction: str | float | None = None,
    seed: int | None = None,
    **arguments: object,
) -> verify.Verified:
    """Prove a checkpoint that streamconv wrote: against its manifest, or, with the source named first, against the
    source.

    With a source, the conversion is planned as the manifest says it was (other arguments of `plan` override it), done
    again in memory and compared byte by byte.

    Args:
        first, second: the checkpoint, or its source and the checkpoint.
        progress: called now and then.
        fraction: read a sample only, such as `"5%"` or 0.05, spread evenly over everything; sizes, names and headers
            are looked at in full, CRCs (which are of whole files or tensors) not at all.
        seed: the same seed takes the same sample; a new one each time where absent.
        arguments: those of `plan`.

    Raises:
        VerificationError: a byte differs.
        UsageError: the fraction is none.
        StreamconvError: the checkpoint, its manifest or the source cannot be read.
    """
    sample = sampling.sample(fraction, seed)
    dest = Path(first if second is None else second)
    with reading(dest, "cannot open"):
        if not disk.mode(dest):
            raise FileNotFoundError(errno.ENOENT, "no such file or directory")
    found = manifest.find(dest)
    if second is None:
        return verify.against_manifest(dest, verify.needed(found, dest), progress, sample)
    remembered = _remembered(found) if found else {}
    conversion = plan(first, dest, **{**remembered, **arguments})  # type: ignore[arg-type]
    return conversion.compare(progress, sample)


def _remembered(found: manifest.Manifest) -> dict[str, object]:
    """The arguments of the conversion that wrote a manifest."""
    names = {dtype.name: word for word, dtype in dtypes.TARGETS.items()}
    return {
        "model": found.text("model"),
        "reverse": found["direction"] == Direction.REVERSE.value,
        "dtype": names.get(str(found["dtype"])),
        "options": found.options,
        "format": found.text("format"),
        "max_shard_size": found.number("max_shard_size"),
        "crc": bool(found["crc"]),
    }


def _version() -> str:
    return version("streamconv")


__all__ = ["Conversion", "Progress", "Report", "convert", "plan", "verify_checkpoint"]
