"""Methods: those of the package are told apart, and installed packages bring their own."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint

import numpy as np
import pytest

import streamconv
from streamconv.errors import UsageError
from streamconv.formats import safetensors
from streamconv.quantisation import registry
from streamconv.quantisation.language import FLOATS, Entry, Factor, Layout, Method, Part, signed
from streamconv.tensors.dtypes import F32, I8
from streamconv.tensors.refs import TensorSpec
from support import golden

#: Somebody's method: whole numbers times a scale for each row.
OURS = Method(
    "house-int8",
    "the house's INT8",
    ("our tool",),
    lambda entry: [Layout("INT8 of ours", Part(".w8", (I8,)), signed, (Factor(".s8", FLOATS),))],
)
NO_METHOD = "a word"


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    points: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.GROUP else [])
    registry.methods.cache_clear()
    yield points
    registry.methods.cache_clear()


def test_an_installed_package_adds_a_method_without_touching_anything(offered, tmp_path) -> None:
    offered.append(EntryPoint("house", f"{__name__}:OURS", registry.GROUP))
    codes = np.arange(-64, 64, dtype=np.int8).reshape(8, 16)
    scales = np.exp2(np.arange(8, dtype=np.float32))[:, np.newaxis]
    specs = [TensorSpec("a.w8", I8, codes.shape), TensorSpec("a.s8", F32, scales.shape)]
    file = safetensors.lay_out("model.safetensors", specs, {})
    golden.write(tmp_path / "model.safetensors", file, {"a.w8": codes.tobytes(), "a.s8": scales.tobytes()})
    plan = streamconv.plan(
        tmp_path / "model.safetensors", tmp_path / "out", model="raw", format="hf", dtype="fp32", max_mem="8G"
    )
    assert plan.mapping.dequantised == {"INT8 of ours, a scale for each output": 1}
    plan.run()
    with streamconv.open(tmp_path / "out") as found:
        np.testing.assert_array_equal(found["a.weight"].numpy(), codes * scales)


def test_what_is_no_method_is_refused(offered) -> None:
    offered.append(EntryPoint("house", f"{__name__}:NO_METHOD", registry.GROUP))
    with pytest.raises(UsageError, match=r"entry point house of streamconv\.quantisation is no Method but str"):
        registry.methods()


@pytest.mark.parametrize("name", ["fp8", "FP8", "mxfp8", "gptq", "awq", "compressed-tensors", "modelopt"])
def test_methods_by_the_names_that_configs_give_them(name: str) -> None:
    assert registry.named(name) is not None


def test_names_are_taken_once() -> None:
    names = [method.name for method in registry.methods()]
    assert len({*names}) == len(names)
    assert not registry.NOT_READ.keys() & {*names}


def test_every_layout_of_a_method_says_where_it_is_written_down() -> None:
    entry: Entry = {}
    assert [layout for method in registry.methods() for layout in method.layouts(entry) if not layout.source] == []
