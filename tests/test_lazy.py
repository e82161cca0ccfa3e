"""`streamconv.open`: slicing is NumPy's, for every dtype and format."""

from __future__ import annotations

import math
from pathlib import Path

import golden
import ml_dtypes
import numpy as np
import pytest
import running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import FIXTURES

import streamconv
from streamconv.errors import SourceError, UnsupportedError
from streamconv.formats import ckpt, safetensors
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec

READABLE = [d for d in dtypes._TABLE if d.numpy]
SHAPES = ((), (1,), (7,), (5, 3), (2, 3, 4), (3, 1, 2, 2), (2, 0, 3), (0, 4))


def numpys(dtype: dtypes.DType) -> np.dtype:
    """NumPy's type; not by name alone, for MindSpore registers a bfloat16 of its own."""
    return np.dtype(getattr(ml_dtypes, dtype.numpy, dtype.numpy))


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """The same shape, dtype and bits; NaN equals NaN."""
    return (found.shape, found.dtype, found.tobytes()) == (expected.shape, expected.dtype, expected.tobytes())


@pytest.fixture(scope="module", params=["safetensors", "ckpt", "sliced ckpt"])
def made(request, tmp_path_factory) -> tuple[streamconv.Checkpoint, streamconv.Checkpoint, dict[str, np.ndarray]]:
    """Tensors of every dtype and shape that a format holds: mapped, read, and as arrays."""
    kind = request.param
    folder = tmp_path_factory.mktemp("lazy")
    every = [
        TensorSpec(f"{d.name}.{'x'.join(map(str, shape))}", d, shape)
        for d in READABLE
        if (d.safetensors if kind == "safetensors" else d.mindspore)
        for shape in SHAPES
    ]
    data = {s.name: np.random.default_rng(3).bytes(s.nbytes) for s in every}
    data = {s.name: bytes(b & 1 for b in data[s.name]) if s.dtype.name == "BOOL" else data[s.name] for s in every}
    if kind == "safetensors":
        path, file = folder / "a.safetensors", safetensors.lay_out("a.safetensors", every, {})
    else:
        # 13 bytes: slices end in the middle of elements.
        size = {"slice_bytes": 13} if kind == "sliced ckpt" else {}
        path, file = folder / "a.ckpt", ckpt.lay_out("a.ckpt", every, **size)
    golden.write(path, file, data)
    arrays = {s.name: np.frombuffer(data[s.name], numpys(s.dtype), math.prod(s.shape)).reshape(s.shape) for s in every}
    return streamconv.open(path, io="map"), streamconv.open(path, io="read"), arrays


def test_every_dtype_whole(made) -> None:
    mapped, read, arrays = made
    assert list(mapped) == list(read)
    assert len(mapped) == len(arrays)
    for name, array in arrays.items():
        for checkpoint in (mapped, read):
            tensor = checkpoint[name]
            assert same(tensor.numpy(), array)
            assert same(tensor[()], array)
            assert (tensor.name, tensor.shape, tensor.nbytes) == (name, array.shape, array.nbytes)
            assert tensor.dtype == name.split(".")[0]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_slices_are_numpys(made, data: st.DataObject) -> None:
    mapped, read, arrays = made
    name = data.draw(st.sampled_from([n for n in arrays if arrays[n].ndim]))
    array = arrays[name]
    near = st.one_of(st.none(), st.integers(-6, 6))
    whole = [st.integers(-n, n - 1) for n in array.shape if n] if all(array.shape) else []
    index = tuple(
        data.draw(st.one_of(st.builds(slice, near, near), *whole[axis : axis + 1]))
        for axis in range(data.draw(st.integers(0, array.ndim)))
    )
    expected = np.ascontiguousarray(array[index]) if array[index].ndim else np.asarray(array[index])
    for checkpoint in (mapped, read):
        assert same(checkpoint[name][index], expected)
    if len(index) == 1:
        assert same(mapped[name][index[0]], expected)


@pytest.fixture
def tensor(tmp_path: Path) -> streamconv.LazyTensor:
    spec = TensorSpec("t", dtypes.F32, (4, 6))
    golden.write(tmp_path / "a.ckpt", ckpt.lay_out("a.ckpt", [spec]), {"t": golden.golden_bytes(spec)})
    return streamconv.open(tmp_path / "a.ckpt")["t"]


def test_numpys_integers_are_indices(tensor: streamconv.LazyTensor) -> None:
    array = tensor.numpy()
    for index in (np.int64(2), np.uint8(3), np.array(1), (np.int32(-1), 2), (slice(np.int64(1), np.int64(3)), 0)):
        assert same(tensor[index], np.asarray(array[index]).copy())


@pytest.mark.parametrize(
    "index",
    [
        *(slice(None, None, 2), slice(None, None, -1), (0, slice(0, 6, 3)), slice(3, 0, -1)),
        *(4, -5, (0, 6), (0, 0, 0), (slice(None),) * 3),
        *(True, None, ..., "a", 1.0, [0, 1], np.array([0, 1]) > 0, (0, None)),
    ],
    ids=repr,
)
def test_what_is_not_read_lazily(index, tensor: streamconv.LazyTensor) -> None:
    with pytest.raises((IndexError, TypeError)) as caught:
        tensor[index]
    if isinstance(caught.value, IndexError):
        assert len(str(caught.value)) > 10


def test_a_part_is_an_array_of_its_own(tensor: streamconv.LazyTensor) -> None:
    part = tensor[1:3]
    part[...] = 0
    assert tensor[1:3].any()


def test_only_what_is_asked_is_read(tmp_path: Path) -> None:
    """Everything else may as well be absent: here it lies in a file that is no longer there."""
    source = running.llama(tmp_path / "source")
    checkpoint = streamconv.open(source)
    first, last = (
        next(n for n, r in checkpoint.catalog.items() if f"-0000{i}-" in str(r.extents[0].file)) for i in "13"
    )
    expected = checkpoint[first].numpy()
    checkpoint.catalog[last].extents[0].file.path.unlink()
    assert same(checkpoint[first].numpy(), expected)
    with pytest.raises(SourceError, match=r"model-00003-of-00003\.safetensors"):
        checkpoint[last].numpy()


def test_a_shortened_file_is_noticed(tensor: streamconv.LazyTensor) -> None:
    path = tensor.ref.extents[0].file.path
    path.write_bytes(path.read_bytes()[:-1])
    for io in ("map", "read"):
        with pytest.raises(SourceError, match=r"a\.ckpt changed during the run"):
            streamconv.LazyTensor(tensor.ref, io)[0, 0]


def test_a_dtype_that_numpy_does_not_know() -> None:
    checkpoint = streamconv.open(FIXTURES / "int4.ckpt")
    with pytest.raises(UnsupportedError, match="has dtype Int4, which NumPy does not know"):
        next(iter(checkpoint.values())).numpy()


@pytest.mark.parametrize("name", ["many_dtypes.ckpt", "many_dtypes.safetensors", "sliced_async_uneven_1KiB.ckpt"])
def test_mindspores_own_files(name: str) -> None:
    checkpoint = streamconv.open(FIXTURES / name)
    for tensor in checkpoint.values():
        assert tensor.numpy().tobytes() == golden.stored_bytes(tensor.ref)


def test_it_is_a_mapping(tmp_path: Path) -> None:
    checkpoint = streamconv.open(str(running.tiny(tmp_path / "source")))
    assert "lm_head.weight" in checkpoint
    assert "nothing" not in checkpoint
    with pytest.raises(KeyError):
        checkpoint["nothing"]
    assert len(checkpoint) == len(list(checkpoint)) == 21
