"""The manifest: what a destination holds, how it was made, and the digests that prove it.

It names no time, no path, and of the source only what the plan's digest covers: the same plan gives the same manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from json.encoder import encode_basestring
from pathlib import Path

import xxhash
from msgspec import Struct

from ..errors import SourceError, reading
from ..formats.header_room import HeaderRoom
from ..formats.headers import is_deep, is_name_inside, opened, read_json
from ..formats.layout import FileLayout
from ..formats.rank_layout import STRATEGY
from ..planning.mapping import TensorMapping
from ..rules.family import RAW
from ..storage import disk, whole_files
from ..tensors.view_nodes import Stored
from ..text import quote
from ..units import BLOCK
from .paths import ResultPaths
from .settings import Settings, arguments_of

_LIMIT = 256 << 20
# Room for the names of 10,000 companions.
_BEGINNING = 1 << 20
_REMEDY = "remove it, or convert again"
VERSION = 1


class Manifest(Struct, frozen=True, dict=True):
    """A manifest as it was read."""

    path: Path
    values: Mapping[str, object]

    def __getitem__(self, key: str) -> object:
        return self.values.get(key)

    def text(self, key: str) -> str:
        """Return a value that is text.

        Raises:
            SourceError: it is missing, or of another type.
        """
        value = self[key]
        if not isinstance(value, str):
            raise _broken(self, f"{key} is missing or has the wrong type")
        return value

    def number(self, key: str) -> int:
        """Return a value that is a whole number.

        Raises:
            SourceError: it is missing, or of another type.
        """
        value = self[key]
        if type(value) is not int:
            raise _broken(self, f"{key} is missing or has the wrong type")
        return value

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments of `streamconv.plan` that made the checkpoint.

        Raises:
            SourceError: a setting is missing, or is not one that streamconv writes.
        """
        texts = {key: self.text(key) for key in ("model", "direction", "format")}
        dtype = self["dtype"] if self["dtype"] is None else self.text("dtype")
        size, crc = self.number("max_shard_size"), bool(self["crc"])
        values = {**texts, "options": self.options, "dtype": dtype, "max_shard_size": size, "crc": crc}
        try:
            return {**arguments_of(values), **self._arguments_of_ranks()}
        except KeyError as error:
            raise _broken(self, f"dtype is not as streamconv writes it: {quote(error)}") from None

    def _arguments_of_ranks(self) -> dict[str, object]:
        """The arguments that cut a result for ranks: it holds its strategy itself."""
        if not self.is_cut:
            return {}
        name = "dest_strategy" if self["model"] == RAW else "strategy"
        return {name: self.path.parent / STRATEGY, "links": bool(self["links"])}

    @property
    def is_cut(self) -> bool:
        """Whether the tensors are cut for the ranks of a training."""
        return self["ranks"] is not None

    @property
    def options(self) -> Mapping[str, object]:
        """The family's options that made the checkpoint."""
        return _object(self, "options")

    @property
    def files(self) -> Mapping[str, tuple[int, Sequence[str]]]:
        """File name → its size and the digests of its blocks."""
        return self._files[0]

    @property
    def links(self) -> Mapping[str, str]:
        """File name → the file that has the same content, and was the same file when they were written."""
        return self._files[1]

    @cached_property
    def _files(self) -> tuple[dict[str, tuple[int, Sequence[str]]], dict[str, str]]:
        files: dict[str, tuple[int, Sequence[str]]] = {}
        links: dict[str, str] = {}
        for name, entry in _object(self, "files").items():
            match entry:
                case {"size": int(size), "blocks": list(blocks)} if all(isinstance(b, str) for b in blocks):
                    files[name] = (size, blocks)
                case {"same": str(same)} if same in files and same not in links:
                    files[name], links[name] = files[same], same
            if name not in files or not is_name_inside(name):
                raise _broken(self, f"its entry for {quote(name)} is not as streamconv writes it")
        return files, links

    @property
    def tensors(self) -> Mapping[str, tuple[str, Sequence[Sequence[int]]]]:
        """Tensor name → its file and its (offset, length) pairs there."""
        result = {}
        for name, entry in _object(self, "tensors").items():
            match entry:
                case {"file": str(file), "extents": list(extents)} if all(map(_is_extent, extents)):
                    result[name] = (file, extents)
                case _:
                    raise _broken(self, f"its entry for tensor {quote(name)} is not as streamconv writes it")
        return result


