"""The arguments of the public functions: their types, and what is refused before anything is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import TypedDict

from .errors import UsageError
from .paths import PathLike
from .rules.family import Value
from .storage import access
from .text import setting


class PlanOptions(TypedDict, total=False):
    """The keyword arguments of `plan`, for functions that pass them on."""

    model: str | None
    family: PathLike | None
    reverse: bool
    dtype: str | None
    options: Mapping[str, Value] | None
    format: str | None
    max_mem: str | int | None
    max_shard_size: str | int
    workers: int | None
    config: PathLike | None
    io: str
    crc: bool
    overwrite: bool
    restart: bool
    verify: bool


_MOST_WORKERS = 256

_SIZE, _TEXT, _YES_OR_NO = (str, Integral), (str,), (bool,)
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "dtype", "format", "io"), _TEXT),
    **dict.fromkeys(("max_mem", "max_shard_size"), _SIZE),
    **dict.fromkeys(("reverse", "crc", "overwrite", "restart", "verify"), _YES_OR_NO),
    "options": (Mapping,),
    "workers": (Integral,),
}
_OPTIONAL = ("model", "dtype", "format", "max_mem", "options", "workers")


def check(**arguments: object) -> None:
    """Refuse arguments of another type than `PlanOptions` says, and words and numbers that are never right.

    Raises:
        UsageError: which it is, and what it has to be.
    """
    for name, value in arguments.items():
        is_absent = value is None and name in _OPTIONAL
        if name in _TYPES and not is_absent and not isinstance(value, _TYPES[name]):
            known = " or ".join(one.__name__ for one in _TYPES[name]).replace("Integral", "int")
            raise UsageError(f"{setting(name)} must be {known}, not {type(value).__name__}")
    if isinstance(io := arguments.get("io"), str):
        access.check_io(io)
    workers = arguments.get("workers")
    if isinstance(workers, int) and not 1 <= workers <= _MOST_WORKERS:
        raise UsageError(f"{setting('workers')} must be between 1 and {_MOST_WORKERS}: {workers}")


def as_path(value: PathLike, name: str) -> Path:
    """Return an argument as a path.

    Raises:
        UsageError: it is empty, which a `Path` takes for the current directory.
    """
    if not os.fspath(value):
        raise UsageError(f"{setting(name)} is empty", "give a path; . is the current directory")
    return Path(value)
