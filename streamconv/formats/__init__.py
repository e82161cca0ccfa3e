"""From a path to the catalog of what it holds, whatever the format: headers are read, tensor bytes are not.

A directory is HuggingFace's or MindSpore's by its index, or holds safetensors files without one, or a single
`.ckpt`. Safetensors win over the other formats that publishers put beside them; whatever is left alone is
listed with a reason. Links that lie in the directory are followed, because that is what a snapshot in
HuggingFace's cache consists of; names that come out of an index have to be plain ones.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from ..errors import SourceError, UnsupportedError, quote, source_error
from ..tensors import Catalog, SourceFile, TensorRef
from . import ckpt, safetensors
from .shards import HF_INDEX, MS_MAP, listing, missing_numbered, read_index

__all__ = ["open_catalog"]

_TORCH = (".bin", ".pt", ".pth", ".pkl")
_RESAVE = "load the model with transformers, save_pretrained() it, which writes safetensors, and convert that"
_OTHER_FORMATS = (".gguf", ".h5", ".msgpack", ".onnx")

Room = Callable[[], int]
_Shards = dict[str, tuple[SourceFile, dict[str, TensorRef]]]


def open_catalog(path: Path, room: Room = lambda: safetensors.MAX_HEADER) -> Catalog:
    """The tensors of a `.safetensors` or `.ckpt` file, or of a directory; files by name, tensors by offset.

    Args:
        path: the file or directory.
        room: bytes that the next header may have, asked before each; a longer one is refused unread.

    Raises:
        SourceError: nothing there to read, or it is broken, incomplete or contradicts its index.
        UnsupportedError: a torch file, an encrypted file, or a dtype that streamconv does not know.
    """
    try:
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise source_error(error, "opening", path) from error
    except ValueError as error:
        raise SourceError(f"{quote(path)} is no path that a file could have: {error}") from error
    return _open_directory(path, room) if is_directory else _open_file(path, room)


def _open_file(path: Path, room: Room) -> Catalog:
    if path.suffix == ".safetensors":
        file, tensors = safetensors.read(path, room())
    elif path.suffix == ".ckpt":
        file, tensors = ckpt.read(path, room())
    elif path.suffix in _TORCH:
        raise UnsupportedError(f"{quote(path)} is a torch file, and unpickling can run any code in it; {_RESAVE}")
    else:
        raise UnsupportedError(
            f"{quote(path)} is neither a directory nor a .safetensors or .ckpt file; for an index, give its directory"
        )
    return Catalog(path, path.suffix[1:], tensors, (file,))


def _open_directory(directory: Path, room: Room) -> Catalog:
    names = _names(directory)
    index = _read_index(directory, names, room())
    chosen = sorted(set(index.values())) if index else [name for name in names if _is_loose_shard(name)]
    if chosen:
        _refuse_missing(directory, chosen, names, numbered=not index)
        shards = {name: safetensors.read(directory / name, room()) for name in chosen}
        _refuse_twice(directory, shards)
        if index:
            _compare(directory, index, shards)
        tensors = {name: ref for _, refs in shards.values() for name, ref in refs.items()}
        files = tuple(file for file, _ in shards.values())
        return Catalog(directory, "safetensors", tensors, files, _ignored(directory, names, chosen))
    file, tensors = ckpt.read(_only_ckpt(directory, names), room())
    return Catalog(directory, "ckpt", tensors, (file,), _ignored(directory, names, [file.path.name]))


def _names(directory: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise source_error(error, "listing", directory) from error


def _read_index(directory: Path, names: Collection[str], limit: int) -> dict[str, str]:
    """The one index of a directory; empty if there is none."""
    found = [read_index(directory / name, limit) for name in (HF_INDEX, MS_MAP) if name in names]
    if len(found) == 2 and found[0] != found[1]:
        raise SourceError(
            f"{quote(directory)} holds {HF_INDEX} and {MS_MAP}, and they name different checkpoints; "
            "move one of the two, with its shards, to a directory of its own"
        )
    return found[0] if found else {}


def _is_loose_shard(name: str) -> bool:
    return name.endswith(".safetensors") and not _is_special(name)


def _is_special(name: str) -> bool:
    return name.startswith("consolidated") or name == "adapter_model.safetensors"


def _refuse_missing(directory: Path, chosen: Sequence[str], names: Collection[str], numbered: bool) -> None:
    present = {name for name in names if not _dangles(directory / name)}
    missing = set(chosen) - present
    if numbered:
        missing.update(missing_numbered(set(chosen)))
    if missing:
        raise SourceError(
            f"{quote(directory)} lacks {len(missing)} shard(s): {listing(sorted(missing))}; download them again"
        )


def _dangles(path: Path) -> bool:
    return path.is_symlink() and not _mode(path)


def _mode(path: Path) -> int:
    """The mode of what `path` leads to, 0 if that cannot be told."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _refuse_twice(directory: Path, shards: _Shards) -> None:
    first: dict[str, str] = {}
    twice = []
    for shard, (_, tensors) in shards.items():
        twice += [f"{name} ({first[name]}, {shard})" for name in tensors if name in first]
        first.update((name, shard) for name in tensors)
    if twice:
        raise SourceError(
            f"{quote(directory)} has {len(twice)} tensor(s) in two files, so which one counts "
            f"is not certain: {listing(twice)}; remove the file that does not belong there"
        )


