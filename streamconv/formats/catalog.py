"""From a path to the catalog of what it holds, whatever the format: headers are read, tensor bytes are not.

A directory is HuggingFace's or MindSpore's by its index, or holds safetensors or torch files without one, or a
single `.ckpt`. Safetensors win over the other formats that publishers put beside them; whatever is left alone is
listed with a reason, and never opened. Links that lie in the directory are followed, because that is what a snapshot in
HuggingFace's cache consists of; names that come out of an index have to be plain ones.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import SourceError, UnsupportedError, reading
from ..storage import disk
from ..tensors.refs import Catalog, SourceFile, TensorRef
from ..text import quote
from . import ckpt, safetensors
from . import torch_reader as torch
from .headers import HeaderRoom
from .shards import HF_INDEX, MS_MAP, TORCH_INDEX, is_numbered, is_variant, listing, missing_numbered, read_index

__all__ = ["TORCH_ENDINGS", "open_catalog"]

_Shard = tuple[SourceFile, dict[str, TensorRef], Mapping[str, str]]

#: What a torch file may end in.
TORCH_ENDINGS = (".bin", ".pt", ".pth")


def _read_ckpt(path: Path, header_room: HeaderRoom) -> _Shard:
    """Read a `.ckpt`. An unchecked CRC is listed as ignored, because nothing else would tell of a damaged tensor."""
    file, tensors = ckpt.read(path, header_room)
    crc = ckpt.read_crc_tail(path, file.size)
    return file, tensors, {} if crc is None else {f"{path.name}: crc_num": "a CRC of the whole file; not checked"}


_FORMATS = {".safetensors": "safetensors", ".ckpt": "ckpt", **dict.fromkeys(TORCH_ENDINGS, "torch")}
_READERS: Mapping[str, Callable[[Path, HeaderRoom], _Shard]] = {
    "safetensors": lambda path, header_room: (*safetensors.read(path, header_room), {}),
    "ckpt": _read_ckpt,
    "torch": torch.read,
}
_TORCH_WHOLE = "pytorch_model.bin"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_TRAINING = ("optimizer.", "scheduler.pt", "scaler.pt", "training_args.bin", "rng_state")
_OTHER_FORMATS = (".gguf", ".h5", ".msgpack", ".onnx", ".pkl")


def open_catalog(path: Path, header_room: Callable[[], HeaderRoom] = HeaderRoom) -> Catalog:
    """Return the tensors of a `.safetensors`, `.ckpt` or torch file, or of a directory.

    Files are in the order of their names, tensors in the order of their bytes.

    Args:
        path: the file or directory.
        header_room: gives the room for the next header, and is called before each; a longer header is refused unread.

    Raises:
        SourceError: nothing there to read, or it is broken, incomplete or contradicts its index.
        BudgetError: a header is longer than `header_room` allows.
        UnsupportedError: an encrypted file, one that is no checkpoint, or a dtype that streamconv does not know.
    """
    try:
        with reading(path, "cannot open"):
            is_directory = stat.S_ISDIR(disk.stat(path).st_mode)
    except ValueError as error:
        raise SourceError(f"{quote(path)} is no path that a file could have: {error}") from error
    return _open_directory(path, header_room) if is_directory else _open_file(path, header_room)


def _open_file(path: Path, header_room: Callable[[], HeaderRoom]) -> Catalog:
    kind = _FORMATS.get(path.suffix)
    if kind is None:
        raise UnsupportedError(
            f"{quote(path)} is neither a directory nor a file that ends in {', '.join(_FORMATS)}; "
            "for an index, give its directory"
        )
    file, tensors, ignored = _READERS[kind](path, header_room())
    return Catalog(path, kind, tensors, (file,), ignored)


def _open_directory(directory: Path, header_room: Callable[[], HeaderRoom]) -> Catalog:
    names = _names(directory)
    kind, chosen, index = _choose(directory, names, header_room())
    _refuse_missing(directory, chosen, names, numbered=not index)
    shards = {name: _READERS[kind](directory / name, header_room()) for name in chosen}
    if index:
        _compare(directory, index, shards)
    home = {name: index.get(name, shard) for shard, (_, refs, _) in reversed(shards.items()) for name in refs}
    tensors = {n: ref for shard, (_, refs, _) in shards.items() for n, ref in refs.items() if home[n] == shard}
    twice = tuple(_twice(directory, home, shards))
    ignored = _ignored(directory, names, kind, chosen, bool(index))
    for _, _, inside in shards.values():
        ignored.update(inside)
    for _, two in twice:
        ignored[f"{two.extents[0].file.path.name}: {two.name}"] = f"in {quote(home[two.name])} too"
    return Catalog(directory, kind, tensors, tuple(file for file, _, _ in shards.values()), ignored, twice)


def _choose(
    directory: Path, names: Sequence[str], header_room: HeaderRoom
) -> tuple[str, Sequence[str], Mapping[str, str]]:
    """Format, files and index (empty without one) of the checkpoint in a directory."""
    index = _read_index(directory, names, header_room)
    chosen = sorted(set(index.values())) if index else _loose(names, ".safetensors")
    if chosen:
        return "safetensors", chosen, index
    torch_files, ckpts = _loose(names, TORCH_ENDINGS), _loose(names, ".ckpt")
    torch_files += [TORCH_INDEX] * (TORCH_INDEX in names)
    if torch_files and ckpts:
        raise SourceError(
            f"{quote(directory)} holds torch files ({listing(torch_files)}) and MindSpore's ({listing(ckpts)}), and "
            "which of them counts is not certain; give the file to convert itself, or move one kind elsewhere"
        )
    if TORCH_INDEX in names:
        index = read_index(directory / TORCH_INDEX, header_room)
        return "torch", sorted(set(index.values())), index
    if torch_files:
        return "torch", _torch_files(directory, torch_files), {}
    adapter = next((name for name in _ADAPTERS if name in names), None)
    if adapter and not ckpts:
        return _FORMATS[Path(adapter).suffix], [adapter], {}
    return "ckpt", [_only_ckpt(directory, names, ckpts)], {}


def _names(directory: Path) -> list[str]:
    with reading(directory, "cannot list"):
        return [name for name in disk.listdir(directory) if not name.startswith(".")]


def _read_index(directory: Path, names: Collection[str], header_room: HeaderRoom) -> dict[str, str]:
    """The one index of a directory; empty if there is none."""
    found = [read_index(directory / name, header_room) for name in (HF_INDEX, MS_MAP) if name in names]
    if len(found) == 2 and found[0] != found[1]:
        raise SourceError(
            f"{quote(directory)} holds {HF_INDEX} and {MS_MAP}, and they name different checkpoints; "
            "move one of the two, with its shards, to a directory of its own"
        )
    return found[0] if found else {}


def _loose(names: Sequence[str], endings: str | tuple[str, ...]) -> list[str]:
    """The files that may be the checkpoint, or parts of it; variants only where there is nothing else."""
    found = [name for name in names if name.endswith(endings) and not _special(name)]
    return [name for name in found if not is_variant(name)] or found


def _special(name: str) -> str | None:
    """Why a file of weights, by its name, is none of the checkpoint's."""
    if name.startswith("consolidated"):
        return "the publisher's own arrangement of the same weights"
    if name in _ADAPTERS:
        return "an adapter, not a model: merge it into its model first"
    if name.startswith(_TRAINING) and name.endswith(TORCH_ENDINGS):
        return "the state of a training run, not a model"
    return None


