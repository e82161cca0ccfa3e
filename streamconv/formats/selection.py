"""Which files of a directory are the checkpoint, by names and indices alone, and why all others are ignored."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from ..errors import SourceError, StreamconvError, reading
from ..storage import disk, streams
from ..storage.in_order import in_order
from ..text import counted, quote
from . import downloads, elsewhere, foreign_shards, rank_slices
from .directory import ADAPTERS, CONFIG, FORMATS, TORCH_ENDINGS, Listing, not_the_model
from .rank_slices import NO_DOUBT, Doubt
from .series import Missing, is_one_series, is_variant, missing, numbered, part_of
from .shards import HF_INDEX, MS_MAP, MS_REST, TORCH_INDEX, listing

_TORCH_WHOLE = "pytorch_model.bin"
_INDEX = {"safetensors": HF_INDEX, "torch": TORCH_INDEX}
_OTHER_FORMATS = (".gguf", ".h5", ".msgpack", ".onnx", ".pkl")


class Selection(Struct, frozen=True):
    """The files of a checkpoint, all of one format.

    Attributes:
        format: their format, by their names.
        names: the files.
        index: tensor name → file name; empty without an index.
        doubt: why they may be slices of a model.
        warnings: what else there is to say of them.
    """

    format: str
    names: Sequence[str]
    index: Mapping[str, str] = field(default_factory=dict)
    doubt: Doubt = NO_DOUBT
    warnings: tuple[str, ...] = ()


def select(files: Listing) -> Selection:
    """Return what the first of `RULES` that applies selects.

    Args:
        files: the directory.

    Raises:
        SourceError: nothing to read, several candidates, or shards are missing.
        UnsupportedError: the slices of a distributed checkpoint.
    """
    chosen = next(filter(None, (rule(files) for _, rule in RULES)), None)
    if chosen is None:
        raise _why_nothing(files)
    warnings = tuple(_check_complete(files, chosen))
    doubt = NO_DOUBT if chosen.index else _doubt(files, chosen.names)
    return replace(chosen, doubt=doubt, warnings=warnings)


def _indexed_safetensors(files: Listing) -> Selection | None:
    """Select what HuggingFace's index or MindSpore's map names."""
    found = [index for index in (_read_index(files, HF_INDEX), _read_index(files, MS_MAP)) if index]
    if len(found) == 2 and found[0] != found[1]:
        raise SourceError(
            f"{quote(files.directory)} holds {HF_INDEX} and {MS_MAP}, and they describe different checkpoints",
            "move one of the two, with its shards, to another directory",
        )
    if not found:
        return None
    names = {*found[0].values(), *({MS_REST} & {*files.names} if MS_MAP in files.names else ())}
    return Selection("safetensors", sorted(names), found[0])


def _read_index(files: Listing, name: str) -> dict[str, str]:
    # Half an index is no JSON, and to download it again would be the wrong advice.
    if name in files.names:
        downloads.refuse_partial(files, [name], [name])
    return files.read_index(name)


def _slices(files: Listing) -> None:
    """Refuse the files of one rank, or of several."""
    _doubt(files, files.weights(".safetensors") or files.weights(".ckpt"))


def _doubt(files: Listing, names: Sequence[str]) -> Doubt:
    return rank_slices.check(Path(disk.resolve(files.directory)), names, files.names)


def _loose_safetensors(files: Listing) -> Selection | None:
    names = files.weights(".safetensors")
    return Selection("safetensors", names) if names else None


def _foreign_shards(files: Listing) -> None:
    """Refuse the shards of a training framework."""
    if refused := foreign_shards.refusal(Path(disk.resolve(files.directory)), files.names):
        raise refused


def _torch_and_ckpt(files: Listing) -> None:
    """Refuse torch files next to MindSpore's."""
    torch_files, ckpts = _torch_names(files), files.weights(".ckpt")
    if torch_files and ckpts:
        raise SourceError(
            f"{quote(files.directory)} holds torch files ({listing(torch_files)}) and .ckpt files ({listing(ckpts)}): "
            "it is ambiguous which are meant",
            "give the file to convert, or move one format to another directory",
        )


def _indexed_torch(files: Listing) -> Selection | None:
    index = _read_index(files, TORCH_INDEX)
    return Selection("torch", sorted(set(index.values())), index) if index else None


def _loose_torch(files: Listing) -> Selection | None:
    """Select a numbered series, `pytorch_model.bin`, or the only file."""
    found = files.weights(TORCH_ENDINGS)
    if not found:
        return None
    series = numbered(found)
    if _TORCH_WHOLE in found and not series:
        return Selection("torch", [_TORCH_WHOLE])
    if len(found) == 1 or (series and _TORCH_WHOLE not in found):
        return Selection("torch", series or found)
    raise SourceError(
        f"{quote(files.directory)} holds {len(found)} torch files ({listing(found)}): it is ambiguous which of them "
        "are the checkpoint",
        "give the file to convert",
    )


def _adapter(files: Listing) -> Selection | None:
    """Select an adapter, if there is no model next to it."""
    name = next((name for name in ADAPTERS if name in files.names), None)
    return Selection(FORMATS[Path(name).suffix], [name]) if name and not files.weights(".ckpt") else None


