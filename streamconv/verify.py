"""Verification: an output against its manifest, at disk speed, or against what its source gives, box by box."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash

from . import disk
from .blocks import BLOCK, SEAL_BYTES, seal_bytes
from .engine import OnProgress, Progress
from .errors import SourceError, UsageError, VerificationError, quote, reading
from .formats import ckpt
from .layout import Layout
from .manifest import Manifest
from .memory import resident_bytes
from .tensors import OutputFile
from .writer import pieces

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Verified:
    """What was proven: `files` and `tensors` counted, `count` bytes read and found right."""

    files: int
    tensors: int
    count: int


def against_manifest(path: Path, manifest: Manifest, on_progress: OnProgress | None = None) -> Verified:
    """Read every file that a manifest names and compare its size and the digests of its blocks.

    Raises:
        VerificationError: a file is missing, has another size, or a block differs; the message names the block's
        tensors.
    """
    files, folder = manifest.files, _is_directory(path)
    total, done, started = sum(size for size, _ in files.values()), 0, time.monotonic()
    for name, (size, digests) in files.items():
        place = path / name if folder else path
        for number, digest in enumerate(_digests(place, size)):
            if number >= len(digests) or digest != digests[number]:
                raise _differs(place, name, number * BLOCK, min(size, (number + 1) * BLOCK), manifest)
            done += min(BLOCK, size - number * BLOCK)
            if on_progress:
                on_progress(Progress(done, total, time.monotonic() - started, resident_bytes(), 0, name))
    return Verified(len(files), len(manifest.tensors), total)


def _digests(path: Path, size: int) -> Iterator[str]:
    """The digests of a file's blocks, each as soon as it is read.

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
            for begin in range(0, size, BLOCK):
                yield _digest(path, descriptor, begin, min(BLOCK, size - begin))
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
        tensor
        for tensor, (file, extents) in manifest.tensors.items()
        if file == name and any(offset < end and begin < offset + length for offset, length in extents)
    ]
    shown = ", ".join(quote(t) for t in inside[:3]) + (f" and {len(inside) - 3} more" if len(inside) > 3 else "")
    return VerificationError(
        f"{quote(path)} differs from its manifest between byte {begin} and byte {end}"
        + (f" (tensors there: {shown})" if inside else "")
        + ": convert again"
    )


class CompareSink:
    """Takes the boxes of a conversion and compares them with files that are there already.

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

    def put(self, name: str, offset: int, data: memoryview) -> str:
        """Compare bytes `offset` … of tensor `name`."""
        file = self._by_tensor[name]
        for place, low, high in pieces(file.extents[name], offset, len(data)):
            for begin in range(low, high, _CHUNK):
                part = data[begin : min(high, begin + _CHUNK)]
                self._compare(file, place + begin - low, part, f"tensor {quote(name)}, byte {offset + begin}")
        return file.name

    def finish(self) -> None:
        """Compare the CRCs, over bytes that are proven by now."""
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
        """Let go of the files."""
        for descriptor in self._open.values():
            disk.release(descriptor)
        self._open.clear()

    def _check_frame(self, file: OutputFile) -> None:
        place = self._place(file)
        try:
            descriptor = self._open[file.name] = disk.open_file(place, os.O_RDONLY)
        except OSError as error:
            raise VerificationError(f"{quote(place)} cannot be opened: {error.strerror}; convert again") from error
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