def _torch_files(directory: Path, found: Sequence[str]) -> Sequence[str]:
    """Which of a directory's torch files are the checkpoint, where no index says it."""
    series = [name for name in found if is_numbered(name)]
    if _TORCH_WHOLE in found and not series:
        return [_TORCH_WHOLE]
    if len(found) == 1 or (series and _TORCH_WHOLE not in found):
        return series or found
    raise SourceError(
        f"{quote(directory)} holds {len(found)} torch files ({listing(found)}), and which of them are the checkpoint "
        "is not certain; give the one to convert itself"
    )


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
    with reading(path):
        return disk.is_link(path) and not disk.mode(path)


def _twice(
    directory: Path, home: Mapping[str, str], shards: Mapping[str, _Shard]
) -> Iterator[tuple[TensorRef, TensorRef]]:
    """The tensors that are in a second file, as MindFormers' converter of DeepSeek-V3 writes the embedding (for MTP).

    Whether they hold the same bytes is not asked here.
    """
    unlike = []
    for shard, (_, refs, _) in shards.items():
        for name in (name for name in refs if home[name] != shard):
            one, other = shards[home[name]][1][name], refs[name]
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                unlike.append(f"{name} ({home[name]}, {shard})")
            elif one.nbytes:
                yield one, other
    if unlike:
        raise SourceError(
            f"{quote(directory)} has {len(unlike)} tensor(s) in two files, in different shapes or dtypes, so which one "
            f"counts is not certain: {listing(unlike)}; remove the file that does not belong there"
        )


def _compare(directory: Path, index: Mapping[str, str], shards: Mapping[str, _Shard]) -> None:
    """Refuses an index that does not say exactly what the shards hold."""
    lacking = [f"{name} ({shard})" for name, shard in index.items() if name not in shards[shard][1]]
    if lacking:
        raise SourceError(
            f"{quote(directory)}: {len(lacking)} tensor(s) that the index names are not in their files: "
            f"{listing(lacking)}; download index and shards again, from the same revision"
        )
    unnamed = [f"{name} ({shard})" for shard, (_, refs, _) in shards.items() for name in refs if name not in index]
    if unnamed:
        raise SourceError(
            f"{quote(directory)}: {len(unnamed)} tensor(s) of the shards are not in the index: "
            f"{listing(unnamed)}; download index and shards again, from the same revision"
        )


def _only_ckpt(directory: Path, names: Sequence[str], found: Sequence[str]) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(
            f"{quote(directory)} holds {len(found)} .ckpt files ({listing(found)}); give the one to convert itself"
        )
    left = [f"{name}: {reason}" for name, reason in _ignored(directory, names, "", (), False).items()]
    beside = f"; left alone: {listing(left)}" if left else ""
    raise SourceError(f"{quote(directory)} holds no file to read that ends in {', '.join(_FORMATS)}{beside}")


def _ignored(
    directory: Path, names: Sequence[str], kind: str, chosen: Collection[str], indexed: bool
) -> dict[str, str]:
    reasons = {name: _reason(directory / name, kind, indexed) for name in names if name not in chosen}
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(path: Path, kind: str, indexed: bool) -> str | None:
    """Why an entry beside a checkpoint of a format is left alone; `None` for what holds no weights."""
    with reading(path):
        mode = disk.mode(path)
    if stat.S_ISDIR(mode):
        return "a folder: only the directory itself is read"
    if not stat.S_ISREG(mode):
        return "no regular file, nor a link to one"
    if special := _special(path.name) or ("a variant of the same weights" if is_variant(path.name) else None):
        return special
    its = _FORMATS.get(path.suffix)
    if its is None:
        return "another format" if path.name.endswith(_OTHER_FORMATS) else None
    if its == kind:
        return "not named by the index" if indexed else "other files of its format are read instead"
    what = "a torch file: " if its == "torch" else ""
    return f"{what}the {kind} files beside it are read instead"
