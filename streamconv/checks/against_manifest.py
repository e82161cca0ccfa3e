"""Verify an output against its manifest, at disk speed: all of it, or a sample with all sizes, names and headers."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import xxhash
from msgspec import Struct

from ..engine.progress import OnProgress, ProgressReporter
from ..errors import SourceError, UnsupportedError, UsageError, VerificationError, allocating, reading
from ..formats import ckpt, safetensors
from ..formats.catalog import open_catalog
from ..formats.header_room import HeaderRoom
from ..output.manifest import Manifest
from ..output.paths import ResultPaths
from ..storage.in_order import in_order
from ..storage.regions import Region
from ..text import first_few, quote, setting
from ..units import BLOCK
from .open_results import OpenResults, access_to, are_same_file
from .sample import Sample

_SHOWN = 5
# A disk is at its fastest with two or three large requests at a time; each thread has memory for one.
_THREADS = 3
_REQUEST = 8 << 20
_AGAIN = "copy it again, or convert again"


class Verified(Struct, frozen=True):
    """What was verified: so many files and tensors, `bytes_read` of `total` bytes.

    Attributes:
        nodes: on a cluster, what every node did: host, workers, tasks, bytes, seconds, peak_bytes.
    """

    files: int
    tensors: int
    bytes_read: int
    total: int
    nodes: Sequence[Mapping[str, object]] = ()


def verify_blocks(
    path: Path, manifest: Manifest, on_progress: OnProgress | None = None, sample: Sample | None = None
) -> Verified:
    """Read every file that a manifest lists, and compare its size and the digests of its blocks.

    A sample has at least one block of every file, and all of its safetensors header; the names and offsets of all
    tensors are compared with the headers.

    Args:
        path: the checkpoint.
        manifest: its manifest.
        on_progress: called now and then.
        sample: the share of the blocks to read; all where absent.

    Raises:
        VerificationError: a file is missing, has another size, or a block differs; the message names the block's
            tensors, and which of their bytes lie there. With a sample, also: the headers list other tensors.
        SourceError: a file cannot be read.
    """
    paths, files = paths_of(path), manifest.files
    chosen = blocks_to_read(paths, manifest, sample)
    total = sum(block_size(files[name][0], number) for name, numbers in chosen.items() for number in numbers)
    done, reporter, names = 0, ProgressReporter(on_progress, total), list(files)
    with closing(read_digests([FileBlocks(paths.file(name), files[name][0], chosen[name]) for name in names])) as read:
        for at, number, length, digest in read:
            _, digests = files[names[at]]
            if number >= len(digests) or digest != digests[number]:
                raise differs(paths, names[at], number, manifest)
            done += length
            reporter.report(done, names[at])
    if sample is not None:
        _check_places(paths, manifest)
    return verified(manifest, total)


def paths_of(path: Path) -> ResultPaths:
    """Return the names of a checkpoint's files.

    Raises:
        SourceError: the system cannot tell what it is.
    """
    with reading(path):
        return ResultPaths.of_existing(path)


def verified(manifest: Manifest, bytes_read: int) -> Verified:
    """Return the result of a verification that found no difference."""
    total = sum(size for size, _ in manifest.files.values())
    return Verified(len(manifest.files), len(manifest.tensors), bytes_read, total)


def blocks_to_read(paths: ResultPaths, manifest: Manifest, sample: Sample | None = None) -> dict[str, Sequence[int]]:
    """Return for each file the numbers of the blocks to read: none of a link, for another name of it is read."""
    chosen = _chosen_blocks(manifest, sample)
    for name, same in manifest.links.items():
        if are_same_file(paths.file(name), paths.file(same)):
            chosen[name] = ()
    return chosen


def _chosen_blocks(manifest: Manifest, sample: Sample | None) -> dict[str, Sequence[int]]:
    """Return for each file the numbers of the blocks to read."""
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
    """Return where the first tensor of each file begins: all of a safetensors header lies before it."""
    heads: dict[str, int] = {}
    for file, extents in manifest.tensors.values():
        for offset, _ in extents:
            heads[file] = max(0, min(heads.get(file, offset), offset))
    heads.update((name, heads[same]) for name, same in manifest.links.items() if same in heads)
    return heads


def block_size(size: int, number: int) -> int:
    """Return the bytes of block `number` of a file of `size` bytes."""
    return min(BLOCK, size - number * BLOCK)


def _check_places(paths: ResultPaths, manifest: Manifest) -> None:
    """Compare the names and offsets in the headers with the manifest.

    Raises:
        VerificationError: a tensor is missing, has other offsets, or is not in the manifest; or a header is damaged.
        SourceError: a file cannot be read.
    """
    try:
        found = _places_by_rank(paths, manifest) if manifest.is_cut else _places_in(paths.path)
    except (SourceError, UnsupportedError) as error:
        if isinstance(error.__cause__, OSError):
            raise
        message, hint = error.marked
        raise VerificationError(f"{message}; the manifest says otherwise", hint) from error
    known = {n: _places((file, *e) for e in extents) for n, (file, extents) in manifest.tensors.items()}
    if paths.is_file:
        found, known = ({n: [p[1:] for p in places] for n, places in each.items()} for each in (found, known))
    for name in (*known, *found):
        if name not in known or name not in found or known[name] != found[name]:
            raise VerificationError(
                f"the headers of {quote(paths.path)} and its manifest disagree on tensor {quote(name)}", _AGAIN
            )


def _places_in(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return where the tensors of a checkpoint lie by its headers."""
    found = open_catalog(path)
    return {name: _places((e.file.path.name, e.offset, e.length) for e in ref.extents) for name, ref in found.items()}


