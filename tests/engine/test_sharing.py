"""Slices that share a window: every element once, the right bytes, long runs, and nothing where that does not pay."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamconv.engine import sharing
from streamconv.engine.budget import Budget
from streamconv.engine.reader import Reader
from streamconv.engine.sharing import Task, shared_window
from streamconv.engine.tasks import Unrecorded, Work, tasks, total_bytes
from streamconv.engine.workers import run
from streamconv.formats import safetensors
from streamconv.formats.header_room import HeaderRoom
from streamconv.planning.mapping import TensorMapping
from streamconv.planning.outputs import Output
from streamconv.rules.statements import Direction
from streamconv.storage.access import Access
from streamconv.tensors import views
from streamconv.tensors.dtypes import BF16, F8_E4M3, F16, F32, DType
from streamconv.tensors.grids import Box, box_shape
from streamconv.tensors.refs import TensorRef, TensorSpec
from streamconv.tensors.view_nodes import View
from support import golden
from support.helpers import ref, trees
from support.quantised import fp8_in_blocks

ROWS, COLUMNS = 320, 256


def sliced(view: View, dtype: DType, pieces: tuple[int, ...]) -> tuple[Output, ...]:
    """A tensor in equal slices, each an output."""
    found = []
    for place in np.ndindex(pieces):
        part = view
        for axis, (count, at) in enumerate(zip(pieces, place, strict=True)):
            size = view.shape[axis] // count
            part = views.cut(part, axis, at * size, (at + 1) * size) if count > 1 else part
        found.append(Output(f"t{list(place)}", dtype, part, ("t",), "t"))
    return tuple(found)


def mapping_of(outputs: tuple[Output, ...]) -> TensorMapping:
    return TensorMapping("raw", {}, next(iter(Direction)), None, outputs, {})


def nowhere(name: str) -> None:
    """No tensor lies in one piece in one file."""


def work_of(outputs: tuple[Output, ...], region: int) -> list[Work]:
    return list(tasks(mapping_of(outputs), region, Unrecorded(), nowhere))


def shared(work: Work, region: int) -> tuple[object, Box] | None:
    return shared_window([(task.output.view, task.box) for task in work], region)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(trees(), st.integers(16, 400), st.sampled_from([2, 3, 4]))
def test_slices_of_any_view_are_covered_once(tree, region: int, parts: int) -> None:
    view = tree[0]
    fitting = [axis for axis, size in enumerate(view.shape) if size and size % parts == 0]
    assume(fitting)
    outputs = sliced(view, view.dtype, tuple(parts if a == fitting[-1] else 1 for a in range(len(view.shape))))
    covered = [np.zeros(output.view.shape, np.int64) for output in outputs]
    for task in (task for work in work_of(outputs, region) for task in work):
        assert math.prod(box_shape(task.box)) * task.output.widest <= max(region, 8)
        covered[task.number][tuple(slice(*sides) for sides in task.box)] += 1
    assert all((one == 1).all() for one in covered)


class Collected:
    """A sink that keeps the bytes, each given once, and counts requests."""

    def __init__(self, outputs: tuple[Output, ...]) -> None:
        self.data = {output.name: bytearray(output.spec.nbytes) for output in outputs}
        self.given = {output.name: np.zeros(output.spec.nbytes, np.int8) for output in outputs}
        self.requests = 0

    def placement(self, name: str, offset: int, count: int) -> None:
        return None

    def placement_in_file(self, offset: int, count: int) -> None:
        return None

    def home(self, name: str) -> None:
        return None

    def write(self, file: object, offset: int, data: memoryview) -> None:
        raise AssertionError("nothing of this lies in a file")

    def put(self, name: str, offset: int, data: memoryview) -> str:
        self.data[name][offset : offset + len(data)] = data
        self.given[name][offset : offset + len(data)] += 1
        self.requests += 1
        return name


def stored(folder: Path, dtype: DType, *bits: np.ndarray) -> list[TensorRef]:
    """Matrices on disk."""
    specs = [TensorSpec(f"w{n}", dtype, one.shape) for n, one in enumerate(bits)]
    path = folder / "model.safetensors"
    data = {s.name: b.tobytes() for s, b in zip(specs, bits, strict=True)}
    golden.write(path, safetensors.lay_out(path.name, specs, {}), data)
    found = safetensors.read(path, HeaderRoom())[1]
    return [found[spec.name] for spec in specs]


Layout = tuple[Callable[[list[View]], View], Callable[[np.ndarray], np.ndarray], tuple[int, ...]]

LAYOUTS: dict[str, Layout] = {
    "last axis": (lambda w: w[0], lambda a: a[0], (1, 8)),
    "both axes": (lambda w: w[0], lambda a: a[0], (2, 4)),
    "experts": (views.stack, lambda a: a, (1, 1, 8)),
    "some experts each": (views.stack, lambda a: a, (3, 1, 4)),
    "transposed": (lambda w: views.permute(w[0], (1, 0)), lambda a: a[0].T, (8, 1)),
    "turned experts": (lambda w: views.permute(views.stack(w), (0, 2, 1)), lambda a: a.transpose(0, 2, 1), (1, 4, 1)),
    "two joined": (lambda w: views.concat(w[:2], 0), lambda a: np.concatenate(a[:2]), (1, 8)),
    "rows": (lambda w: w[0], lambda a: a[0], (8, 1)),
    "vector": (lambda w: views.merge(w[0], 0), lambda a: a[0].reshape(-1), (8,)),
}  # fmt: skip


def values_of(dtype: DType) -> np.ndarray:
    values = np.random.default_rng(1).normal(0, 3e4, (3, ROWS, COLUMNS)).astype(np.float32)
    return values if dtype == F32 else values.astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("region", [4 << 10, 40 << 10, 1 << 20])
@pytest.mark.parametrize(("source", "dtype"), [(BF16, BF16), (BF16, F16), (F32, BF16)], ids=str)
@pytest.mark.parametrize("workers", [1, 3])
def test_bytes_overflows_and_reads(
    name: str, region: int, source: DType, dtype: DType, workers: int, tmp_path: Path, monkeypatch
) -> None:
    """The same with and without windows that are shared, and no byte read twice."""
    build, expected, pieces = LAYOUTS[name]
    values = values_of(source)
    leaves = [
        views.cast(views.leaf(one), dtype) for one in stored(tmp_path, source, *values.view(f"u{source.itemsize}"))
    ]
    outputs = sliced(build(leaves), dtype, pieces)
    found = []
    for most in (sharing._MOST, 1):
        monkeypatch.setattr(sharing, "_MOST", most)
        sink = Collected(outputs)
        tally = run(mapping_of(outputs), sink, Budget(1 << 30, 0, workers, region), Access.READ)
        assert all((given == 1).all() for given in sink.given.values())
        assert tally.done == tally.total == sum(output.spec.nbytes for output in outputs)
        assert tally.read == tally.done // dtype.itemsize * source.itemsize
        found.append((sink.data, tally.overflowed))
    assert found[0] == found[1]
    numpy = {BF16: ml_dtypes.bfloat16, F16: np.float16}[dtype]
    with np.errstate(over="ignore"):
        whole = expected(values.astype(numpy))
    parts = _cut(whole, pieces)
    assert [bytes(found[0][0][output.name]) for output in outputs] == [part.tobytes() for part in parts]
    if dtype == F16:
        counts = [int(np.isinf(part.astype(np.float32)).sum()) for part in parts]
        assert [found[0][1].get(output.name, 0) for output in outputs] == counts
        assert any(counts)


def _cut(whole: np.ndarray, pieces: tuple[int, ...]) -> list[np.ndarray]:
    sizes = [size // count for size, count in zip(whole.shape, pieces, strict=True)]
    return [
        whole[tuple(slice(at * size, (at + 1) * size) for at, size in zip(place, sizes, strict=True))]
        for place in np.ndindex(pieces)
    ]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("region", [4 << 10, 40 << 10, 1 << 20])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_fp8_blocks(region: int, dtype: DType, transposed: bool, tmp_path: Path, monkeypatch) -> None:
    """Slices begin and end within scale blocks."""
    rng = np.random.default_rng(2)
    (tmp_path / "scale").mkdir()
    (weight,) = stored(tmp_path, F8_E4M3, rng.integers(0, 256, (ROWS, COLUMNS), np.uint8))
    (scale,) = stored(tmp_path / "scale", F32, rng.uniform(1e-3, 3e2, (3, 2)).astype(np.float32))
    view = views.cast(views.leaf(fp8_in_blocks(weight, scale)), dtype)
    view, pieces = (views.permute(view, (1, 0)), (8, 1)) if transposed else (view, (1, 8))
    outputs = sliced(view, dtype, pieces)
    assert any(len(work) > 1 and shared(work, region) for work in work_of(outputs, region)) or transposed
    found = []
    for most in (sharing._MOST, 1):
        monkeypatch.setattr(sharing, "_MOST", most)
        sink = Collected(outputs)
        tally = run(mapping_of(outputs), sink, Budget(1 << 30, 0, 2, region), Access.READ)
        assert all((given == 1).all() for given in sink.given.values())
        found.append((sink.data, tally.overflowed))
    assert found[0] == found[1]


@pytest.mark.parametrize(("name", "shares"), [(name, name not in ("rows", "vector")) for name in LAYOUTS])
def test_only_short_runs_share(name: str, shares: bool) -> None:
    build, _, pieces = LAYOUTS[name]
    leaves = [views.leaf(ref(f"w{n}", (ROWS, COLUMNS), offset=n << 20)) for n in range(3)]
    outputs = sliced(build(leaves), leaves[0].dtype, pieces)
    work = work_of(outputs, 1 << 20)
    assert any(len(one) > 1 for one in work) is shares
    for region in (4 << 10, 128 << 10, 1 << 20):
        assert all(len(one) == 1 or shared(one, region) for one in work_of(outputs, region))


def test_slices_with_long_runs_are_left_as_they_are() -> None:
    view = views.leaf(ref("w", (4096, 8 * sharing.LONG_RUN)))
    outputs = sliced(view, view.dtype, (1, 8))
    assert {len(work) for work in work_of(outputs, 32 << 20)} == {1}


def test_requests_are_large(tmp_path: Path) -> None:
    """A matrix of 16 MiB in 8: its rows are read at once, and 2 MiB of each slice are written at once."""
    view = views.leaf(stored(tmp_path, BF16, np.zeros((2048, 4096), np.uint16))[0])
    outputs = sliced(view, BF16, (1, 8))
    sink = Collected(outputs)
    run(mapping_of(outputs), sink, Budget(1 << 30, 0, 1, 32 << 20), Access.READ)
    assert sink.requests == 8
    ((leaf, window),) = [shared(work, 32 << 20) for work in work_of(outputs, 32 << 20)]
    assert (leaf, window) == (view, ((0, 2048), (0, 4096)))


def test_what_is_left_of_slices_shares_a_window_only_if_most_of_it_is_needed() -> None:
    view = views.leaf(ref("w", (64, 800)))
    outputs = sliced(view, view.dtype, (1, 8))
    rows = tuple(Task(n, output, ((0, 64), (0, 100))) for n, output in enumerate(outputs))
    assert shared(rows[2:5], 1 << 20) == (view, ((0, 64), (200, 500)))
    assert shared((rows[0], rows[2]), 1 << 20) == (view, ((0, 64), (0, 300)))
    assert shared((rows[0], rows[4]), 1 << 20) is None
    assert shared(rows, 1000) is None


def test_chosen_boxes_are_counted_one_by_one() -> None:
    view = views.leaf(ref("w", (64, 800)))
    mapping = mapping_of(sliced(view, view.dtype, (1, 8)))
    numbers: list[int] = []

    def chosen(number: int, name: str, box: Box) -> bool:
        numbers.append(number)
        return number % 3 == 0

    found = [task for work in tasks(mapping, 1 << 12, Unrecorded(), nowhere, chosen) for task in work]
    assert numbers == list(range(len(numbers)))
    assert len(found) == len(numbers[::3])
    bytes_chosen = sum(math.prod(box_shape(task.box)) for task in found) * view.dtype.itemsize
    assert total_bytes(mapping, 1 << 12, chosen) == bytes_chosen


def test_a_held_window_is_gone_when_something_else_is_read(tmp_path: Path) -> None:
    one, other = stored(tmp_path, BF16, *np.arange(2 * 8 * 64, dtype=np.uint16).reshape(2, 8, 64))
    boxes = [((0, 8), (16 * n, 16 * n + 16)) for n in range(4)]
    with closing(Reader(1 << 12, Access.READ)) as reader:
        reader.share([(views.leaf(one), box) for box in boxes])
        for view, box in [(views.leaf(ref), box) for box in boxes for ref in (one, other, one)]:
            target = np.empty(8 * 16, np.uint16)
            reader.fill(view, box, target, BF16)
            first = 0 if view.ref == one else 512
            expected = np.arange(first, first + 512, dtype=np.uint16).reshape(8, 64)[:, slice(*box[1])]
            assert np.array_equal(target.reshape(8, 16), expected)
