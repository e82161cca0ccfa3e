"""`streamconv diff`: what differs is found, whatever the format, and said with its place and its size."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamconv
from streamconv.checks import comparison
from streamconv.checks.elements import Compared, comparable
from streamconv.engine import side_by_side
from streamconv.errors import BudgetError, SourceError, UsageError
from streamconv.formats import ckpt, safetensors
from streamconv.formats.catalog import open_catalog
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import golden, running, watching
from support.running import call

NAMES = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"}
NAMES |= {"complex64": "C64", "bool": "BOOL"}


def dtype_of(array: np.ndarray[Any, Any]) -> dtypes.DType:
    name = array.dtype.name
    return (
        dtypes.STR
        if array.dtype.kind == "U"
        else golden.dtype_of(NAMES.get(name, name[0].upper() + name[-2:].lstrip("t")))
    )


def written(path: Path, **arrays: Any) -> Path:
    """A checkpoint of these arrays, in the format that the path's name says."""
    path.parent.mkdir(exist_ok=True)
    tensors = {name: np.asarray(array) for name, array in arrays.items()}
    specs = [TensorSpec(n, dtype_of(a), (len(str(a)),) if a.dtype.kind == "U" else a.shape) for n, a in tensors.items()]
    data = {n: str(a).encode("utf-32-le") if a.dtype.kind == "U" else a.tobytes() for n, a in tensors.items()}
    lay_out = ckpt.lay_out(path.name, specs) if path.suffix == ".ckpt" else safetensors.lay_out(path.name, specs, {})
    golden.write(path, lay_out, data)
    return path


def only(one: Path, other: Path) -> Any:
    found = streamconv.diff(one, other)
    assert len(found.differences) == 1, str(found)
    return found.differences[0]


def values(one: Any, other: Any, tmp_path: Path) -> Any:
    return only(written(tmp_path / "a.safetensors", t=one), written(tmp_path / "b.safetensors", t=other))


F32 = np.float32
BF16 = ml_dtypes.bfloat16

EVERY = {
    **{
        np.dtype(kind).name: np.arange(12).reshape(3, 4).astype(kind)
        for kind in (BF16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, "f2", "f4", "f8", "i1", "u1", "i2", "u2")
    },
    **{np.dtype(kind).name: np.arange(1, 13).reshape(3, 4).astype(kind) for kind in ("i4", "u4", "i8", "u8", "c8")},
    "bool": np.array([[True], [False]]),
    "scalar": np.float32(3),
    "empty": np.zeros((0, 5), F32),
    "nan": np.array([np.nan, np.inf, -0.0], F32),
}


def test_the_same(tmp_path: Path, capsys: Any) -> None:
    one = written(tmp_path / "a.safetensors", **EVERY)
    other = written(tmp_path / "x" / "b.safetensors", **dict(reversed(EVERY.items())))
    found = streamconv.diff(one, other)
    assert found.same and found.common == len(EVERY) and found.bytes_compared == 2 * found.a.nbytes
    assert str(found) == found.summary
    ended = call(capsys, "diff", one, other)
    assert (ended.code, ended.err) == (0, "")
    assert f"are identical, bit for bit: {len(EVERY)} tensors" in ended.out