def _places_by_rank(paths: ResultPaths, manifest: Manifest) -> dict[str, list[tuple[object, ...]]]:
    """Return where the tensors of each rank lie by the headers, under the names that they have in the manifest."""
    found = {}
    for file in dict.fromkeys(file for file, _ in manifest.tensors.values()):
        path = paths.file(file)
        _, tensors = ckpt.read(path) if path.suffix == ".ckpt" else safetensors.read(path, HeaderRoom())
        for name, ref in tensors.items():
            found[f"{file}: {name}"] = _places((file, e.offset, e.length) for e in ref.extents)
    return found


def _places(extents: Iterable[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return [extent for extent in extents if extent[-1]]


class FileBlocks(NamedTuple):
    """Blocks of a file that are read, by number; without any, only the file's size is compared."""

    path: Path
    size: int
    numbers: Sequence[int]


class Digest(NamedTuple):
    """The digest of a block: of which of the files that are read, its number and its bytes."""

    file: int
    number: int
    length: int
    value: str


def read_digests(files: Sequence[FileBlocks]) -> Generator[Digest, None, None]:
    """Yield the digests of blocks of files, in order, while a few threads read the next ones.

    Close it (`contextlib.closing`) where not all of them are taken.

    Raises:
        VerificationError: a file is missing, or has another size.
        SourceError: it cannot be read.
    """
    opened = OpenResults(access_to("auto", (file.path for file in files if file.numbers)))
    sizes = sum(block_size(size, number) for _, size, numbers in files for number in numbers)
    threads = max(1, min(_THREADS, sizes // BLOCK))
    try:
        with allocating():
            readers = [_BlockReader(files, opened, Region(min(_REQUEST, sizes))) for _ in range(threads)]
            for found in in_order(_every_block(files), [reader.digest for reader in readers]):
                if found is not None:
                    yield found
    finally:
        opened.close()


def _every_block(files: Sequence[FileBlocks]) -> Iterator[tuple[int, int | None]]:
    """Yield the number of each file and of each of its blocks; before those the file's alone."""
    for at, file in enumerate(files):
        yield at, None
        yield from ((at, number) for number in file.numbers)


class _BlockReader:
    """Reads blocks and digests them: one thread, with memory of its own."""

    def __init__(self, files: Sequence[FileBlocks], opened: OpenResults, region: Region) -> None:
        self._files, self._opened, self._region = files, opened, region

    def digest(self, block: tuple[int, int | None]) -> Digest | None:
        """Return the digest of a block; where no block is given, compare the size of its file instead."""
        at, number = block
        path, size, _ = self._files[at]
        if number is None:
            _check_size(self._opened, path, size)
            return None
        begin, length, digest = number * BLOCK, block_size(size, number), xxhash.xxh3_128()
        with reading(path):
            for low in range(begin, begin + length, _REQUEST):
                count = min(_REQUEST, begin + length - low)
                found = self._opened.read(path, low, count, self._region)
                if len(found) < count:
                    raise VerificationError(
                        f"{quote(path)} was truncated while it was read", "run again once nothing writes to it"
                    )
                digest.update(found)
            self._opened.try_drop_cache(path, begin, length)
        return Digest(at, number, length, digest.hexdigest())


def _check_size(opened: OpenResults, path: Path, size: int) -> None:
    """Compare a file's size with the manifest.

    Raises:
        VerificationError: it has another one, or is missing.
        SourceError: it cannot be opened.
    """
    try:
        with reading(path):
            found = opened.size(path)
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise VerificationError(f"{quote(path)} is missing, but the manifest lists it", _AGAIN) from None
        raise
    if found != size:
        raise VerificationError(f"{quote(path)} has {found} bytes, but the manifest says {size}", _AGAIN)


def differs(paths: ResultPaths, name: str, number: int, manifest: Manifest) -> VerificationError:
    """Return the error for a block of the file that the manifest calls `name`."""
    size, _ = manifest.files[name]
    begin, end = number * BLOCK, min(size, (number + 1) * BLOCK)
    inside = [
        f"{quote(tensor)}, {part}"
        for tensor, (file, extents) in manifest.tensors.items()
        if file == name and (part := _part(extents, begin, end))
    ]
    return VerificationError(
        f"{quote(paths.file(name))} differs from its manifest between byte {begin} and byte {end}"
        + (f" (tensors there: {first_few(inside, _SHOWN, separator='; ')})" if inside else ""),
        _AGAIN,
    )


def _part(extents: Sequence[Sequence[int]], begin: int, end: int) -> str:
    """Say which bytes of a tensor lie between two bytes of its file; return nothing where none do."""
    size = sum(length for _, length in extents)
    low, high, before = size, 0, 0
    for offset, length in extents:
        if max(begin, offset) < min(end, offset + length):
            low = min(low, before + max(begin, offset) - offset)
            high = before + min(end, offset + length) - offset
        before += length
    if low >= high:
        return ""
    return f"all of its {size} bytes" if high - low == size else f"bytes {low} to {high} of its {size}"


def required_manifest(manifest: Manifest | None, path: Path) -> Manifest:
    """Return the manifest of `path`.

    Raises:
        UsageError: there is none.
    """
    if manifest is None:
        raise UsageError(
            f"{quote(path)} has no manifest",
            f"compare it with what it was made from: give {setting('source')} too",
        )
    return manifest
