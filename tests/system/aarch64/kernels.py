"""Digests of what the loops over elements make of hard values: `python kernels.py` prints a line for each case.

The same script runs on the host and on the emulated processor; the lines have to be the same. All inputs are made of
integers, whose bits no processor decides.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # of a script, its own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numkong
import numpy as np
from numpy.typing import NDArray

from streamconv.engine import kernels
from streamconv.tensors.dtypes import BF16, F16, F32, F64, DType
from streamconv.tensors.quantised import Code, Packing
from support.quantised import dequantise_fp8, dequantise_packed

FLOATS = (F16, BF16, F32, F64)
LONGEST_TAIL = 69
_MANY = 100_000
#: Bits that a cast to a smaller float cuts off: their half is a tie.
_CUT_OFF = {F32: (13, 16), F64: (29, 42, 45)}


def cast_cases() -> Iterator[tuple[str, str]]:
    """Every pair of floats: contiguous, strided, transposed, and every length of a vector's tail."""
    inputs = {dtype: patterns(dtype) for dtype in FLOATS}
    for source, target in product(FLOATS, FLOATS):
        bits = inputs[source]
        some = bits[:: max(1, bits.size // 40_000)]
        matrix = some[: some.size // 96 * 96].reshape(96, -1)
        where = f"casts from {source}: to {target}"
        yield f"{where}, contiguous", digest_of_cast(bits, source, target)
        yield f"{where}, strided", digest_of_cast(some[::-3], source, target)
        yield f"{where}, transposed", digest_of_cast(matrix, source, target, order="F")
        yield (
            f"{where}, tails",
            digest([digest_of_cast(some[n : 2 * n], source, target) for n in range(1, LONGEST_TAIL + 1)]),
        )


def patterns(dtype: DType) -> NDArray[Any]:
    """All bit patterns of a 16-bit float; of a larger one all beginnings, with ties and their neighbours, and more."""
    every = np.arange(1 << 16, dtype=np.uint64)
    if dtype.itemsize == 2:
        return every.astype(np.uint16)
    generator = np.random.default_rng(dtype.itemsize)
    width = 8 * dtype.itemsize
    beginnings = every << np.uint64(width - 16)
    ends = [0, 1, (1 << (width - 16)) - 1]
    for count in _CUT_OFF[dtype]:
        ends += [(1 << (count - 1)) + step for step in (-1, 0, 1)]
    parts = [beginnings | np.uint64(end & ((1 << (width - 16)) - 1)) for end in ends]
    for count in _CUT_OFF[dtype]:  # ties after mantissas of any kind
        above = generator.integers(0, 1 << (width - count), _MANY, np.uint64) << np.uint64(count)
        parts += [above | np.uint64((1 << (count - 1)) + step) for step in (-1, 0, 1)]
    parts.append(generator.integers(0, (1 << width) - 1, _MANY, np.uint64, endpoint=True))
    return np.concatenate(parts).astype(f"u{dtype.itemsize}")


def digest_of_cast(bits: NDArray[Any], source: DType, target: DType, order: Any = "C") -> str:
    """The result's bits, and how many values overflowed."""
    out = np.zeros(bits.shape, f"u{target.itemsize}", order=order)
    overflows = kernels.cast(bits, out, source, target)
    return digest([overflows, np.ascontiguousarray(out)])


def scaled_cases() -> Iterator[tuple[str, str]]:
    """FP8 weights of every pattern, with scales of every kind, in whole blocks and across their edges."""
    generator = np.random.default_rng(8)
    kinds = {"scales of weights": (0x38000000, 0x40000000), "any scales": (0, 0xFFFFFFFF)}
    for (kind, (least, most)), target in product(kinds.items(), FLOATS):
        for name, shape, at, block in (
            ("blocks", (300, 520), (0, 0), (128, 128)),
            ("inside", (130, 777), (5, 100), (128, 128)),
            ("rows", (256, 256), (0, 0), (1, 256)),
            ("small blocks", (101, 103), (1, 2), (3, 5)),
        ):
            weight = generator.integers(0, 256, shape, np.uint8)
            touched = tuple(-(-(a % b + n) // b) for a, n, b in zip(at, shape, block, strict=True))
            scale = generator.integers(least, most, touched, np.uint32, endpoint=True).view(np.float32)
            for order in ("C", "F"):
                out = np.zeros(shape, f"u{target.itemsize}", order=order)
                overflows = dequantise_fp8(weight, scale, out, target, *at, block)
                yield (
                    f"FP8 with scales: to {target}, {kind}, {name}, {order}",
                    digest([overflows, np.ascontiguousarray(out)]),
                )


def packed_cases() -> Iterator[tuple[str, str]]:
    """Packed codes of every kind and pattern, along both axes, with scales of every kind, in both orders."""
    generator = np.random.default_rng(4)
    kinds = {"scales of weights": (0x38000000, 0x40000000), "any scales": (0, 0xFFFFFFFF)}
    codes = [Code("e2m1", 4), Code("signed", 4), Code("unsigned", 4, 8), Code("unsigned", 4), Code("unsigned", 8, 128)]
    codes += [Code("unsigned", 3, 4), Code("signed", 2)]
    words = [(8, False), (32, False), (32, True)]
    for (kind, limits), code, (word, interleaved), axis in product(kinds.items(), codes, words, (0, 1)):
        if (interleaved and code.bits != 4) or word % code.bits:
            continue
        packing = Packing(code.bits, word, axis, interleaved=interleaved)
        shape = tuple(64 * packing.word // 8 if side == axis else 96 for side in (0, 1))
        packed = tuple(packing.words(size) if side == axis else size for side, size in enumerate(shape))
        grid = tuple(size // 32 if side == axis else size for side, size in enumerate(shape))
        data = generator.integers(0, 1 << word, packed, f"u{word // 8}")
        scale = generator.integers(*limits, grid, np.uint32, endpoint=True).view(np.float32)
        for order in ("C", "F"):
            out = np.zeros(shape, np.uint16, order=order)
            dequantise_packed(data, code, packing, scale, out)
            yield f"{code}, {packing}, {kind}, {order}", digest([np.ascontiguousarray(out)])


def digest(parts: list[Any]) -> str:
    """A digest of arrays, numbers and digests."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part.data if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


def machine() -> str:
    """The architecture, and which of NumKong's loops run."""
    has = [name for name, there in numkong.get_capabilities().items() if there]
    return f"{platform.machine()} ({' '.join(has)})"


if __name__ == "__main__":
    cases = dict([*cast_cases(), *scaled_cases(), *packed_cases()])
    json.dump({"machine": machine(), "digests": cases}, sys.stdout)
