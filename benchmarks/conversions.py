"""The conversions that several benchmarks measure: their sources and command lines."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import checkpoints


@dataclass(frozen=True)
class Case:
    """A conversion.

    Attributes:
        title: its name in tables.
        model: key in `MODELS` of its source.
        options: arguments of `streamconv convert`.
        growth: bytes written for each byte read, rounded up.
    """

    title: str
    model: str
    options: Sequence[str] = ()
    growth: int = 1


#: By their name on the command line.
CASES: Mapping[str, Case] = {
    "same": Case("same dtype", "mixtral"),
    "fp16": Case("bf16 -> fp16", "mixtral", ["--dtype", "fp16"]),
    "fp32": Case("widened to fp32", "mixtral", ["--dtype", "fp32"], growth=2),
    "transposed": Case("transposed experts", "mixtral", ["-o", "use_gmm=true"]),
    "fp8": Case("FP8 -> bf16", "deepseek3", growth=2),
}

_SMALL_MIXTRAL = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1, "vocab_size": 1000}
SMALL_DEEPSEEK3 = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


@dataclass(frozen=True)
class Model:
    """Functions that write a source to a new folder: `full` 2.5 GB (FP8 1.3 GB), `small` some 20 MB."""

    full: Callable[[Path], Path]
    small: Callable[[Path], Path]


MODELS: Mapping[str, Model] = {
    "mixtral": Model(
        lambda folder: checkpoints.mixtral(folder, num_hidden_layers=3),
        lambda folder: checkpoints.mixtral(folder, **_SMALL_MIXTRAL),
    ),
    "deepseek3": Model(
        checkpoints.deepseek3,
        lambda folder: checkpoints.deepseek3(folder, **SMALL_DEEPSEEK3),
    ),
}


@contextlib.contextmanager
def source_of(model: str, folder: Path, quick: bool) -> Iterator[Path]:
    """Write a source of one of `MODELS` to `folder`; remove it at the end."""
    source = folder / model
    with removed(source):
        yield (MODELS[model].small if quick else MODELS[model].full)(source)


def words(options: Sequence[str], source: Path, dest: Path, max_mem: str) -> list[str]:
    """Return the arguments of streamconv for a conversion."""
    return ["convert", str(source), str(dest), *options, "--max-mem", max_mem, "--quiet"]


def streamconv(arguments: Sequence[str]) -> list[str]:
    """Return the command line that runs streamconv in a process of its own."""
    return [sys.executable, "-m", "streamconv", *arguments]


@contextlib.contextmanager
def removed(path: Path) -> Iterator[None]:
    """Remove the directory `path` at the end, whatever happens."""
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
