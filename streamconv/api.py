"""The recipe: open → recognise → plan → lay out → budget. Also the public Python API; `conversion` is how it runs."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from .checks import against_manifest as verify
from .checks import sample as sampling
from .configs import model_config as configs
from .conversion import Conversion
from .engine import budget as memory
from .engine.progress import OnProgress, Progress
from .engine.reader import same_start
from .errors import UsageError, reading
from .families import registry as families
from .families.registry import Family, Value
from .formats import layout
from .formats.catalog import open_catalog
from .formats.layout import HF_SAFETENSORS, PEFT
from .output import format_choice as target
from .output import manifest
from .planning import family_check as checking
from .planning.options import Question, decided_plan, parse_options, said_options
from .report import Report
from .rules.statements import Direction
from .storage import access, disk
from .tensors import dtypes
from .text import quote
from .units import parse_size

PathLike = str | os.PathLike[str]

DEFAULT_SHARD = "5GB"


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
        io: `map` windows of the source, `read` them, read and write `direct`, past the page cache, or `auto`.
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
    kind = target.choose_format(format, destination, direction, chosen, crc)
    given = parse_options(chosen, options or {})
    question = Question(catalog, chosen, model_config.values, direction, dtypes.target(dtype), same_start)
    recorded = (made_by.text("model"), made_by.options) if made_by else None
    planned = decided_plan(question, given, recorded, said_options(chosen, model_config.yaml_values))
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
    access.check_io(io)
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


__all__ = ["Conversion", "Progress", "Report", "convert", "plan", "verify_checkpoint"]
