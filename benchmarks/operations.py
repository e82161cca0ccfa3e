"""Operations: the speed of one thread on elements in memory, against a plain copy of the same bytes.

    view of random tensors in a cached file  →  boxes as the engine cuts them  →  `Reader.fill`  →  one buffer

That is the code path of a conversion without its writes. Windows are read from the page cache. Speed is bytes in and
out per second. The copy is NumPy's, from buffer to buffer, of half as many bytes as the operation moves in and out,
because it reads and writes each. Digests only read. A stack of experts is copied here to show the cost of reading and
copying; the engine writes one that needs no cast straight from its window.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamconv import testing as samples
from streamconv.engine.boxes import boxes, cells
from streamconv.engine.reader import Reader
from streamconv.engine.windows import bits
from streamconv.families.parts.decoder import gate_and_up
from streamconv.families.parts.rotary import even_then_odd
from streamconv.output.blocks import Blocks
from streamconv.output.digests import BlockDigests
from streamconv.rules import transforms
from streamconv.rules.interleaving import Interleave
from streamconv.rules.sizes import Sizes
from streamconv.rules.transforms import Transform
from streamconv.source import Source
from streamconv.storage.access import Access
from streamconv.storage.regions import Region
from streamconv.tensors import views
from streamconv.tensors.dtypes import BF16, F8_E4M3, F16, F32, DType
from streamconv.tensors.grids import box_shape
from streamconv.tensors.refs import ChecksumSlot, OutputFile, TensorSpec
from streamconv.tensors.view_nodes import View

from . import quantised
from .conversions import removed
from .measuring import BenchmarkError, ratio, spread
from .results import Data, Say, Setting, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Operations in memory, one thread"

MIB, GB = 1 << 20, 10**9

#: Bytes of a window, and of a box.
REGION = 64 * MIB

_WRITE_BYTES = 8 * MIB  # what the engine hands to the writer at once
_HEADS, _KV, _HEAD_DIM = 32, 8, 128
_SIZES = Sizes({"heads": "heads", "kv": "kv", "rope": "rope"}, {"heads": _HEADS, "kv": _KV, "rope": _HEAD_DIM})

#: Combines the views of a source's tensors into one view.
Make = Callable[[Sequence[View]], View]

#: Runs an operation once.
Work = Callable[[], None]


@dataclass(frozen=True)
class Operation:
    """An operation on tensors.

    Attributes:
        name: its name in the table.
        shapes: shapes of the source's tensors, at full size.
        stored: dtype of the source, or how it is quantised: a key of `quantised.KINDS`.
        target: dtype of the result.
        make: returns the result as a view of the source's tensors; by default, the first of them.
    """

    name: str
    shapes: Sequence[tuple[int, int]]
    stored: DType | str
    target: DType
    make: Make = lambda parts: parts[0]


@dataclass(frozen=True)
class _Job:
    """An operation ready to run, and the bytes it reads and writes."""

    work: Work
    nbytes: int


def measure(setting: Setting, say: Say) -> Data:
    """Measure the seconds of every operation and of its copy, round by round, after one untimed run of each."""
    found: Data = {}
    for number, operation in enumerate(operations(16 if setting.quick else 1)):
        say(operation.name)
        folder = setting.folder / f"source-{number}"
        with removed(folder), closing(Reader(REGION, Access.READ)) as reader:
            found[operation.name] = _timed(_job(reader, operation, folder), setting.rounds)
    for name, crc in (("xxh3 digest", False), ("xxh3 digest and CRC-32", True)):
        say(name)
        found[name] = _timed(_digest(4 * MIB if setting.quick else 4 * REGION, crc), setting.rounds)
    return {"operations": found}


def tables(data: Data) -> Sequence[Table]:
    """Return the speed of every operation, and its share of the copy's."""
    rows = [
        (name, *(f"{one:.2f}" for one in (spread(_speeds(found)), _share(found))))
        for name, found in data["operations"].items()
    ]
    return [Table(("operation", "GB/s in and out", "share of a plain copy"), rows)]


