"""The recipe: open → recognise → plan → lay out → budget → build → prove → put in place. Also the public Python API."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from . import adapters, checking, disk, dtypes, engine, families, layout, manifest, memory, target, verify
from . import config as configs
from .destination import copy_synced, write_synced
from .engine import OnProgress, Progress
from .errors import UsageError, quote, reading, storage_error
from .families import Family, Value
from .formats import open_catalog
from .layout import HF_SAFETENSORS, PEFT
from .options import Question, decided_plan, parse_options, said_options
from .report import Prepared, Report
from .rules import TIED, Direction
from .sources import alike, uses_mapping
from .units import parse_size
from .writer import FileSink

PathLike = str | os.PathLike[str]

DEFAULT_SHARD = "5GB"
_IO = ("auto", "map", "read")


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

        Raises:
            StreamconvError: see its subclasses; nothing is left under the final name.
        """
        started = time.monotonic()
        budget, mapped = self.budget, uses_mapping(self.io, self.catalog.files)
        self.destination.check(self.catalog, self.overwrite)
        self.destination.check_room(self.layout.total)
        for check in self.plan.checks:
            engine.check_same_bytes(check, budget, mapped)
        with self.destination.building() as place:
            tally, digests = self._build(place, budget, mapped, on_progress)
            # Hours may have passed: what came to lie at the destination meanwhile is not ours to replace either.
            self.destination.check(self.catalog, self.overwrite)
            record = manifest.write(self.plan, self.layout, self.max_shard_size, digests, tally.overflowed, _version())
            self.destination.commit(record)
        return Report(self, budget, tally, time.monotonic() - started, memory.peak_bytes())

    def _build(
        self, place: Path, budget: memory.Budget, mapped: bool, on_progress: OnProgress | None
    ) -> tuple[engine.Tally, Mapping[str, list[str]]]:
        sink = FileSink(self.layout, place, self.destination.single)
        try:
            tally = engine.run(self.plan, sink, budget, mapped, on_progress)
            digests = sink.finish()
        finally:
            sink.close()
        if not self.destination.single:
            self._write_companions(place)
        return tally, digests

    def _write_companions(self, place: Path) -> None:
        """Indices, the mended config, tokenizer and generation files."""
        try:
            for name, data in {**self.layout.texts, **self._configs()}.items():
                write_synced(place / name, data)
            for path in configs.companions(self.config, self.catalog.directory):
                copy_synced(path, place / path.name)
        except OSError as error:
            raise storage_error(error, "cannot write into", place) from error

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

    def compare(self, on_progress: OnProgress | None = None) -> verify.Verified:
        """Convert again in memory and compare every byte with the destination.

        Raises:
            VerificationError: a byte differs.
        """
        sink = verify.CompareSink(self.layout, self.destination.path)
        try:
            tally = engine.run(self.plan, sink, self.budget, uses_mapping(self.io, self.catalog.files), on_progress)
            sink.finish()
        finally:
            sink.close()
        return verify.Verified(len(self.layout.files) + len(self.layout.texts), len(self.plan.outputs), tally.done)


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
    if io not in _IO:
        raise UsageError(f"--io {quote(io)}: not one of {', '.join(_IO)}")
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
    **arguments: object,
) -> verify.Verified:
    """Prove a checkpoint that streamconv wrote: against its manifest, or, with the source named first, against the
    source.

    With a source, the conversion is planned as the manifest says it was (other arguments of `plan` override it), done
    again in memory and compared byte by byte.

    Raises:
        VerificationError: a byte differs.
        StreamconvError: the checkpoint, its manifest or the source cannot be read.
    """
    dest = Path(first if second is None else second)
    with reading(dest, "cannot open"):
        if not disk.mode(dest):
            raise FileNotFoundError(errno.ENOENT, "no such file or directory")
    found = manifest.find(dest)
    if second is None:
        return verify.against_manifest(dest, verify.needed(found, dest), progress)
    remembered = _remembered(found) if found else {}
    conversion = plan(first, dest, **{**remembered, **arguments})  # type: ignore[arg-type]
    return conversion.compare(progress)


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