def _ckpt(files: Listing) -> Selection | None:
    """Select the only file, or the only numbered series."""
    found = files.weights(".ckpt")
    if len(found) > 1 and not is_one_series(found):
        # A shard is no checkpoint: whoever gave one would be asked for the directory again.
        shards = any((part_of(name) or (1, 1))[1] > 1 for name in found)
        raise SourceError(
            f"{quote(files.directory)} holds {len(found)} .ckpt files ({listing(found)})",
            "move all but one checkpoint to another directory" if shards else "give the file to convert",
        )
    return Selection("ckpt", found) if found else None


#: How the files of a checkpoint are chosen: the first rule that returns some decides.
RULES: tuple[tuple[str, Callable[[Listing], Selection | None]], ...] = (
    ("an index of safetensors files", _indexed_safetensors),
    ("not the slices of a distributed checkpoint", _slices),
    ("safetensors files", _loose_safetensors),
    ("not the shards of a training framework", _foreign_shards),
    ("not torch files next to .ckpt files", _torch_and_ckpt),
    ("an index of torch files", _indexed_torch),
    ("torch files", _loose_torch),
    ("an adapter", _adapter),
    ("one .ckpt file, or the shards of one checkpoint", _ckpt),
)


def _torch_names(files: Listing) -> list[str]:
    return [*files.weights(TORCH_ENDINGS), *([TORCH_INDEX] if TORCH_INDEX in files.names else [])]


def _why_nothing(files: Listing) -> StreamconvError:
    directory = files.directory
    elsewhere_error = downloads.partial_model(files) or elsewhere.pointer(directory)
    return elsewhere_error or downloads.partial_cache(directory) or _nothing(files)


def _nothing(files: Listing) -> SourceError:
    left = [f"{name}: {reason}" for name, reason in ignored(files, Selection("", ())).items()]
    note = f"; ignored: {listing(left)}" if left else ""
    return SourceError(f"{quote(files.directory)} holds no file to read that ends in {', '.join(FORMATS)}{note}")


def _check_complete(files: Listing, chosen: Selection) -> list[str]:
    """Refuse a checkpoint that lacks files, or whose files are being downloaded; return warnings."""
    paths = [files.directory / name for name in files.names]
    with closing(in_order(paths, [_dangles] * streams.at_once(files.directory))) as dangling:
        there = {name for name, dangles in zip(files.names, dangling, strict=True) if not dangles}
    absent = sorted(set(chosen.names) - there)
    lacking = Missing(len(absent), absent) if absent or chosen.index else missing(chosen.names)
    indices = [name for name in (HF_INDEX, MS_MAP, TORCH_INDEX) if chosen.index and name in files.names]
    wanted = [*lacking.names, *chosen.names, *indices, CONFIG]
    found = downloads.refuse_partial(files, wanted, there)
    if lacking.count:
        raise _incomplete(files, chosen, lacking)
    return [*found, *downloads.companions_warning(files, wanted)]


def _incomplete(files: Listing, chosen: Selection, lacking: Missing) -> SourceError:
    shards = f"{counted(lacking.count, 'shard')}: {listing(lacking.names, lacking.count)}"
    whole = _whole(files, chosen)
    if not whole:
        return SourceError(f"{quote(files.directory)} lacks {shards}", downloads.what_to_do(files))
    index = next(name for name in (_INDEX[chosen.format], MS_MAP) if name in files.names)
    way_out = f"give that file, or remove {index}" if len(whole) == 1 else f"remove {index}"
    return SourceError(
        f"{quote(files.directory)} lacks {shards}, named by {index}; {listing(whole)} would be a whole checkpoint, and "
        "the index does not name it",
        f"to convert {listing(whole)}, {way_out}; to convert the shards, download them again",
    )


def _whole(files: Listing, chosen: Selection) -> list[str]:
    """Return files that are a checkpoint, of any format, next to an index that names others."""
    others = [name for name in files.weights(tuple(FORMATS)) if name not in chosen.names] if chosen.index else []
    if single := next((name for name in downloads.USUAL if name in others), None):
        return [single]
    series = numbered(others)
    return [] if missing(series).count else series


def _dangles(path: Path) -> bool:
    with reading(path):
        return disk.is_link(path) and not disk.mode(path)


def ignored(files: Listing, chosen: Selection) -> dict[str, str]:
    """Return why other entries of the directory are not read, by name; entries without weights are not listed."""
    others = (name for name in files.names if name not in chosen.names)
    reasons = {name: _reason(files.directory / name, chosen) for name in others}
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(path: Path, chosen: Selection) -> str | None:
    with reading(path):
        mode = disk.mode(path)
    if stat.S_ISDIR(mode):
        return "a subdirectory: not searched for weights"
    if not stat.S_ISREG(mode):
        return "not a regular file or a link to one"
    if reason := not_the_model(path.name) or ("a variant of the same weights" if is_variant(path.name) else None):
        return reason
    its = FORMATS.get(path.suffix)
    if its is None:
        return "another format" if path.name.endswith(_OTHER_FORMATS) else None
    if its == chosen.format:
        return "not named by the index" if chosen.index else "other files of its format are read instead"
    what = "a torch file: " if its == "torch" else ""
    return f"{what}the {chosen.format} files next to it are read instead"
