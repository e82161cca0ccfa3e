"""streamconv.formats.gaps: what a download left out is told, and the zeros of real models are not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from streamconv.formats import safetensors
from streamconv.formats.catalog import open_catalog
from streamconv.formats.header_room import HeaderRoom
from streamconv.storage import disk, whole_files
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec

MIB = 1 << 20
#: Half a MiB each, but for a bias in between.
SHAPES = {"a": (512, 256), "b": (512, 256), "bias": (256,), "c": (512, 256), "d": (512, 256), "e": (512, 256)}

Ranges = dict[str, tuple[float, float]]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path) -> Write:
    """Write a file of ones. Parts of tensors, from 0 to 1, are left out as holes, or zeros."""

    def run(missing: Ranges, as_holes: bool, shapes: dict[str, tuple[int, ...]] | None = None) -> Path:
        specs = [TensorSpec(name, dtypes.F32, shape) for name, shape in (shapes or SHAPES).items()]
        output = safetensors.lay_out("m.safetensors", specs, {})
        path = tmp_path / "m.safetensors"
        with path.open("wb") as file:
            file.truncate(output.size)
            for offset, data in output.literals:
                os.pwrite(file.fileno(), data, offset)
            for name, ((offset, length),) in output.extents.items():
                low, high = (int(length * part) for part in missing.get(name, (1, 1)))
                os.pwrite(file.fileno(), b"\1" * low, offset)
                os.pwrite(file.fileno(), b"\1" * (length - high), offset + high)
                if not as_holes:
                    os.pwrite(file.fileno(), bytes(high - low), offset + low)
        return path

    return run


def has_holes(path: Path) -> bool:
    with path.open("rb") as file:
        return whole_files.next_hole(file.fileno(), 0, path.stat().st_size) is not None


@pytest.mark.parametrize(
    ("missing", "names"),
    [
        ({"b": (0, 1)}, ["b"]),
        ({"a": (0.4, 1), "b": (0, 1), "bias": (0, 1), "c": (0, 0.2)}, ["a", "b"]),
        ({"e": (0.3, 1)}, ["e"]),
        (dict.fromkeys(SHAPES, (0, 1)), ["a", "b", "c", "2 more"]),
        ({"c": (0.1, 0.4), "d": (0.1, 0.9)}, ["d"]),
        ({"c": (0, 1), "e": (0, 1)}, ["c", "e"]),
    ],
)
def test_holes_in_place_of_matrices(write, missing: Ranges, names: list[str]) -> None:
    path = write(missing, as_holes=True)
    if not has_holes(path):
        pytest.skip("this file system keeps no holes")
    (said,) = open_catalog(path).warnings
    count = int(names.pop().split()[0]) + len(names) if "more" in names[-1] else len(names)
    assert f"never written and read as zeros, in place of {count} tensor" in said
    assert f": {', '.join(names)}" in said
    assert "bias" not in said


@pytest.mark.parametrize(
    "missing",
    [
        {"e": (0.6, 1)},  # padded rows at the end of a vocabulary
        {"c": (0.6, 1)},
        {"a": (0.3, 0.7)},
        {"bias": (0, 1)},
        {"b": (0.7, 1), "bias": (0, 1), "c": (0, 0.3)},
    ],
)
@pytest.mark.parametrize("as_holes", [True, False])
def test_zeros_of_real_models(write, missing: Ranges, as_holes: bool) -> None:
    assert open_catalog(write(missing, as_holes)).warnings == ()


@pytest.mark.parametrize("missing", [{"d": (0, 1), "e": (0, 1)}, {"c": (0.4, 1), "d": (0, 1), "e": (0, 1)}])
def test_a_file_that_ends_in_zeros(write, missing: Ranges) -> None:
    (said,) = open_catalog(write(missing, as_holes=False)).warnings
    assert f"m.safetensors ends in zeros in place of {len(missing)} tensors: {', '.join(missing)}; compare" in said


@pytest.mark.parametrize("missing", [{"d": (0, 1)}, {"e": (0, 1)}, {"d": (0.9, 1), "e": (0, 1)}])
def test_few_zeros_at_the_end_or_zeros_elsewhere(write, missing: Ranges) -> None:
    assert open_catalog(write(missing, as_holes=False)).warnings == ()


@pytest.mark.parametrize("order", [("x", "w", "view"), ("x", "view", "w")])
def test_tensors_that_share_their_bytes(tmp_path, order: tuple[str, ...]) -> None:
    """Where a view of the first rows stands in the file, before or behind the whole, does not matter."""
    torch = pytest.importorskip("torch")
    zeros = torch.zeros(4, MIB // 2)
    tensors = {"x": torch.randn(64, 64), "w": zeros, "view": zeros[:1, :100]}
    torch.save({name: tensors[name] for name in order}, tmp_path / "t.pth")
    (said,) = open_catalog(tmp_path / "t.pth").warnings
    assert "t.pth ends in zeros in place of 2 tensors: view, w;" in said


def test_matrices_of_few_bytes_and_long_flat_tensors(write) -> None:
    small = {f"t{number}": (64, 64) for number in range(3)}
    assert open_catalog(write(dict.fromkeys(small, (0, 1)), True, small)).warnings == ()
    flat = {"a": (4,), "flat": (MIB,)}
    assert "1 tensor: flat;" in open_catalog(write({"flat": (0, 1)}, False, flat)).warnings[0]
    many_biases = {"a": (4,), **{f"b{number}": (MIB // 8,) for number in range(16)}}
    assert open_catalog(write(dict.fromkeys(many_biases, (0, 1)), False, many_biases)).warnings == ()


def test_where_the_file_system_does_not_tell(write, monkeypatch) -> None:
    path = write({name: (0, 1) for name in SHAPES if name != "a"}, as_holes=True)

    def fail(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(disk, "seek", fail)
    (said,) = open_catalog(path).warnings
    assert "ends in zeros in place of 4 tensors: b, c, d and 1 more;" in said


def test_it_costs_a_question_and_a_read(write, monkeypatch) -> None:
    path = write({}, as_holes=False)
    asked: list[str] = []

    def count(name: str) -> None:
        call = getattr(disk, name)

        def counted(*arguments: object) -> object:
            asked.append(name)
            return call(*arguments)

        monkeypatch.setattr(disk, name, counted)

    header_room = HeaderRoom()
    for name in ("seek", "read", "open_file"):
        count(name)
    safetensors.read(path, header_room)
    before = list(asked)
    asked.clear()
    open_catalog(path, lambda: header_room)
    more = {name: asked.count(name) - before.count(name) for name in ("seek", "read", "open_file")}
    assert more == {"seek": 1, "read": 1, "open_file": 1}


def test_a_file_of_nothing_but_holes_costs_a_bounded_number_of_questions(tmp_path, monkeypatch) -> None:
    """Every other page is a hole."""
    specs = [TensorSpec("w", dtypes.F32, (4, MIB))]
    output = safetensors.lay_out("m.safetensors", specs, {})
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.truncate(output.size)
        os.pwrite(file.fileno(), output.literals[0][1], 0)
        for offset in range(8192, output.size, 8192):
            os.pwrite(file.fileno(), b"\1", offset)
    calls = []
    seek = disk.seek
    monkeypatch.setattr(disk, "seek", lambda *arguments: calls.append(1) or seek(*arguments))
    open_catalog(path)
    assert len(calls) < 1000