@pytest.mark.slow
def test_one_byte_of_any_tensor_is_found(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a.safetensors", **EVERY), written(tmp_path / "b.safetensors", **EVERY)
    for name, ref in open_catalog(other).items():
        for at in range(0, ref.nbytes, 3):
            running.flip(other, ref.extents[0].offset + at)
            assert only(one, other).name == name
            running.flip(other, ref.extents[0].offset + at)
    assert streamconv.diff(one, other).same


def test_formats_of_all_kinds_of_one_model(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "hf")
    for dest, options in (("ms", {}), ("one.ckpt", {}), ("two", {"max_shard_size": 5000}), ("torch.pt", {})):
        streamconv.convert(source, tmp_path / dest, model="raw", **options)
        for one, other in ((source, tmp_path / dest), (tmp_path / dest, source)):
            assert streamconv.diff(one, other).same
    assert streamconv.diff(tmp_path / "one.ckpt", tmp_path / "torch.pt").same
    streamconv.convert(source, tmp_path / "wide", model="raw", dtype="fp32")
    found = streamconv.diff(tmp_path / "wide", source)
    assert "differ: 21 tensors with a different dtype (21 of them with equal values); 0 identical" in found.summary


def test_names_shapes_and_what_is_in_one_only(tmp_path: Path, capsys: Any) -> None:
    x = np.arange(6, dtype=F32)
    one = written(tmp_path / "a.safetensors", left=x, both=x, moved=x.reshape(2, 3))
    other = written(tmp_path / "b.ckpt", both=x, moved=x.reshape(3, 2), right=x, more=x)
    ended = call(capsys, "diff", one, other)
    assert ended.code == 7
    assert ended.out.splitlines()[:-1] == [
        "1 tensor only in A",
        "  left  A F32 [6]",
        "2 tensors only in B",
        "  right  B F32 [6]",
        "  more  B F32 [6]",
        "1 tensor with a different shape",
        "  moved  A F32 [2, 3], B F32 [3, 2]",
    ]
    assert (
        "differ: 1 tensor only in A, 2 only in B, 1 with a different shape; 1 identical" in ended.out.splitlines()[-1]
    )
    assert "verify" not in ended.out


def test_no_name_in_common(tmp_path: Path, capsys: Any) -> None:
    source = running.tiny(tmp_path / "hf")
    streamconv.convert(source, tmp_path / "ms")
    ended = call(capsys, "diff", source, tmp_path / "ms")
    assert ended.code == 7
    assert "20 tensors only in A, 20 only in B; 1 identical; few names are in both: if one has Hugg" in ended.out
    assert "or verify the output against its source" in ended.out
    one, other = written(tmp_path / "a.safetensors", a=F32(1)), written(tmp_path / "b.safetensors", b=F32(1))
    assert "; no names are in both: " in str(streamconv.diff(one, other))


def test_values_are_said_with_their_place_and_size(tmp_path: Path) -> None:
    one = np.zeros((2, 3), F32)
    other = one.copy()
    other[0, 2], other[1, 1] = 0.5, -4
    found = values(one, other, tmp_path)
    assert found.kind == "values"
    assert str(found) == (
        "t  F32 [2, 3]; 2 of 6 elements differ, the first at [0, 2]: A 0, B 0.5; the largest difference is 4"
    )
    assert found.to_json() == {
        "name": "t",
        "kind": "values",
        "a": {"dtype": "F32", "shape": [2, 3]},
        "b": {"dtype": "F32", "shape": [2, 3]},
        "elements": 6,
        "unequal": 2,
        "bits_only": 0,
        "nans": 0,
        "largest": 4.0,
        "first": {"index": [0, 2], "a": "0", "b": "0.5"},
    }


def test_a_scalar(tmp_path: Path) -> None:
    assert "the first at []: A 1, B 2;" in str(values(F32(1), F32(2), tmp_path))


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ([0.0, 1], [-0.0, 1], "1 of 2 elements has equal values but different bits, "
            "the first at [0]: A 0 (0x00000000), B -0 (0x80000000)"),
        ([np.nan], [-np.nan], "1 of 1 element has equal values but different bits, "
            "the first at [0]: A nan (0x7fc00000), B nan (0xffc00000)"),
        ([np.nan, 0.0], [1, -0.0], "1 of 2 elements differ, the first at [0]: A nan, B 1; "
            "1 of them is NaN on one side only; 1 of 2 elements has equal values but different bits"),
        ([np.inf, 1], [-np.inf, 1], "A inf, B -inf; the largest difference is inf"),
        ([0.1], [0.10000001], "A 0.100000001, B 0.100000009; the largest difference is 7.45058e-09"),
    ],
)  # fmt: skip
def test_zeros_nan_and_infinity(one: list[float], other: list[float], said: str, tmp_path: Path) -> None:
    found = values(np.array(one, F32), np.array(other, F32), tmp_path)
    assert str(found).endswith(said)
    assert found.kind == ("bits" if "differ" not in said.replace("different bits", "") else "values")
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))