def figures(data: Data) -> Mapping[str, Figure]:
    """Plot speeds as bars, with that of the copy."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    measured = data["operations"]
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    speeds = [spread(_speeds(found)) for found in measured.values()]
    copies = [spread(_speeds(found, "copy")).median for found in measured.values()]
    ranges = [[one.median - one.least for one in speeds], [one.most - one.median for one in speeds]]
    axes.barh(list(measured), [one.median for one in speeds], xerr=ranges, capsize=3)
    axes.plot(copies, range(len(copies)), "k|", markersize=14, label="plain copy")
    axes.invert_yaxis()
    axes.set(xlabel="GB/s, bytes in and out, one thread")
    axes.set_title(TITLE)
    axes.legend()
    return {"operations": figure}


# -- the operations ----------------------------------------------------------------------------------------------------


def operations(smaller: int = 1) -> Iterator[Operation]:
    """Yield all operations, on tensors `smaller` times narrower than at full size."""
    wide = 8192 // smaller
    large, expert = (wide, 8192), (wide // 8, 8192)
    casts = ((BF16, F16), (BF16, F32), (F32, BF16), (F32, F16), (F16, F32), (F16, BF16))
    yield from (Operation(f"cast {_word(one)} -> {_word(other)}", [large], one, other) for one, other in casts)
    yield Operation("FP8 blocks -> bf16", [large], F8_E4M3, BF16)
    yield from (Operation(f"{kind} -> bf16", [large], kind, BF16) for kind in quantised.KINDS)
    yield Operation("FP8 blocks -> fp32", [large], F8_E4M3, F32)
    swapped = _by(transforms.Transpose())
    yield Operation("transpose, 2 bytes", [large], BF16, BF16, swapped)
    yield Operation("transpose, 4 bytes", [large], F32, F32, swapped)
    yield Operation("FP8 blocks -> bf16, transposed", [large], F8_E4M3, BF16, swapped)
    yield Operation("stack of experts", [expert] * 8, BF16, BF16, views.stack)
    yield Operation("stack of experts, transposed", [expert] * 8, BF16, BF16, _transposed_stack)
    yield Operation("gate and up, row by row", [(wide // 2, 8192)] * 2, BF16, BF16, _by(gate_and_up(by_turns=True)))
    rotary = _HEADS * _HEAD_DIM, wide
    yield Operation("rotary rows, even then odd", [rotary], BF16, BF16, _by(even_then_odd("heads", "rope//2")))
    rows = [(heads * _HEAD_DIM, wide) for heads in (_HEADS, _KV, _KV)]
    yield Operation("q, k, v per KV group", rows, BF16, BF16, _by(Interleave(("heads", "kv", "kv"), "kv")))


def _word(dtype: DType) -> str:
    return {BF16: "bf16", F16: "fp16", F32: "fp32"}[dtype]


def _by(transform: Transform) -> Make:
    return lambda parts: transform.apply(parts, _SIZES)[0]


def _transposed_stack(parts: Sequence[View]) -> View:
    return views.permute(views.stack(parts), (0, 2, 1))


# -- running them ------------------------------------------------------------------------------------------------------


def _timed(job: _Job, rounds: int) -> Data:
    """Measure the seconds of a job and of a plain copy of as many bytes, in random order in each round."""
    contestants = {"operation": job.work, "copy": _copy(job.nbytes)}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for work in contestants.values():
        work()
    for _ in range(rounds):
        for name in random.sample(list(contestants), len(contestants)):
            started = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - started)
    return {"bytes": job.nbytes, **seconds}


def _job(reader: Reader, operation: Operation, folder: Path) -> _Job:
    """Prepare an operation on random tensors that were just written, and so are in the page cache."""
    shapes = {f"w{number}": shape for number, shape in enumerate(operation.shapes)}
    if isinstance(operation.stored, str):
        quantised.write(folder, operation.stored, shapes)
    else:
        weights = [TensorSpec(f"{name}.weight", operation.stored, shape) for name, shape in shapes.items()]
        scaled = [_scales(spec) for spec in weights if operation.stored == F8_E4M3]
        samples.write_hf(folder, {}, [*weights, *scaled], 100 * GB)
    catalog = Source.open(folder, None, None).understood.catalog
    view = operation.make([views.leaf(catalog[f"{name}.weight"]) for name in shapes])
    work = partial(_convert, reader, view, Region(REGION), operation.target)
    read = sum(ref.nbytes for leaf in view.leaves() for ref in leaf.refs())
    return _Job(work, read + math.prod(view.shape) * operation.target.itemsize)


def _scales(weight: TensorSpec) -> TensorSpec:
    rows, columns = (-(-size // 128) for size in weight.shape)
    return TensorSpec(weight.name + "_scale_inv", F32, (rows, columns))


def _convert(reader: Reader, view: View, region: Region, target: DType) -> None:
    """Build all boxes of a view, as a worker of the engine does."""
    widest = max(target.itemsize, *(leaf.dtype.itemsize for leaf in view.leaves()))
    for cell in cells(view):
        for box in boxes(view, cell, widest, REGION):
            reader.fill(view, box, region.array(math.prod(box_shape(box)), bits(target)), target)


def _copy(nbytes: int) -> Work:
    """Return a plain copy that reads and writes `nbytes` in all, a box at a time."""
    source, target = np.ones(REGION, np.uint8), np.ones(REGION, np.uint8)

    def work() -> None:
        for begin in range(0, nbytes // 2, REGION):
            count = min(REGION, nbytes // 2 - begin)
            np.copyto(target[:count], source[:count])

    return work


def _digest(size: int, crc: bool) -> _Job:
    """Prepare the digests of a file of `size` random bytes, written in order, a part at a time."""
    data = memoryview(np.random.default_rng(0).bytes(size))

    def work() -> None:
        slots = (ChecksumSlot(0, size, (size,), 4, "little"),) if crc else ()
        file = OutputFile("file", size + 4 * len(slots), (), {}, slots)
        digests = BlockDigests(file, Blocks(file.size), _unread, lambda offset, data: None)
        for begin in range(0, size, _WRITE_BYTES):
            part = data[begin : begin + _WRITE_BYTES]
            digests.digest(begin, part)
            digests.wrote(begin, len(part))

    return _Job(work, size)


def _unread(offset: int, length: int) -> bytes:
    raise BenchmarkError(f"bytes {offset} to {offset + length} were written in order, but were read back")


def _speeds(found: Data, what: str = "operation") -> list[float]:
    """Return GB/s, round by round."""
    return [found["bytes"] / GB / seconds for seconds in found[what]]


def _share(found: Data) -> float:
    """Return the median ratio of the operation's speed to the copy's."""
    return ratio(found["copy"], found["operation"]).median
