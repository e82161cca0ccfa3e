"""`streamconv.open`: slicing is NumPy's, for every dtype and format."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamconv
from streamconv.errors import SourceError, UnsupportedError, UsageError
from streamconv.formats import ckpt, safetensors
from streamconv.formats.catalog import open_catalog
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import FIXTURES, golden, running

READABLE = [d for d in dtypes.DTYPES if d.numpy]
SHAPES = ((), (1,), (7,), (5, 3), (2, 3, 4), (3, 1, 2, 2), (2, 0, 3), (0, 4))


def numpys(dtype: dtypes.DType) -> np.dtype:
    """NumPy's type; not by name alone, for MindSpore registers a bfloat16 of its own."""
    return np.dtype(getattr(ml_dtypes, dtype.numpy, dtype.numpy))


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """The same shape, dtype and bits; NaN equals NaN."""
    return (found.shape, found.dtype, found.tobytes()) == (expected.shape, expected.dtype, expected.tobytes())


@pytest.fixture(scope="module", params=["safetensors", "ckpt", "sliced ckpt"])
def made(request, tmp_path_factory) -> tuple[streamconv.Checkpoint, streamconv.Checkpoint, dict[str, np.ndarray]]:
    """Tensors of every dtype and shape that a format holds: read directly, read, and as arrays."""
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
    return streamconv.open(path, io="direct"), streamconv.open(path, io="read"), arrays


def test_every_dtype_whole(made) -> None:
    direct, read, arrays = made
    assert list(direct) == list(read)
    assert len(direct) == len(arrays)
    for name, array in arrays.items():
        for checkpoint in (direct, read):
            tensor = checkpoint[name]
            assert same(tensor.numpy(), array)
            assert same(tensor[()], array)
            assert (tensor.name, tensor.shape, tensor.nbytes) == (name, array.shape, array.nbytes)
            assert (tensor.dtype_name, tensor.dtype) == (name.split(".")[0], array.dtype)
            assert (tensor.ndim, tensor.size) == (array.ndim, array.size)


def _fits(index: tuple, array: np.ndarray) -> bool:
    """Whether the indices after an ellipsis, drawn for the first axes, fit the last ones too."""
    try:
        array[index]
    except IndexError:
        return False
    return True


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_slices_are_numpys(made, data: st.DataObject) -> None:
    direct, read, arrays = made
    name = data.draw(st.sampled_from([n for n in arrays if arrays[n].ndim]))
    array = arrays[name]
    near = st.one_of(st.none(), st.integers(-6, 6))
    steps = st.one_of(st.none(), st.integers(-4, 4).filter(bool))
    whole = [st.integers(-n, n - 1) for n in array.shape if n] if all(array.shape) else []
    index = tuple(
        data.draw(st.one_of(st.builds(slice, near, near, steps), *whole[axis : axis + 1]))
        for axis in range(data.draw(st.integers(0, array.ndim)))
    )
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(index)))
        index = (*index[:place], ..., *index[place:])
        index = index if _fits(index, array) else index[:place]
    expected = np.ascontiguousarray(array[index]) if array[index].ndim else np.asarray(array[index])
    for checkpoint in (direct, read):
        assert same(checkpoint[name][index], expected)
    if len(index) == 1:
        assert same(direct[name][index[0]], expected)


def written(folder: Path) -> Path:
    spec = TensorSpec("t", dtypes.F32, (4, 6))
    golden.write(folder / "a.ckpt", ckpt.lay_out("a.ckpt", [spec]), {"t": golden.golden_bytes(spec)})
    return folder / "a.ckpt"


@pytest.fixture
def tensor(tmp_path: Path) -> streamconv.LazyTensor:
    return streamconv.open(written(tmp_path))["t"]


def test_numpy_takes_it_as_an_array(tensor: streamconv.LazyTensor) -> None:
    array = tensor.numpy()
    assert same(np.asarray(tensor), array)
    assert same(np.asarray(tensor, np.float64), array.astype(np.float64))
    assert np.array_equal(np.add(tensor, 1), array + 1)
    assert [same(row, expected) for row, expected in zip(tensor, array, strict=True)] == [True] * len(tensor)
    assert np.asarray(tensor[1:3]).shape == (2, 6)
    with pytest.raises(ValueError, match="without being copied"):
        tensor.__array__(copy=False)


def test_what_they_look_like(tmp_path: Path) -> None:
    checkpoint = streamconv.open(written(tmp_path))
    assert repr(checkpoint["t"]) == "<LazyTensor t F32 [4, 6]>"
    assert repr(checkpoint) == f"<Checkpoint {tmp_path / 'a.ckpt'} ckpt: 1 tensor in 1 file, 96 B>"
    assert (checkpoint.path, checkpoint.format, checkpoint.nbytes) == (tmp_path / "a.ckpt", "ckpt", 96)
    assert checkpoint.files == (tmp_path / "a.ckpt",)


def test_metadata_is_that_of_the_file(tmp_path: Path) -> None:
    assert streamconv.open(written(tmp_path)).metadata == {}
    source = running.tiny(tmp_path / "source")
    assert streamconv.open(source).metadata == {"format": "pt"}
    streamconv.convert(source, tmp_path / "ms")
    assert streamconv.open(tmp_path / "ms").metadata == {"format": "ms"}