def test_same_nan_is_the_same(tmp_path: Path) -> None:
    same = {"t": np.array([np.nan, -np.nan], F32)}
    assert streamconv.diff(written(tmp_path / "a.safetensors", **same), written(tmp_path / "b.ckpt", **same)).same


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (np.array([1.5, np.nan], BF16), np.array([1.5, np.nan], F32), "A BF16 [2], B F32 [2]; same values"),
        (np.array([0.1], BF16), np.array([0.1], F32), "A 0.100097656, B 0.100000001; "
            "the largest difference is 9.76548e-05"),
        (np.array([2**53 + 1], "i8"), np.array([2.0**53], "f8"), "t  A I64 [1], B F64 [1]"),
        (np.array([2**64 - 1], "u8"), np.array([-1], "i8"), "t  A U64 [1], B I64 [1]"),
        (np.array([2**31 + 1], "u4"), np.array([2.0**31], "f8"), "A 2147483649, B 2147483648; "
            "the largest difference is 1"),
        (np.array([200], "u1"), np.array([-56], "i1"), "A 200, B -56; the largest difference is 256"),
        (np.array([True, False]), np.array([1, 0], "i4"), "A BOOL [2], B I32 [2]; same values"),
        (np.array([240, 0.5], ml_dtypes.float8_e4m3fn), np.array([240, 0.5], "f2"), "same values"),
        (np.array([2.0], ml_dtypes.float8_e8m0fnu), np.array([2.0], "f2"), "same values"),
        (np.array([1 + 2j], "c8"), np.array([1], "f4"), "A (1+2j), B 1; the largest difference is 2"),
        (np.array([1 << 63], "u8"), np.array([1 << 63], "f4"), "t  A U64 [1], B F32 [1]"),
        (np.array([1 << 31], "u4"), np.array([1 << 31], "f4"), "same values"),
    ],
)  # fmt: skip
def test_values_of_two_dtypes(one: Any, other: Any, said: str, tmp_path: Path) -> None:
    found = values(one, other, tmp_path)
    assert found.kind == "dtype"
    assert str(found).endswith(said)


def test_whole_numbers_differ_exactly(tmp_path: Path) -> None:
    least, most = np.array([-(2**63), 5], "i8"), np.array([2**63 - 1, 5], "i8")
    assert str(values(least, most, tmp_path)).endswith("the largest difference is 18446744073709551615")


def test_text(tmp_path: Path) -> None:
    one = written(tmp_path / "a.ckpt", t=np.array("abc"), u=np.array("same"))
    found = only(one, written(tmp_path / "b.ckpt", t=np.array("ab\x1b"), u=np.array("same")))
    assert str(found).endswith("1 of 3 elements differ, the first at [2]: A 'c', B '\\\\x1b'")
    found = only(one, written(tmp_path / "c.ckpt", t=np.array([1, 2, 3], "u4"), u=np.array("same")))
    assert (found.kind, found.compared) == ("dtype", None)
    assert str(found) == "t  A str [3], B U32 [3]"


