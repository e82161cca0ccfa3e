"""The arguments of the public functions: their types, and what is refused before anything is read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TypedDict, cast

from .errors import UsageError
from .paths import PathLike
from .rules.family import RAW, Value
from .storage import access
from .text import setting

#: One path, or several.
Paths = PathLike | Sequence[PathLike]


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
    strategy: Paths | None
    step: str | int | None
    dest_strategy: Paths | None
    links: bool
    overwrite: bool
    restart: bool
    verify: bool


_MOST_WORKERS = 256

# Sizes, strategies and steps are checked where they are parsed.
_TYPES: Mapping[str, tuple[type, str]] = {
    **dict.fromkeys(("model", "dtype", "format", "io"), (str, "str")),
    **dict.fromkeys(("reverse", "crc", "links", "overwrite", "restart", "verify"), (bool, "bool")),
    "options": (Mapping, "Mapping"),
    "workers": (Integral, "int"),
}
_OPTIONAL = ("model", "dtype", "format", "options", "workers", "config", "family")
_PATHS = ("source", "dest", "config", "family")
_MANY_PATHS = ("strategy", "dest_strategy")
_OF_A_PROCESS = ("max_mem", "restart")


def check(**arguments: object) -> None:
    """Refuse arguments of another type than `PlanOptions` says, and words and numbers that are never right.

    Args:
        arguments: those of a public function, by name; others than words, switches, numbers, paths are ignored.

    Raises:
        UsageError: which it is, and what it has to be.
    """
    for name, value in arguments.items():
        if value is None and name in _OPTIONAL:
            continue
        if name in _PATHS:
            as_path(value, name)
        if name not in _TYPES:
            continue
        kind, known = _TYPES[name]
        if not isinstance(value, kind):
            raise UsageError(f"{setting(name)} must be {known}, not {type(value).__name__}")
    if isinstance(io := arguments.get("io"), str):
        access.check_io(io)
    workers = arguments.get("workers")
    if isinstance(workers, Integral) and not 1 <= int(workers) <= _MOST_WORKERS:
        raise UsageError(f"{setting('workers')} must be between 1 and {_MOST_WORKERS}: {workers}")


def plain(**arguments: object) -> dict[str, object]:
    """Return arguments of `plan` as plain values that mean the same in another process, on another host.

    Args:
        arguments: by name; those that each process decides for itself (memory) are left out.
    """
    return {name: _plain(name, value) for name, value in arguments.items() if name not in _OF_A_PROCESS}


def _plain(name: str, value: object) -> object:
    if value is None or name not in (*_PATHS, *_MANY_PATHS):
        return dict(value) if isinstance(value, Mapping) else value
    paths = [str(path.absolute()) for path in as_paths(cast(Paths, value), name)]
    return paths if name in _MANY_PATHS else paths[0]


def check_cluster(on: object, workers_per_node: object) -> None:
    """Refuse what says how a run is spread over a cluster, if it is of another type, or has no effect.

    Raises:
        UsageError: which it is, and what it has to be.
    """
    if on is not None and not isinstance(on, str):
        raise UsageError(f"{setting('on')} must be str, not {type(on).__name__}")
    if not isinstance(workers_per_node, Integral):
        raise UsageError(f"{setting('workers_per_node')} must be int, not {type(workers_per_node).__name__}")
    count = int(workers_per_node)
    if not 1 <= count <= _MOST_WORKERS:
        raise UsageError(f"{setting('workers_per_node')} must be between 1 and {_MOST_WORKERS}: {count}")
    if on is None and count != 1:
        raise UsageError(
            f"{setting('workers_per_node', count)} has no effect without a cluster", f"give {setting('on', 'ray')} too"
        )


def as_paths(value: Paths | None, name: str) -> list[Path]:
    """Return an argument that is a path, or several, as paths.

    Raises:
        UsageError: it is something else, or one is empty.
    """
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [as_path(path, name) for path in value]
    return [as_path(value, name)]


def strategies(
    strategy: Paths | None, dest_strategy: Paths | None, *, reverse: bool, model: str | None, links: bool
) -> tuple[list[Path], list[Path]]:
    """Return the strategy files of the source, and those of the destination.

    A conversion has one side that is MindSpore's; where tensors keep their names, both may be.

    Raises:
        UsageError: `dest_strategy` is given although the destination's is `strategy`, or there can be none; or
            there are to be no links, although no ranks share files.
    """
    given, dest = as_paths(strategy, "strategy"), as_paths(dest_strategy, "dest_strategy")
    if model != RAW:
        if dest:
            hint = (
                "HuggingFace's side has no strategy" if reverse else f"use {setting('strategy')}, which says the same"
            )
            raise UsageError(f"{setting('dest_strategy')} goes with {setting('model', RAW)} only", hint)
        given, dest = (given, []) if reverse else ([], given)
    if not links and not dest:
        raise UsageError(
            f"{setting('links', False)} has no effect: the result is not cut for the ranks of a training",
            f"omit {setting('links', False)}",
        )
    return given, dest


def as_path(value: object, name: str) -> Path:
    """Return an argument as a path.

    Raises:
        UsageError: it is none, or empty, which a `Path` takes for the current directory.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise UsageError(f"{setting(name)} must be a path (str or os.PathLike), not {type(value).__name__}")
    if not os.fspath(value):
        raise UsageError(f"{setting(name)} is empty", "give a path; . is the current directory")
    return Path(value)