def open_files(path: Path) -> int:
    return sum(os.path.realpath(link) == str(path) for link in Path("/proc/self/fd").iterdir())


def test_files_stay_open_until_the_checkpoint_is_closed(tmp_path: Path) -> None:
    path = written(tmp_path)
    with streamconv.open(path) as checkpoint:
        tensor = checkpoint["t"]
        for _ in range(3):
            tensor[0]
            assert open_files(path) == 1
    assert open_files(path) == 0
    with pytest.raises(UsageError, match="the checkpoint is closed"):
        tensor[0]


@pytest.mark.slow
def test_a_tensor_outlives_its_checkpoint_and_the_files_are_closed_after_both(tmp_path: Path) -> None:
    path = written(tmp_path)
    tensor = streamconv.open(path)["t"]
    gc.collect()
    assert tensor[0].size == 6
    del tensor
    gc.collect()
    assert open_files(path) == 0


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    tensor = streamconv.open(written(tmp_path))["t"]
    array = tensor.numpy()
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda number: tensor[number % 4], range(400)))
    assert all(same(row, array[number % 4]) for number, row in enumerate(rows))


MEASURED = """
import sys
import numpy as np
import streamconv
from streamconv.storage.memory import peak_bytes
tensor = streamconv.open(sys.argv[1])["t"]
tensor[0, :1]
before = peak_bytes()
array = tensor.numpy()
print(array.nbytes, peak_bytes() - before, int(array.view(np.uint8).sum()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("io", ["read", "direct"])
def test_a_large_tensor_takes_its_own_size_and_little_more(io: str, tmp_path: Path) -> None:
    """From outside: the peak of a process that reads one tensor of random bytes."""
    spec = TensorSpec("t", dtypes.BF16, (8192, 4096))
    data = np.random.default_rng(5).bytes(spec.nbytes)
    golden.write(tmp_path / "a.safetensors", safetensors.lay_out("a.safetensors", [spec], {}), {"t": data})
    code = MEASURED.replace("sys.argv[1])", f"sys.argv[1], io={io!r})")
    out = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.safetensors"], capture_output=True, check=True
    ).stdout
    nbytes, grown, checksum = map(int, out.split())
    assert (nbytes, checksum) == (spec.nbytes, sum(data))
    assert grown <= 1.1 * nbytes + (32 << 20)


def test_numpys_integers_are_indices(tensor: streamconv.LazyTensor) -> None:
    array = tensor.numpy()
    for index in (np.int64(2), np.uint8(3), np.array(1), (np.int32(-1), 2), (slice(np.int64(1), np.int64(3)), 0)):
        assert same(tensor[index], np.asarray(array[index]).copy())


@pytest.mark.parametrize(
    "index",
    [
        *(4, -5, (0, 6), (0, 0, 0), (slice(None),) * 3, (..., ...), (0, ..., 0, 0), slice(None, None, 0)),
        *(True, None, "a", 1.0, [0, 1], np.array([0, 1]) > 0, (0, None)),
    ],
    ids=repr,
)
def test_what_is_not_read_lazily(index, tensor: streamconv.LazyTensor) -> None:
    with pytest.raises((IndexError, TypeError, ValueError)) as caught:
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
    checkpoint, catalog = streamconv.open(source), open_catalog(source)
    first, last = (next(n for n, r in catalog.items() if f"-0000{i}-" in str(r.extents[0].file)) for i in "13")
    expected = checkpoint[first].numpy()
    catalog[last].extents[0].file.path.unlink()
    assert same(checkpoint[first].numpy(), expected)
    with pytest.raises(SourceError, match=r"model-00003-of-00003\.safetensors"):
        checkpoint[last].numpy()


@pytest.mark.parametrize("io", ["read", "direct"])
def test_a_shortened_file_is_noticed(io: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    tensor = streamconv.open(path, io=io)["t"]
    assert tensor[0, 0] == tensor.numpy()[0, 0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"a\.ckpt changed during the run"):
        tensor[0, 0]


def test_a_dtype_that_numpy_does_not_know() -> None:
    checkpoint = streamconv.open(FIXTURES / "int4.ckpt")
    with pytest.raises(UnsupportedError, match="has dtype Int4, which NumPy does not have"):
        next(iter(checkpoint.values())).numpy()


@pytest.mark.parametrize("name", ["many_dtypes.ckpt", "many_dtypes.safetensors", "sliced_async_uneven_1KiB.ckpt"])
def test_mindspores_own_files(name: str) -> None:
    checkpoint = streamconv.open(FIXTURES / name)
    for ref in open_catalog(FIXTURES / name).values():
        assert checkpoint[ref.name].numpy().tobytes() == golden.stored_bytes(ref)


def test_it_is_a_mapping(tmp_path: Path) -> None:
    checkpoint = streamconv.open(str(running.tiny(tmp_path / "source")))
    assert "lm_head.weight" in checkpoint
    assert "nothing" not in checkpoint
    with pytest.raises(KeyError):
        checkpoint["nothing"]
    assert len(checkpoint) == len(list(checkpoint)) == 21