def write(
    settings: Settings,
    mapping: TensorMapping,
    layout: FileLayout,
    digests: Mapping[str, Sequence[str]],
    overflowed: Mapping[str, int],
    companions: Iterable[str],
    version: str,
) -> bytes:
    """Return the manifest's bytes."""
    values = {
        "streamconv": version,
        "manifest": VERSION,
        # At the beginning, where `companions_in` looks. The names of the weights of ranks do not tell whose they are.
        "companions": sorted([*companions, *layout.in_folders]),
        **settings.to_json(),
        "plan": mapping.digest,
        "block": BLOCK,
        "dropped": dict(sorted(mapping.dropped.items())),
        "dequantised": dict(mapping.dequantised),
        "cast": dict(_casts(mapping)),
        "overflowed": dict(sorted(overflowed.items())),
        "files": {
            **{file.name: {"size": file.size, "blocks": list(digests[file.name])} for file in layout.files},
            **{name: {"same": file.name} for file in layout.files for name in file.links},
            **{name: {"size": len(text), "blocks": _block_digests(text)} for name, text in layout.texts.items()},
        },
    }
    head = json.dumps(values, indent=1, ensure_ascii=False).removesuffix("\n}")
    # One line a tensor, each made on its own: with 46,000 of them the objects would be many times the text.
    tensors = ",\n".join(_lines(layout))
    return f'{head},\n "tensors": {{\n{tensors}\n }}\n}}\n'.encode("utf-8", "surrogatepass")


def companions_in(directory: Path) -> Set[str]:
    """Return the names of the files next to the weights, and in folders, that streamconv wrote to a directory.

    Only the beginning of its manifest is read: that of a large model takes a hundred MiB as objects.

    Raises:
        OSError: the manifest cannot be read.
    """
    place = ResultPaths.of_existing(directory).manifest
    text = whole_files.read_file(place, _BEGINNING).decode(errors="replace") if disk.is_file(place) else ""
    _, found, rest = text.partition('\n "companions": ')
    try:
        names = json.JSONDecoder().raw_decode(rest)[0] if found else []
    except (ValueError, RecursionError):  # damaged, or cut off
        names = []
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _casts(mapping: TensorMapping) -> Iterator[tuple[str, list[str]]]:
    """Yield the outputs that were cast, each with the dtypes that it was cast from."""
    for output in mapping.outputs:
        if type(output.view) is Stored and output.view.dtype == output.dtype:
            continue
        dtypes = {leaf.dtype for leaf in output.view.leaves()}
        if dtypes != {output.dtype}:
            yield output.tensor, sorted(map(str, dtypes))


def _lines(layout: FileLayout) -> Iterator[str]:
    for file in layout.files:
        home = encode_basestring(file.name)
        for name, extents in file.extents.items():
            key = f"{file.name}: {file.names[name]}" if file.names else name
            pairs = ", ".join([f"[{offset}, {length}]" for offset, length in extents])
            yield f'  {encode_basestring(key)}: {{"file": {home}, "extents": [{pairs}]}}'


def find(path: Path, header_room: HeaderRoom | None = None) -> Manifest | None:
    """Return the manifest of a checkpoint (a directory or a file), `None` where streamconv did not write it.

    Args:
        path: the checkpoint.
        header_room: bytes of JSON that the memory limit allows; without it as many as a manifest may have.

    Raises:
        SourceError: it is damaged, or of another version.
        BudgetError: it is larger than `header_room` allows.
    """
    with reading(path):
        place = ResultPaths.of_existing(path).manifest
        if not disk.exists(place):
            return None
    with opened(place) as (descriptor, file):
        if file.size > _LIMIT:
            raise SourceError(f"{quote(place)} has {file.size} bytes, but a manifest has at most {_LIMIT}", _REMEDY)
        text = read_json(descriptor, file, 0, file.size, quote(place), header_room or HeaderRoom(_LIMIT))
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{quote(place)} is not JSON: {quote(error)}", _REMEDY) from error
    if not isinstance(values, dict) or is_deep(values) or type(version := values.get("manifest")) is not int:
        raise SourceError(f"{quote(place)} is not a manifest of streamconv", _REMEDY)
    if version > VERSION:
        raise SourceError(
            f"{quote(place)} was written by a newer streamconv (manifest version {version})", "upgrade streamconv"
        )
    if version != VERSION:
        raise SourceError(f"{quote(place)} has an unknown manifest version: {version}", _REMEDY)
    return Manifest(place, values)


def _object(manifest: Manifest, key: str) -> Mapping[str, object]:
    value = manifest[key]
    if not isinstance(value, dict):
        raise _broken(manifest, f"{key} is missing")
    return value


def _block_digests(data: bytes) -> list[str]:
    return [xxhash.xxh3_128_hexdigest(data[begin : begin + BLOCK]) for begin in range(0, len(data), BLOCK)]


def _is_extent(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


def _broken(manifest: Manifest, what: str) -> SourceError:
    """Return the error for a manifest that is not as streamconv writes it."""
    return SourceError(f"{quote(manifest.path)}: {what}", _REMEDY)
