"""Verification: an output against its manifest, at disk speed, or against what its source gives, box by box.

Either way all of it, or a sample: then sizes, names and headers are still looked at in full.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from ..engine.budget import resident_bytes
from ..engine.progress import OnProgress, Progress
from ..errors import SourceError, UnsupportedError, UsageError, VerificationError, reading
from ..formats.catalog import open_catalog
from ..output.blocks import BLOCK
from ..output.manifest import Manifest
from ..storage import disk
from ..text import quote
from .sample import Sample

_CHUNK = 1 << 20
_SHOWN = 20


@dataclass(frozen=True)
class Verified:
    """What was proven: `files` and `tensors` counted, `bytes_read` of `total` bytes compared."""

    files: int
    tensors: int
    bytes_read: int
    total: int


def against_manifest(
    path: Path, manifest: Manifest, on_progress: OnProgress | None = None, sample: Sample | None = None
) -> Verified:
    """Read every file that a manifest names and compare its size and the digests of its blocks.

    Of a sample, at least one block of every file is read, and the one with a safetensors header; names and places of
    all tensors are compared with the headers.

    Raises:
        VerificationError: a file is missing, has another size, or a block differs; the message names the block's
        tensors, and which of their bytes lie there. With a sample: or the headers name other tensors.
    """
    files, folder = manifest.files, _is_directory(path)
    chosen = _chosen_blocks(manifest, sample)
    total = sum(_block_size(files[name][0], number) for name, numbers in chosen.items() for number in numbers)
    done, started = 0, time.monotonic()
    for name, (size, digests) in files.items():
        place = path / name if folder else path
        for number, digest in _digests(place, size, chosen[name]):
            if number >= len(digests) or digest != digests[number]:
                raise _differs(place, name, number * BLOCK, min(size, (number + 1) * BLOCK), manifest)
            done += _block_size(size, number)
            if on_progress:
                on_progress(Progress(done, total, time.monotonic() - started, resident_bytes(), 0, name))
    if sample is not None:
        _check_places(path, folder, manifest)
    return Verified(len(files), len(manifest.tensors), total, sum(size for size, _ in files.values()))


def _chosen_blocks(manifest: Manifest, sample: Sample | None) -> Mapping[str, Sequence[int]]:
    """For each file the numbers of the blocks to read."""
    chosen: dict[str, Sequence[int]] = {}
    heads, before = _heads(manifest) if sample else {}, 0
    for name, (size, _) in manifest.files.items():
        chosen[name] = every = range(-(-size // BLOCK))
        if sample and every:
            taken = {number for number in every if sample.takes(before + number)}
            taken = taken or {sample.one_of(len(every), name)}
            chosen[name] = sorted(taken | set(range(min(heads.get(name, 0) // BLOCK + 1, len(every)))))
        before += len(every)
    return chosen


def _heads(manifest: Manifest) -> Mapping[str, int]:
    """Where the first tensor of each file begins: before it lies a safetensors header, all of it."""
    heads: dict[str, int] = {}
    for file, extents in manifest.tensors.values():
        for offset, _ in extents:
            heads[file] = max(0, min(heads.get(file, offset), offset))
    return heads


def _block_size(size: int, number: int) -> int:
    return min(BLOCK, size - number * BLOCK)


def _check_places(path: Path, folder: bool, manifest: Manifest) -> None:
    """Compare what the headers say of names and places with the manifest.

    Raises:
        VerificationError: a tensor is missing, lies elsewhere, or is one too many; or a header is broken.
        SourceError: a file cannot be read.
    """
    try:
        catalog = open_catalog(path)
    except (SourceError, UnsupportedError) as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise VerificationError(f"{error}; the manifest says otherwise") from error
    found = {n: _places((e.file.path.name, e.offset, e.length) for e in ref.extents) for n, ref in catalog.items()}
    known = {n: _places((file, *e) for e in extents) for n, (file, extents) in manifest.tensors.items()}
    if not folder:
        found, known = ({n: [p[1:] for p in places] for n, places in each.items()} for each in (found, known))
    for name in (*known, *found):
        if name not in known or name not in found or known[name] != found[name]:
            raise VerificationError(f"the headers of {quote(path)} and its manifest disagree on tensor {quote(name)}")


def _places(extents: Iterable[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return [extent for extent in extents if extent[-1]]


def _digests(path: Path, size: int, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
    """The digests of some of a file's blocks with their numbers, each as soon as it is read.

    Raises:
        VerificationError: the file is missing, or not `size` bytes long.
        SourceError: it cannot be read.
    """
    try:
        with reading(path):
            descriptor = disk.open_file(path, os.O_RDONLY | os.O_NONBLOCK)
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise VerificationError(f"{quote(path)} is missing, its manifest names it: convert again") from None
        raise
    try:
        with reading(path):
            found = disk.fstat(descriptor).st_size
            if found != size:
                raise VerificationError(f"{quote(path)} has {found} bytes, its manifest says {size}: convert again")
            for number in numbers:
                yield number, _digest(path, descriptor, number * BLOCK, _block_size(size, number))
                disk.try_drop_cache(descriptor, number * BLOCK, BLOCK)
    finally:
        disk.close_quietly(descriptor)


def _digest(path: Path, descriptor: int, begin: int, length: int) -> str:
    """The digest of one block."""
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(length, _CHUNK)))
    at, end = begin, begin + length
    while at < end:
        count = disk.read_into(descriptor, buffer[: min(len(buffer), end - at)], at)
        if not count:
            raise VerificationError(f"{quote(path)} became shorter while it was read")
        digest.update(buffer[:count])
        at += count
    return digest.hexdigest()


def _is_directory(path: Path) -> bool:
    with reading(path):
        return disk.is_directory(path)


def _differs(path: Path, name: str, begin: int, end: int, manifest: Manifest) -> VerificationError:
    """The error for a block of `path`, which the manifest calls `name`."""
    inside = [
        f"{quote(tensor)}, {part}"
        for tensor, (file, extents) in manifest.tensors.items()
        if file == name and (part := _part(extents, begin, end))
    ]
    more = f"; and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
    return VerificationError(
        f"{quote(path)} differs from its manifest between byte {begin} and byte {end}"
        + (f" (tensors there: {'; '.join(inside[:_SHOWN])}{more})" if inside else "")
        + ": copy or convert again"
    )


def _part(extents: Sequence[Sequence[int]], begin: int, end: int) -> str:
    """Which bytes of a tensor lie between two bytes of its file, in words; nothing where none do."""
    size = sum(length for _, length in extents)
    low, high, before = size, 0, 0
    for offset, length in extents:
        if max(begin, offset) < min(end, offset + length):
            low = min(low, before + max(begin, offset) - offset)
            high = before + min(end, offset + length) - offset
        before += length
    if low >= high:
        return ""
    return f"all its {size} bytes" if high - low == size else f"bytes {low} to {high} of its {size}"


def needed(manifest: Manifest | None, path: Path) -> Manifest:
    """The manifest, or an error that says what can be done without one.

    Raises:
        UsageError: there is none.
    """
    if manifest is None:
        raise UsageError(
            f"{quote(path)} has no manifest: `streamconv verify SOURCE DEST` compares it with its source instead"
        )
    return manifest
