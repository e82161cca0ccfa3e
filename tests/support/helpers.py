"""Shared by tests of views, plans and whole conversions: the dumb way to say what a lazy thing has to be."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamconv import testing as samples
from streamconv.errors import StreamconvError, UsageError
from streamconv.families import Family, Value
from streamconv.families import registry as families
from streamconv.output.blocks import Blocks
from streamconv.output.file_writer import WrittenPart
from streamconv.planning.mapping import Request, TensorMapping, map_tensors
from streamconv.rules.statements import Direction
from streamconv.tensors import dtypes, views
from streamconv.tensors.extents import Extent, SourceFile
from streamconv.tensors.grids import Box, Grid, box_shape, whole
from streamconv.tensors.refs import Catalog, OutputFile, TensorRef, TensorSpec
from streamconv.tensors.view_nodes import View, Zeros

FILE = SourceFile(Path("model.safetensors"), 1 << 60)

#: Odd on purpose: 6 heads in 3 groups, and a head_dim that is not hidden / heads.
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 20,
    "intermediate_size": 14,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "num_hidden_layers": 2,
    "vocab_size": 11,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MIXTRAL: dict[str, Any] = {**LLAMA, "model_type": "mixtral", "num_local_experts": 3}


def text_of(error: BaseException) -> str:
    """Message and hint of an error in one line; neither may hold a line break or anything else unprintable."""
    assert isinstance(error, StreamconvError), repr(error)
    parts = [part for part in (error.message, error.hint) if part]
    assert all(part.isprintable() for part in parts), parts
    return "; ".join(parts)


def ref(name: str, shape: tuple[int, ...], dtype: str = "I64", file: SourceFile = FILE, offset: int = 0) -> TensorRef:
    kind = dtypes.from_safetensors(dtype, name)
    return TensorRef(name, kind, shape, (Extent(file, offset, math.prod(shape) * kind.itemsize),))


def indices(grid: Grid) -> tuple[list[tuple[int, ...]], list[int]]:
    """All source coordinates of a grid, and the buffer elements they go to: the definition, spelled out."""
    coordinates, places = [grid.start], [grid.offset]
    for loop in grid.loops:
        steps = range(loop.count)
        places = [p + i * loop.stride for p in places for i in steps]
        coordinates = [
            (*c[: loop.axis], c[loop.axis] + i * loop.step, *c[loop.axis + 1 :]) for c in coordinates for i in steps
        ]
    return coordinates, places


def read(view: View, box: Box, data: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """A box of a view over arrays, by its definition; every element has to be written just once."""
    out = np.full(math.prod(box_shape(box)), -1, np.int64)
    for piece in view.box(box):
        coordinates, places = indices(piece.grid)
        for c, p in zip(coordinates, places, strict=True):
            assert out[p] == -1, "an element was written twice"
            out[p] = 0 if isinstance(piece.leaf, Zeros) else data[piece.leaf.refs()[0].name][c]
    assert (out != -1).all(), "an element was not written"
    return out.reshape(box_shape(box))


def evaluate(view: View, data: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """All of a view."""
    return read(view, whole(view.shape), data)


def arrays(*shapes: tuple[int, ...]) -> tuple[list[View], dict[str, NDArray[Any]]]:
    """A leaf for each shape, and the arrays behind them; no number is there twice."""
    data = {
        f"t{i}": np.arange(math.prod(shape), dtype=np.int64).reshape(shape) + 100_000 * (i + 1)
        for i, shape in enumerate(shapes)
    }
    return [views.leaf(ref(name, array.shape)) for name, array in data.items()], data


@st.composite
def trees(draw: st.DrawFn) -> tuple[View, NDArray[Any], dict[str, NDArray[Any]]]:
    """A view, what NumPy makes of the same operations, and the arrays on which both rest."""
    data: dict[str, NDArray[Any]] = {}

    def fresh(shape: tuple[int, ...]) -> tuple[View, NDArray[Any]]:
        name = f"t{len(data)}"
        array = np.arange(math.prod(shape), dtype=np.int64).reshape(shape) + 10_000 * (len(data) + 1)
        data[name] = array
        return views.leaf(ref(name, shape)), array

    view, array = fresh(tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 7))):
        axis = draw(st.integers(0, array.ndim - 1))
        n = array.shape[axis]
        word = draw(st.sampled_from(["permute", "cut", "concat", "stack", "split", "merge", "pad", "squeeze"]))
        if word == "permute":
            axes = draw(st.permutations(range(array.ndim)))
            view, array = views.permute(view, axes), array.transpose(axes)
        elif word == "cut":
            start = draw(st.integers(0, n - 1))
            stop, step = draw(st.integers(start + 1, n)), draw(st.integers(1, 3))
            view = views.cut(view, axis, start, stop, step)
            array = array[(slice(None),) * axis + (slice(start, stop, step),)]
        elif word == "concat" and array.size < 400:
            other, more = fresh((*array.shape[:axis], draw(st.integers(1, 4)), *array.shape[axis + 1 :]))
            view, array = views.concat([view, other], axis), np.concatenate([array, more], axis)
        elif word == "stack" and array.size < 400 and array.ndim < 5:
            others = [fresh(array.shape) for _ in range(draw(st.integers(0, 2)))]
            view = views.stack([view, *(o for o, _ in others)], axis)
            array = np.stack([array, *(a for _, a in others)], axis)
        elif word == "split" and array.ndim < 6:
            outer = draw(st.sampled_from([k for k in range(1, n + 1) if n % k == 0]))
            view = views.split(view, axis, outer)
            array = array.reshape(*array.shape[:axis], outer, n // outer, *array.shape[axis + 1 :])
        elif word == "merge" and axis + 1 < array.ndim:
            view = views.merge(view, axis)
            array = array.reshape(*array.shape[:axis], n * array.shape[axis + 1], *array.shape[axis + 2 :])
        elif word == "pad" and array.size < 400:
            size = n + draw(st.integers(0, 2))
            view = views.pad(view, axis, size)
            array = np.pad(array, [(0, size - n if a == axis else 0) for a in range(array.ndim)])
        elif word == "squeeze" and n == 1 and array.ndim > 1:
            view, array = views.squeeze(view, axis), array.squeeze(axis)
    return view, array, data


def catalog(specs: Iterable[TensorSpec], shards: int = 1) -> Catalog:
    """Tensors that lie nowhere, dealt over so many files."""
    listed = list(specs)
    files = tuple(SourceFile(Path(f"model-{i}.safetensors"), 1 << 60) for i in range(shards))
    tensors = {s.name: ref(s.name, s.shape, s.dtype.name, files[i % shards], 8 * i) for i, s in enumerate(listed)}
    ordered = sorted(tensors.values(), key=lambda r: r.extents[0].file.path)
    return Catalog(Path("model"), "safetensors", {r.name: r for r in ordered}, files)


def planned(
    tensors: Iterable[TensorSpec] | Catalog,
    config: Mapping[str, Any],
    family: Family | None = None,
    reverse: bool = False,
    dtype: dtypes.DType | None = None,
    **options: Value,
) -> TensorMapping:
    """A mapping of tensors that lie nowhere."""
    family = family or families.find(str(config["model_type"]))
    chosen = {option.name: option.default for option in family.options} | options
    source = tensors if isinstance(tensors, Catalog) else catalog(tensors)
    direction = Direction.REVERSE if reverse else Direction.FORWARD
    return map_tensors(Request(source, family, config, direction, dtype), chosen)


def hf(config: Mapping[str, Any], **arguments: Any) -> list[TensorSpec]:
    """Every HF tensor of a model of this config."""
    return samples.hf_specs(families.find(str(config["model_type"])), config, **arguments)


def ms(config: Mapping[str, Any], **options: Value) -> list[TensorSpec]:
    """Every MindSpore tensor of a model of this config."""
    more: dict[str, Any] = dict(options)
    return [output.spec for output in planned(hf(config), config, **more).outputs]


def with_checksums(file: OutputFile, content: bytes) -> bytes:
    """A file's bytes with its checksums in place of the zeros."""
    out = bytearray(content)
    for slot in file.slots:
        for at in slot.at:
            assert not any(out[at : at + slot.length])
            out[at : at + slot.length] = zlib.crc32(content[slot.begin : slot.end]).to_bytes(slot.length, slot.order)
    return bytes(out)


def crc_tail(value: int) -> bytes:
    """The 17 bytes that MindSpore appends for a CRC-32."""
    return b"crc_num" + value.to_bytes(10, "big")


class Fresh:
    """No earlier run wrote anything of these files, and nobody wants to know of blocks."""

    def __init__(self, files: Iterable[OutputFile]) -> None:
        self._files = {file.name: Blocks(file.size) for file in files}

    def blocks(self, file: str) -> Blocks:
        return self._files[file]

    def parts(self, tensor: str) -> Iterator[WrittenPart]:
        return iter(())

    def mine(self, file: str) -> range | None:
        return None

    def note_block(self, file: str, number: int, digest: bytes, crc: int) -> None:
        pass


def choices(family: Family) -> list[dict[str, Any]]:
    """All choices of options that give a table of their own; adapters are no models."""
    names = [option.name for option in family.options]
    values = [[v for v in option.values if (option.name, v) != ("is_lora", True)] for option in family.options]
    found: list[dict[str, Any]] = []
    tables: list[Sequence[object]] = []
    for some in product(*values):
        options = dict(zip(names, some, strict=True))
        try:
            table = family.rules(family.example, options)
        except UsageError:
            continue
        if table not in tables:
            tables.append(table)
            found.append(options)
    return found