def _compare(directory: Path, index: Mapping[str, str], shards: _Shards) -> None:
    """Refuses an index that does not say exactly what the shards hold."""
    lacking = [f"{name} ({shard})" for name, shard in index.items() if name not in shards[shard][1]]
    if lacking:
        raise SourceError(
            f"{quote(directory)}: {len(lacking)} tensor(s) that the index names are not in their files: "
            f"{listing(lacking)}; download index and shards again, from the same revision"
        )
    unnamed = [f"{name} ({shard})" for shard, (_, refs) in shards.items() for name in refs if name not in index]
    if unnamed:
        raise SourceError(
            f"{quote(directory)}: {len(unnamed)} tensor(s) of the shards are not in the index: "
            f"{listing(unnamed)}; download index and shards again, from the same revision"
        )


def _only_ckpt(directory: Path, names: Sequence[str]) -> Path:
    found = [name for name in names if name.endswith(".ckpt")]
    if len(found) == 1:
        return directory / found[0]
    if found:
        raise SourceError(
            f"{quote(directory)} holds {len(found)} .ckpt files ({listing(found)}); give the one to convert itself"
        )
    torch = [name for name in names if name.endswith(_TORCH)]
    if torch:
        raise UnsupportedError(f"{quote(directory)} holds torch files only ({listing(torch)}); {_RESAVE}")
    left = [f"{name}: {reason}" for name, reason in _ignored(directory, names, ()).items()]
    beside = f"; left alone: {listing(left)}" if left else ""
    raise SourceError(f"{quote(directory)} holds no .safetensors and no .ckpt file to read{beside}")


def _ignored(directory: Path, names: Sequence[str], chosen: Collection[str]) -> dict[str, str]:
    reasons = {name: _reason(directory / name) for name in names if name not in chosen}
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(path: Path) -> str | None:
    """Why an entry beside the checkpoint is left alone; `None` for what holds no weights."""
    if stat.S_ISDIR(_mode(path)):
        return "a folder: only the directory itself is read"
    if path.name.startswith("consolidated"):
        return "the publisher's own arrangement of the same weights"
    if path.name == "adapter_model.safetensors":
        return "an adapter, not a model: merge it into its model first"
    suffixes = {
        (".safetensors",): "not named by the index",
        _TORCH: "a torch file: streamconv reads safetensors",
        (".ckpt",): "the safetensors files beside it are read instead",
        _OTHER_FORMATS: "another format",
    }
    return next((reason for suffix, reason in suffixes.items() if path.name.endswith(suffix)), None)