@pytest.mark.slow
def test_tensors_cut_out_of_a_torch_storage(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(120, dtype=torch.float32).reshape(10, 12)
    state = {
        "transposed": base.T,
        "strided": base[::2, 1:7],
        "row": base[3],
        "three": base.reshape(2, 5, 12).permute(2, 0, 1),
    }
    torch.save(state, tmp_path / "a.pt")
    dense = {name: one.contiguous().numpy() for name, one in state.items()}
    one, other = tmp_path / "a.pt", written(tmp_path / "b.safetensors", **dense)
    assert streamconv.diff(one, other).same and streamconv.diff(other, one).same
    for name, array in dense.items():
        for place in range(0, array.size, 7):
            changed = array.copy()
            changed.reshape(-1)[place] += 1000
            changed.reshape(-1)[-1] += 1
            third = written(tmp_path / "c.safetensors", **{**dense, name: changed})
            for words in ((one, third), (third, one)):
                found = only(*words)
                assert found.name == name
                index = [int(i) for i in np.unravel_index(place, array.shape)]
                assert found.first["index"] == index
                assert found.compared.unequal == (2 if place != array.size - 1 else 1)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("io", ["read", "direct"])
def test_the_first_and_the_count_across_windows(
    io: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of a few KiB, and a B whose rows are A's columns: the first is still the first."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(comparison, "_WORKERS", workers)
    monkeypatch.setattr("streamconv.engine.budget.MAX_REGION", 16 << 10)
    rng = np.random.default_rng(7)
    one = rng.integers(0, 2**32, (300, 200), np.uint32).view(F32)
    other = one.copy()
    places = sorted(int(p) for p in rng.choice(one.size, 50, replace=False))
    other.view(np.uint32).reshape(-1)[places] ^= 1 << 22
    written(tmp_path / "a.safetensors", t=one)
    torch.save({"t": torch.from_numpy(np.ascontiguousarray(other.T)).T}, tmp_path / "b.pt")
    for a, b in (("a.safetensors", "b.pt"), ("b.pt", "a.safetensors")):
        [found] = streamconv.diff(tmp_path / a, tmp_path / b, io=io).differences
        assert found.compared.unequal + found.compared.bits_only == 50
        firsts = [e.number for e in (found.compared.first, found.compared.first_bits) if e]
        assert min(firsts) == places[0]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_two_arrays_compare_as_numpy_says(data: st.DataObject) -> None:
    kinds = ["f2", "f4", "f8", BF16, ml_dtypes.float8_e4m3fn, "i1", "u2", "i4", "u4", "i8", "u8"]
    one, other = (np.dtype(data.draw(st.sampled_from(kinds))) for _ in range(2))
    count = data.draw(st.integers(1, 9))
    # Few bits, so that many elements are equal.
    small = st.lists(st.sampled_from([0, 1, 2, 64, 127, 200, 255]), min_size=count, max_size=count)
    with np.errstate(all="ignore"):
        a, b = (np.array(data.draw(small), "u1").astype(kind) for kind in (one, other))
        if data.draw(st.booleans()):
            a, b = -a, -b
    if not comparable(dtype_of(a), dtype_of(b)):
        assert 8 in {kind.itemsize for kind in (one, other) if kind.kind in "iu"}
        return
    found = Compared(dtype_of(a), dtype_of(b), count)
    found.add(a.view(f"u{one.itemsize}"), b.view(f"u{other.itemsize}"), lambda place: place)
    pairs = [(_exact(x), _exact(y)) for x, y in zip(a, b, strict=True)]
    unequal = [i for i, (x, y) in enumerate(pairs) if x != y and not (x != x and y != y)]
    assert found.unequal == len(unequal)
    assert (found.first and found.first.number) == (unequal[0] if unequal else None)
    distances = [abs(x - y) for x, y in pairs if x == x and y == y and x != y]
    assert (found.largest is None) == (not distances)
    if distances:
        assert math.isclose(found.largest or 0, max(distances), rel_tol=1e-12)


def _exact(value: Any) -> Any:
    return int(value) if isinstance(value, np.integer) else float(value)


def test_many_are_counted_and_all_are_in_the_json(tmp_path: Path, capsys: Any) -> None:
    one = written(tmp_path / "a.safetensors", **{f"t{i}": F32(i) for i in range(50)})
    other = written(tmp_path / "b.safetensors", **{f"t{i}": F32(i + 1) for i in range(50)})
    ended = call(capsys, "diff", one, other)
    assert len(ended.out.splitlines()) == 23
    assert ended.out.splitlines()[-2] == "  and 30 more"
    ended = call(capsys, "diff", one, other, "--json", "--quiet")
    report = json.loads(ended.out)
    assert (ended.code, report["same"], report["common"], report["bytes"]) == (7, False, 50, 400)
    assert [d["name"] for d in report["differences"]] == list(streamconv.open(one))
    ended = call(capsys, "diff", one, one, "--json")
    assert (ended.code, json.loads(ended.out)["differences"]) == (0, [])


def test_names_are_escaped(tmp_path: Path, capsys: Any) -> None:
    one = written(tmp_path / "a.safetensors", **{"evil\x1b[2J": F32(1), "x\x1b": F32(1)})
    other = written(tmp_path / "b.safetensors", **{"evil\x1b[2J": F32(2)})
    for words in ([], ["--json"]):
        ended = call(capsys, "diff", one, other, *words)
        assert "\x1b" not in ended.out + ended.err


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[streamconv.Progress] = []
    source = running.tiny(tmp_path / "hf")
    found = streamconv.diff(source, source, progress=seen.append)
    done = [p.done for p in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total == found.bytes_compared == 2 * found.a.nbytes


def test_tensors_that_are_not_compared_stand_between_those_that_are(tmp_path: Path) -> None:
    """Of other shapes, of none, and of dtypes that have no type in common: each in its place."""
    rng = np.random.default_rng(3)
    one = {f"t{n}": rng.integers(0, 255, 50, np.uint8) for n in range(12)}
    one["t3"], one["t7"] = np.zeros(0, np.uint8), one["t7"][:48].view(np.int64)
    other = {name: array.copy() for name, array in one.items()}
    other["t1"], other["t7"] = other["t1"][:49], np.ones(6)
    for name in ("t0", "t6", "t11"):
        other[name][7] ^= 1
    found = streamconv.diff(written(tmp_path / "a.safetensors", **one), written(tmp_path / "b.safetensors", **other))
    kinds = {difference.name: difference.kind for difference in found.differences}
    assert kinds == {"t1": "shape", "t7": "dtype", "t0": "values", "t6": "values", "t11": "values"}
    assert all(d.compared.unequal == 1 for d in found.differences if d.compared)


def test_of_two_errors_the_first_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (
        written(tmp_path / name, **{f"t{n}": F32(range(99)) for n in range(30)})
        for name in ("a.safetensors", "b.safetensors")
    )
    read = side_by_side._Worker.work

    def work(worker: Any, compare: Any, task: Any) -> Any:
        if task[0] in ("t4", "t5"):
            time.sleep(0.1 if task[0] == "t4" else 0)
            raise SourceError(f"no {task[0]}")
        return read(worker, compare, task)

    monkeypatch.setattr(side_by_side._Worker, "work", work)
    with pytest.raises(SourceError, match="no t4"):
        streamconv.diff(a, b)


def test_errors(tmp_path: Path) -> None:
    one = written(tmp_path / "a.safetensors", t=F32(1))
    with pytest.raises(SourceError, match="nothing"):
        streamconv.diff(one, tmp_path / "nothing")
    with pytest.raises(UsageError, match="unknown value for io: what"):
        streamconv.diff(one, one, io="what")
    with pytest.raises(UsageError, match="is not a size"):
        streamconv.diff(one, one, max_mem="much")
    with pytest.raises(BudgetError, match=r'give max_mem="\d+M" or more'):
        streamconv.diff(one, one, max_mem="1M")


@pytest.mark.slow
@pytest.mark.parametrize("io", ["read", "direct"])
def test_tensors_larger_than_the_budget(io: str, tmp_path: Path) -> None:
    """I1, from outside: dense random values, one tensor in another dtype."""
    rng = np.random.default_rng(0)
    budget = 120 << 20
    big = rng.integers(0, 2**16, (8192, 8192), np.uint16) & np.uint16(0xBFFF)  # no NaN
    assert big.nbytes > budget
    written(tmp_path / "a.safetensors", big=big.view(BF16), cast=big.view(BF16))
    big[5000:, 3] ^= 1
    written(tmp_path / "b.safetensors", big=big.view(BF16), cast=big.view(BF16).astype(F32))
    del big
    watching.drop_from_cache(tmp_path)
    words = ["diff", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--max-mem", str(budget)]
    seen = watching.watch([*words, "--io", io], code=7)
    assert seen.peak <= budget
    found = {d["name"]: (d["kind"], d["unequal"], d["first"]["index"]) for d in seen.report["differences"]}
    assert found == {"big": ("values", 3192, [5000, 3]), "cast": ("dtype", 3192, [5000, 3])}
    assert seen.fetched <= 1.1 * seen.report["bytes"]
