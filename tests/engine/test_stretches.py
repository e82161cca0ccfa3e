"""Stretches: every byte of the result in one of them or left, each cut where blocks end, neighbors read as one."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamconv.engine.floats import numpy_dtype
from streamconv.engine.reader import Reader
from streamconv.engine.stretches import Run, Stretches
from streamconv.formats import ckpt, safetensors
from streamconv.formats.header_room import HeaderRoom
from streamconv.planning.outputs import Output
from streamconv.storage.access import Access
from streamconv.storage.regions import Region
from streamconv.tensors import views
from streamconv.tensors.dtypes import BF16, F16, F32, I32, DType
from streamconv.tensors.grids import box_shape, whole
from streamconv.tensors.refs import Home, OutputFile, TensorSpec, files_by_tensor, home_of
from streamconv.units import BLOCK
from support import golden

UNIT = 1 << 10

tensors = st.tuples(
    st.sampled_from([BF16, F16, F32, I32]),
    st.lists(st.integers(0, 12), max_size=3).map(tuple),
    st.sampled_from([None, F32, F16]),
)


def source(folder: Path, dtypes_and_shapes: list[tuple[DType, tuple[int, ...]]]) -> tuple[list, dict[str, bytes]]:
    """Tensors on disk, in this order where their dtypes are equally wide, and their bytes."""
    generator = np.random.default_rng(0)
    wanted = [TensorSpec(f"w{n}", dtype, shape) for n, (dtype, shape) in enumerate(dtypes_and_shapes)]
    # Small numbers: all of these dtypes have them.
    data = {s.name: _bytes(generator.integers(0, 200, math.prod(s.shape)), s.dtype) for s in wanted}
    path = folder / "model.safetensors"
    golden.write(path, safetensors.lay_out(path.name, wanted, {}), data)
    found = safetensors.read(path, HeaderRoom())[1]
    return [found[s.name] for s in wanted], data


def _bytes(values: np.ndarray, dtype: DType) -> bytes:
    return values.astype(numpy_dtype(dtype)).tobytes()


def laid_out(outputs: tuple[Output, ...], kind: str) -> tuple[OutputFile, ...]:
    wanted = [output.spec for output in outputs]
    return (safetensors.lay_out("a", wanted, {}) if kind == "safetensors" else ckpt.lay_out("a", wanted, False),)


def homes_in(files: tuple[OutputFile, ...]):
    by_tensor = files_by_tensor(files)

    def home(name: str) -> Home | None:
        return home_of(name, by_tensor[name])

    return home


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
@settings(max_examples=150, deadline=None)
@given(wanted=st.lists(tensors, min_size=1, max_size=12), numbers=st.randoms(use_true_random=False))
def test_every_byte_is_made_once(kind: str, wanted, numbers, tmp_path_factory: pytest.TempPathFactory) -> None:
    assume(kind == "safetensors" or all(math.prod(shape) for _, shape, _ in wanted))
    refs, data = source(tmp_path_factory.mktemp("s"), [(dtype, shape) for dtype, shape, _ in wanted])
    outputs = tuple(
        Output(f"t{n}", target, views.cast(views.leaf(ref), target), (ref.name,))
        for n, (ref, (dtype, _, asked)) in enumerate(zip(refs, wanted, strict=True))
        for target in [dtype if asked is None or dtype == I32 else asked]
    )
    files = laid_out(outputs, kind)
    chosen = sorted(numbers.sample(range(len(outputs)), numbers.randint(1, len(outputs))))
    table = Stretches(outputs, chosen, homes_in(files), UNIT)
    made, finished = (
        np.zeros(files[0].size, np.int64),
        {n: np.zeros(o.view.shape, np.int64) for n, o in enumerate(outputs)},
    )
    content = bytearray(files[0].size)
    reader, spare = Reader(UNIT, Access.READ), Region(2 * UNIT)
    for _, stretch in table:
        assert stretch.begin // UNIT == (stretch.end - 1) // UNIT or stretch.end % UNIT < 8
        made[stretch.begin : stretch.end] += 1
        found, overflowed = reader.stretch(stretch, spare)
        assert not overflowed
        content[stretch.begin : stretch.end] = found.tobytes()
        for one in stretch.finished():
            for number in range(one.first, one.stop):
                box = one.box or whole(outputs[number].view.shape)
                finished[number][tuple(slice(*side) for side in box)] += 1
        for one, begin, end in stretch.boxes():
            (_, shape, _), output = wanted[one.first], outputs[one.first]
            values = np.frombuffer(data[f"w{one.first}"], numpy_dtype(wanted[one.first][0])).reshape(shape)
            part = values[tuple(slice(*side) for side in one.box or ())].astype(numpy_dtype(output.dtype))
            assert content[begin:end] == part.tobytes()
            assert not reader.recount(output, one.box or (), np.frombuffer(content[begin:end], np.uint8))
    reader.close()
    assert not table.left
    for number, output in enumerate(outputs):
        at, length = files[0].extents[output.name][0] if files[0].extents[output.name] else (0, 0)
        assert (made[at : at + length] == (number in chosen)).all()
        assert (finished[number] == (number in chosen)).all()
        if number in chosen:
            values = np.frombuffer(data[f"w{number}"], numpy_dtype(wanted[number][0]))
            assert content[at : at + length] == values.astype(numpy_dtype(output.dtype)).tobytes()


@pytest.mark.parametrize("target", [BF16, F32])
def test_literals_between_neighbors_are_made_with_them(target: DType, tmp_path: Path) -> None:
    """And what is close together in the source, with other tensors in between, is read by one request."""
    refs, data = source(tmp_path, [(BF16, (50,))] * 1000)
    outputs = tuple(
        Output(f"t{n}", target, views.cast(views.leaf(ref), target), (ref.name,)) for n, ref in enumerate(refs[::2])
    )
    files = laid_out(outputs, "ckpt")
    ((_, stretch),) = Stretches(outputs, range(500), homes_in(files), BLOCK)
    assert stretch.bytes_of_tensors == 500 * 50 * target.itemsize
    with closing(Reader(BLOCK, Access.READ)) as reader:
        made = reader.stretch(stretch, Region(BLOCK))[0].tobytes()
        assert reader.bytes_read == 500 * 100
    wanted = {o.name: _bytes(np.frombuffer(data[o.sources[0]], numpy_dtype(BF16)), target) for o in outputs}
    golden.write(tmp_path / "a.ckpt", files[0], wanted)
    assert made == (tmp_path / "a.ckpt").read_bytes()[stretch.begin : stretch.end]


def test_neighbors_are_one_run_whatever_their_number(tmp_path: Path) -> None:
    refs, _ = source(tmp_path, [(BF16, (5,))] * 1000)
    outputs = tuple(Output(f"t{n}", F32, views.cast(views.leaf(ref), F32), (ref.name,)) for n, ref in enumerate(refs))
    files = laid_out(outputs, "safetensors")
    ((_, stretch),) = Stretches(outputs, range(1000), homes_in(files), BLOCK)
    (run,) = stretch.contents()
    assert isinstance(run, Run)
    assert run.count == 5000
    assert [*stretch.finished()] == [(0, 1000, None, 0)]
    assert [end - begin for _, begin, end in stretch.boxes()] == [20] * 1000


def test_what_the_source_has_in_another_order_is_several(tmp_path: Path) -> None:
    refs, _ = source(tmp_path, [(BF16, (5,))] * 4)
    order = [1, 2, 0, 3]
    outputs = tuple(Output(f"t{n}", BF16, views.leaf(refs[n]), (refs[n].name,)) for n in order)
    ((_, stretch),) = Stretches(outputs, range(4), homes_in(laid_out(outputs, "safetensors")), BLOCK)
    assert [content.count for content in stretch.contents() if isinstance(content, Run)] == [10, 5, 5]


def test_transposed_tensors_are_left(tmp_path: Path) -> None:
    refs, _ = source(tmp_path, [(BF16, (5, 7)), (BF16, (5, 7)), (BF16, (5, 7))])
    turned = views.permute(views.leaf(refs[0]), (1, 0))
    stacked = views.stack([views.leaf(ref) for ref in refs[1:]])
    outputs = (Output("t0", BF16, turned, ("w0",)), Output("t1", BF16, stacked, ("w1", "w2")))
    table = Stretches(outputs, range(2), homes_in(laid_out(outputs, "safetensors")), BLOCK)
    assert [*table.left] == [0]
    ((_, stretch),) = table
    ((task,),) = stretch.contents()
    assert box_shape(task.box) == (2, 5, 7)


def test_tensors_in_several_files_are_left(tmp_path: Path) -> None:
    refs, _ = source(tmp_path, [(BF16, (5,))])
    outputs = (Output("t0", BF16, views.leaf(refs[0]), ("w0",)),)
    files = (*laid_out(outputs, "safetensors"), *laid_out(outputs, "safetensors"))
    assert Stretches(outputs, [0], homes_in(files), BLOCK).left.tolist() == [0]
