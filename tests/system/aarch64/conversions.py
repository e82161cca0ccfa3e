"""Convert the sources of a folder: `python conversions.py SOURCES RESULTS [--short]` prints a digest of every result.

The same script runs on the host and on the emulated processor, from the same sources; the lines have to be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import streamconv

#: Resident memory is the emulator's too, and its pages of 64 KiB are counted sixteen times.
MAX_MEM = "16G"
#: How files are accessed, and by how many workers: the bytes do not depend on it.
WAYS = tuple(product(("read", "direct"), (1, 3)))


class Case(NamedTuple):
    """A conversion: of a source, or of the result of an earlier case; the result's name says its format."""

    name: str
    source: str
    dest: str
    options: dict[str, Any]


def cases() -> Iterator[Case]:
    """Yield every case; the first is the short form."""
    stacked = {"options": {"use_gmm": True}}
    yield Case("Mixtral: stacked and transposed", "mixtral", "mixtral-ms", stacked)
    yield Case("Mixtral: back", "mixtral-ms", "mixtral-back", {"reverse": True})
    yield Case("Mixtral: .ckpt with CRC", "mixtral", "mixtral.ckpt", {**stacked, "crc": True, "dtype": "fp16"})
    for dtype in ("fp32", "fp16", "bf16"):
        fused = {"options": {"qkv_concat": True}, "dtype": dtype}
        yield Case(f"Llama: fused, {dtype}", "llama", f"llama-{dtype}", fused)
        yield Case(f"Llama: .ckpt, {dtype}", "llama", f"llama-{dtype}.ckpt", {"dtype": dtype, "crc": True})
        yield Case(
            f"floats of any bits: to {dtype}", "floats.safetensors", f"floats-{dtype}", {"model": "raw", "dtype": dtype}
        )
        yield Case(f"FP8: to {dtype}", "fp8", f"fp8-{dtype}", {"model": "raw", "format": "hf", "dtype": dtype})
    yield Case("Llama: .pth", "llama", "llama.pth", {"model": "raw"})
    yield Case("Llama: from .pth", "llama.pth", "llama-pth-hf", {"model": "raw", "format": "hf"})
    yield Case("Llama: from .ckpt", "llama-fp32.ckpt", "llama-ckpt-ms", {"model": "raw"})
    yield Case("all dtypes: as they are", "dtypes.safetensors", "dtypes-hf", {"model": "raw", "format": "hf"})
    yield Case("FP8: in a family", "fp8", "fp8-ms", {"options": {"qkv_concat": True}})


def digests(sources: Path, results: Path, short: bool) -> Iterator[tuple[str, str]]:
    """Convert, verify against the source, and yield a digest of all files for every case and way."""
    for case in list(cases())[: 1 if short else None]:
        for io, workers in WAYS:
            folder = results / f"{io}-{workers}"
            folder.mkdir(parents=True, exist_ok=True)
            source = next(path for path in (sources / case.source, folder / case.source) if path.exists())
            dest = folder / case.dest
            how: dict[str, Any] = {"io": io, "workers": workers, "max_mem": MAX_MEM}
            streamconv.convert(source, dest, **case.options, **how)
            streamconv.verify(dest, source=source, **how)
            yield f"{case.name}, {io}, {workers} workers", digest_of(dest)


def digest_of(result: Path) -> str:
    """A digest of the names and bytes of a result's files, its manifest among them."""
    found = hashlib.blake2b(digest_size=16)
    files = result.iterdir() if result.is_dir() else result.parent.glob(f"{result.name}*")
    for path in sorted(files):
        content = path.read_bytes()
        found.update(f"{path.name} {len(content)}\n".encode() + content)
    return found.hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--short", action="store_true")
    given = parser.parse_args()
    done = dict(digests(given.sources, given.results, given.short))
    json.dump({"machine": platform.machine(), "digests": done}, sys.stdout)
