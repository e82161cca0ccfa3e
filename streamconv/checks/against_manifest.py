"""Verification: an output against its manifest, at disk speed, or against what its source gives, box by box.

Either way all of it, or a sample: then sizes, names and headers are still looked at in full.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash

from ..engine.budget import resident_bytes
from ..engine.workers import Chosen, OnProgress, Progress
from ..errors import SourceError, UnsupportedError, UsageError, VerificationError, quote, reading
from ..formats import ckpt
from ..formats.catalog import open_catalog
from ..formats.layout import Layout
from ..output.blocks import BLOCK, SEAL_BYTES, seal_bytes
from ..output.manifest import Manifest
from ..output.writer import pieces
from ..storage import disk
from ..tensors.grids import Box
from ..tensors.refs import OutputFile
from .sample import Sample

_CHUNK = 1 << 20
_SHOWN = 20


@dataclass(frozen=True)
class Verified:
    """What was proven: `files` and `tensors` counted, `count` bytes of `total` read and found right."""

    files: int
    tensors: int
    count: int
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
            found = disk.status(descriptor).st_size
            if found != size:
                raise VerificationError(f"{quote(path)} has {found} bytes, its manifest says {size}: convert again")
            for number in numbers:
                yield number, _digest(path, descriptor, number * BLOCK, _block_size(size, number))
                disk.drop(descriptor, number * BLOCK, BLOCK)
    finally:
        disk.release(descriptor)


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


def chosen_boxes(layout: Layout, sample: Sample) -> Chosen:
    """Which boxes are compared: the sample's, and the first one of a tensor of each file."""
    firsts = set()
    for file in layout.files:
        names = [name for name, extents in file.extents.items() if any(length for _, length in extents)]
        if names:
            firsts.add(names[sample.one_of(len(names), file.name)])

    def chosen(number: int, name: str, box: Box) -> bool:
        return sample.takes(number) or (name in firsts and not any(low for low, _ in box))

    return chosen


class CompareSink:
    """Takes the boxes of a conversion and compares them with files that are there already.

    Sizes, headers and indices are compared at once, in full.

    Raises, from `put`:
        VerificationError: a byte differs; the message names file, tensor and byte.
    """

    def __init__(self, layout: Layout, path: Path) -> None:
        self._path, self._folder = path, _is_directory(path)
        self._by_tensor: Mapping[str, OutputFile] = {name: file for file in layout.files for name in file.extents}
        self._open: dict[str, int] = {}
        self._files = layout.files
        texts = (OutputFile(name, len(text), ((0, text),), {}) for name, text in layout.texts.items())
        try:
            for file in (*layout.files, *texts):
                self._check_frame(file)
        except BaseException:
            self.close()
            raise

    def phase(self, name: str, offset: int, count: int) -> int | None:
        """Bytes that are compared may lie in memory anyhow."""
        return None

    def put(self, name: str, offset: int, data: memoryview) -> str:
        """Compare bytes `offset` … of tensor `name`."""
        file = self._by_tensor[name]
        for place, low, high in pieces(file.extents[name], offset, len(data)):
            for begin in range(low, high, _CHUNK):
                part = data[begin : min(high, begin + _CHUNK)]
                self._compare(file, place + begin - low, part, f"tensor {quote(name)}, byte {offset + begin}")
        return file.name

    def finish(self) -> None:
        """Compare the CRCs, over bytes that are proven by now: not called for a sample, for they are of whole files."""
        for file in self._files:
            if file.crc_tail:
                body = file.size - ckpt.CRC_TAIL_BYTES
                self._compare(file, body, memoryview(ckpt.crc_tail(self._crc(file, 0, body))), "the CRC")
            for seal in file.seals:
                expected = memoryview(seal_bytes(self._crc(file, seal.begin, seal.end)))
                self._compare(file, seal.near, expected, "a CRC")
                self._compare(file, seal.far, expected, "a CRC in the directory")

    def _crc(self, file: OutputFile, begin: int, end: int) -> int:
        crc = 0
        for at in range(begin, end, _CHUNK):
            crc = zlib.crc32(self._read(file, at, min(_CHUNK, end - at)), crc)
        return crc

    def close(self) -> None:
        """Let go of the files, and of what the page cache has of them."""
        for descriptor in self._open.values():
            disk.drop(descriptor)
            disk.release(descriptor)
        self._open.clear()

    def _check_frame(self, file: OutputFile) -> None:
        place = self._place(file)
        try:
            with reading(place):
                descriptor = self._open[file.name] = disk.open_file(place, os.O_RDONLY)
        except SourceError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise VerificationError(f"{quote(place)} is missing: convert again") from error
            raise
        with reading(place):
            size = disk.status(descriptor).st_size
        if size != file.size:
            raise VerificationError(f"{quote(place)} has {size} bytes, the source gives {file.size}: convert again")
        for offset, data in _unsealed(file):
            self._compare(file, offset, data, "a header" if file.extents else "the index")

    def _compare(self, file: OutputFile, offset: int, expected: memoryview, what: str) -> None:
        # As arrays: Python compares bytes with a memoryview one by one, 20 times slower.
        found = np.frombuffer(self._read(file, offset, len(expected)), np.uint8)
        wanted = np.frombuffer(expected, np.uint8)
        if np.array_equal(found, wanted):
            return
        least = min(len(found), len(wanted))
        unequal = found[:least] != wanted[:least]
        first = int(unequal.argmax()) if unequal.any() else least
        raise VerificationError(
            f"{quote(self._place(file))} differs from what the source gives at byte {offset + first} ({what} + {first})"
        )

    def _read(self, file: OutputFile, offset: int, length: int) -> bytes:
        with reading(self._place(file)):
            return disk.read_up_to(self._open[file.name], length, offset)

    def _place(self, file: OutputFile) -> Path:
        return self._path / file.name if self._folder else self._path


def _unsealed(file: OutputFile) -> Iterator[tuple[int, memoryview]]:
    """The literals of a file with their offsets, but for the seals in them."""
    seals = chain((seal.near for seal in file.seals), (seal.far for seal in file.seals))
    seal = next(seals, file.size)
    for offset, data in file.literals:
        begin, end = offset, offset + len(data)
        while seal < end:
            yield begin, memoryview(data)[begin - offset : seal - offset]
            begin, seal = seal + SEAL_BYTES, next(seals, file.size)
        yield begin, memoryview(data)[begin - offset :]


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
