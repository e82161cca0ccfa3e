"""From a path to the catalog of what it holds, whatever the format: headers are read, tensor bytes are not.

A directory is HuggingFace's or MindSpore's by its index, or holds safetensors or torch files without one, or a
`.ckpt`, whole or in shards. Safetensors win over the other formats that publishers put next to them; whatever is
ignored is listed with a reason, and never opened. Links in the directory are followed, because a snapshot in
HuggingFace's cache consists of them; names that come out of an index have to be plain ones. What may be less than a
whole model (a rank's slices, a download in progress) is refused for sure signs, and for others listed as a warning.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from ..errors import BudgetError, SourceError, UnsupportedError, reading
from ..storage import disk
from ..tensors.refs import Catalog, TensorRef
from ..text import counted, quote
from . import downloads, files, rank_slices
from .directory import FORMATS, JOURNAL, list_directory
from .files import Shard
from .header_room import HeaderRoom
from .needs import for_all_headers
from .rank_slices import Doubt
from .selection import ignored, select
from .series import part_of
from .shards import MS_REST, listing

_SAME_REVISION = "download index and shards again, from the same revision"


def open_catalog(path: Path, header_room: Callable[[], HeaderRoom] = HeaderRoom) -> Catalog:
    """Return the tensors of a `.safetensors`, `.ckpt` or torch file, or of a directory.

    Files are in the order of their names, tensors in the order of their bytes.

    Args:
        path: the file or directory.
        header_room: gives the room for the next header, and is called before each; a longer header is refused unread.

    Raises:
        SourceError: nothing there to read, or it is broken, incomplete, unfinished or contradicts its index.
        BudgetError: a header is longer than `header_room` allows.
        UnsupportedError: an encrypted file, one that is not a checkpoint, or a dtype that streamconv does not know.
    """
    try:
        with reading(path, "cannot open"):
            is_directory = stat.S_ISDIR(disk.stat(path).st_mode)
            refuse_unfinished(path)
    except ValueError as error:
        raise SourceError(f"cannot open {quote(path)}: not a path that a file can have: {error}") from error
    rooms: list[HeaderRoom] = []

    def noted() -> HeaderRoom:
        rooms.append(header_room())
        return rooms[-1]

    try:
        return _open_directory(path, noted) if is_directory else _open_file(path, noted)
    except BudgetError as error:
        raise for_all_headers(error, path, rooms[0]) from error


def refuse_unfinished(path: Path) -> None:
    """Refuse what a conversion was stopped in: what is not written yet would be read as zeros."""
    whole = Path(disk.resolve(path))
    for place in (whole, whole.parent):
        if place.name and disk.is_file(journal := f"{place}{JOURNAL}"):
            raise SourceError(
                f"{quote(place)} is an unfinished conversion: its journal {quote(Path(journal).name)} is next to it",
                "run that conversion again to finish it, and use its result",
            )


def _open_file(path: Path, header_room: Callable[[], HeaderRoom]) -> Catalog:
    format_ = FORMATS.get(path.suffix)
    if format_ is None:
        raise UnsupportedError(
            f"{quote(path)} is neither a directory nor a file that ends in {', '.join(FORMATS)}",
            "for an index, give its directory",
        )
    doubt = rank_slices.check_file(path)
    partial = downloads.check_file(path)
    shard = files.read(path, format_, header_room())
    warnings = [*partial, *_doubtful(doubt), *_lone_shard(path.name), *_contents((shard,))]
    return Catalog(path, shard.format, shard.tensors, (shard.file,), shard.ignored, (), tuple(warnings), doubt.why)


def _doubtful(doubt: Doubt) -> Iterator[str]:
    if doubt.is_likely:
        yield f"{doubt.why}; it is read as a whole model"


def _contents(shards: Iterable[Shard]) -> Iterator[str]:
    """Yield what speaks against the content of files."""
    refs: list[TensorRef] = []
    for shard in shards:
        yield from shard.warnings
        refs += shard.tensors.values()
    if refs and not any(ref.nbytes for ref in refs):
        yield (
            f"all {counted(len(refs), 'tensor')} are empty: DeepSpeed's ZeRO-3 leaves such a file when one rank saves "
            "the model without gathering its parameters"
        )


def _format(directory: Path, shards: Mapping[str, Shard]) -> str:
    """Return the format that all shards are in, whatever their names say."""
    found = {shard.format: name for name, shard in shards.items()}
    if len(found) > 1:
        mixed = ", ".join(f"{quote(name)} ({format_})" for format_, name in found.items())
        raise SourceError(f"{quote(directory)} holds shards of several formats: {mixed}", _SAME_REVISION)
    return next(iter(found))


def _lone_shard(name: str) -> Iterator[str]:
    number, count = part_of(name) or (1, 1)
    if count > 1:
        yield f"{quote(name)} is shard {number} of {count}; for the whole checkpoint, give its directory"


def _open_directory(directory: Path, header_room: Callable[[], HeaderRoom]) -> Catalog:
    listed = list_directory(directory, header_room())
    selected = select(listed)
    paths = [(directory / name, selected.format) for name in selected.names]
    with closing(files.read_all(paths, header_room)) as found:
        shards = dict(zip(selected.names, found, strict=True))
    if selected.index:
        _check_index(directory, selected.index, shards)
    tensors, twice = _tensors(directory, selected.index, shards)
    reasons = ignored(listed, selected)
    for shard in shards.values():
        reasons.update(shard.ignored)
    for one, other in twice:
        file, another = (ref.extents[0].file.path.name for ref in (one, other))
        reasons[f"{another}: {other.name}"] = f"in {quote(file)} too"
    read = tuple(shard.file for shard in shards.values())
    warnings = (*selected.warnings, *_doubtful(selected.doubt), *_contents(shards.values()))
    return Catalog(directory, _format(directory, shards), tensors, read, reasons, twice, warnings, selected.doubt.why)


def _tensors(
    directory: Path, index: Mapping[str, str], shards: dict[str, Shard]
) -> tuple[dict[str, TensorRef], tuple[tuple[TensorRef, TensorRef], ...]]:
    """Return all tensors, and those that are in a second file too."""
    tensors = {name: ref for shard in shards.values() for name, ref in shard.tensors.items()}
    if len(tensors) == sum(len(shard.tensors) for shard in shards.values()):
        return tensors, ()
    home = {name: index.get(name, at) for at, shard in reversed(shards.items()) for name in shard.tensors}
    tensors = {name: ref for at, shard in shards.items() for name, ref in shard.tensors.items() if home[name] == at}
    return tensors, tuple(_twice(directory, home, shards))


def _twice(
    directory: Path, home: Mapping[str, str], shards: Mapping[str, Shard]
) -> Iterator[tuple[TensorRef, TensorRef]]:
    """Yield the tensors that are in a second file too; whether they hold the same bytes is not checked here.

    MindFormers' converter of DeepSeek-V3 writes the embedding so, for the MTP layer.
    """
    differing = []
    for at, shard in shards.items():
        for name in (name for name in shard.tensors if home[name] != at):
            one, other = shards[home[name]].tensors[name], shard.tensors[name]
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                differing.append(f"{name} ({home[name]}, {at})")
            elif one.nbytes:
                yield one, other
    if differing:
        raise SourceError(
            f"{quote(directory)} has {counted(len(differing), 'tensor')} in two files, in different shapes or dtypes: "
            f"{listing(differing)}; it is ambiguous which one is meant",
            "give the file to convert",
        )


def _check_index(directory: Path, index: Mapping[str, str], shards: Mapping[str, Shard]) -> None:
    """Refuse an index that does not state exactly what the shards hold."""
    if index == {name: at for at, shard in shards.items() for name in shard.tensors}:
        return
    missing = [f"{name} ({shard})" for name, shard in index.items() if name not in shards[shard].tensors]
    if missing:
        raise SourceError(
            f"{quote(directory)}: {counted(len(missing), 'tensor')} of the index not found in the shards: "
            f"{listing(missing)}",
            _SAME_REVISION,
        )
    named = {at: shard for at, shard in shards.items() if at != MS_REST}
    unnamed = [f"{name} ({at})" for at, shard in named.items() for name in shard.tensors if name not in index]
    if unnamed:
        raise SourceError(
            f"{quote(directory)}: {counted(len(unnamed), 'tensor')} of the shards not found in the index: "
            f"{listing(unnamed)}",
            _SAME_REVISION,
        )
