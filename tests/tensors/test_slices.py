"""streamconv.tensors.slices: where the bytes of a tensor in slices lie, against NumPy."""

import math
from array import array
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.errors import InternalError
from streamconv.tensors import dtypes
from streamconv.tensors.extents import Extent, SourceFile
from streamconv.tensors.refs import TensorRef
from streamconv.tensors.slices import Slices
from support.helpers import ref

FILES = tuple(SourceFile(Path(f"rank_{rank}.ckpt"), 1 << 40) for rank in range(4))


@st.composite
def cut(draw, most=4):
    """A tensor of I32 in slices, each in one to three copies of one to three extents; its bytes, and those of files."""
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=most)))
    divisions = tuple(draw(st.integers(1, 3)) for _ in shape)
    whole = np.arange(math.prod(shape) * math.prod(divisions), dtype=np.int32) + 1000
    whole = whole.reshape([size * count for size, count in zip(shape, divisions, strict=True)])
    files, table, starts = [bytearray(b"\xff" * 5) for _ in FILES], array("q"), array("q", [0])
    for number in range(math.prod(divisions)):
        at = np.unravel_index(number, divisions) if divisions else ()
        box = tuple(slice(int(i) * size, (int(i) + 1) * size) for i, size in zip(at, shape, strict=True))
        data = whole[box].tobytes()
        for copy in range(draw(st.integers(1, 3))):
            edges = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=2))})
            for low, high in pairwise(edges):
                content = files[(number + copy) % len(FILES)]
                table.extend((copy, (number + copy) % len(FILES), len(content), high - low))
                content += data[low:high] + b"\xff" * draw(st.integers(0, 2))
        starts.append(len(table) // 4)
    slices = Slices(divisions, shape, FILES, table, starts)
    return TensorRef("w", dtypes.from_safetensors("I32", "w"), whole.shape, (), None, slices), whole, files


def stored(files, extents):
    return b"".join(bytes(files[FILES.index(e.file)][e.offset : e.offset + e.length]) for e in extents)


@pytest.mark.slow
@settings(max_examples=300)
@given(cut(), st.data())
def test_any_range_of_bytes_is_found(drawn, data):
    tensor, whole, files = drawn
    expected = whole.tobytes()
    offset = data.draw(st.integers(0, len(expected) - 1))
    count = data.draw(st.integers(0, len(expected) - offset))
    found, at = b"", 0
    for span in tensor.spans(offset, count):
        assert span.low == at < span.high
        at = span.high
        found += stored(files, [Extent(span.file, span.offset, span.high - span.low)])
    assert found == expected[offset : offset + count]


@given(cut())
def test_runs_are_as_long_as_slices_allow(drawn):
    """Of a tensor that is cut on its first axis only, a run is a slice; on its last one, a row of a slice."""
    tensor, whole, _ = drawn
    slices = tensor.slices
    cuts = [axis for axis, count in enumerate(slices.divisions) if count > 1]
    length = math.prod(slices.shape[max(cuts) :]) * 4 if cuts else whole.nbytes
    runs = list(slices.runs(4, 0, whole.nbytes))
    assert {run.high - run.low for run in runs} == {length}


@given(cut())
def test_every_copy_of_every_slice_is_the_part_that_its_number_says(drawn):
    tensor, whole, files = drawn
    slices = tensor.slices
    assert len(slices) == math.prod(slices.divisions)
    for number in range(len(slices)):
        box = tuple(slice(low, low + n) for low, n in zip(slices.origin(number), slices.shape, strict=True))
        copies = list(slices.copies(number))
        assert [copy.rank for copy in copies] == list(range(len(copies)))
        assert all(stored(files, copy.extents) == whole[box].tobytes() for copy in copies)
        assert tensor.slice(number) == TensorRef("w", tensor.dtype, slices.shape, copies[0].extents)
    assert slices.most_copies() == max(len(list(slices.copies(number))) for number in range(len(slices)))
    assert stored(files, tensor.places()) == b"".join(
        stored(files, slices.extents(number)) for number in range(len(slices))
    )


def test_a_scalar_that_several_ranks_hold():
    """Its step and its learning rate are such tensors of a training."""
    slices = Slices((), (), FILES, array("q", [0, 0, 8, 4, 1, 1, 16, 4]), array("q", [0, 2]))
    scalar = TensorRef("step_num", dtypes.from_safetensors("I32", "w"), (), (), None, slices)
    assert list(scalar.spans(1, 2)) == [(FILES[0], 9, 0, 2)]


def test_a_tensor_without_bytes():
    slices = Slices((2, 3), (0, 4), FILES, array("q", [0, 0, 8, 0] * 6), array("q", range(7)))
    tensor = TensorRef("w", dtypes.F32, (0, 12), (), None, slices)
    assert list(tensor.spans(0, 0)) == []
    assert tensor.nbytes == 0
    assert len(list(tensor.places())) == 6


def test_a_tensor_that_is_in_no_slices_has_none():
    tensor = ref("w", (2, 3))
    assert list(tensor.places()) == list(tensor.extents)
    with pytest.raises(InternalError, match="w is not in slices"):
        tensor.slice(0)
