"""Torch files: read as torch wrote them, written so that torch reads them, refused where something is wrong."""

from __future__ import annotations

import json
import math
import re
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamconv
from streamconv import testing as samples
from streamconv.errors import SourceError, StreamconvError, UnsupportedError, UsageError
from streamconv.formats.catalog import open_catalog
from streamconv.formats.header_room import HeaderRoom
from support import golden
from support.helpers import LLAMA, hf, text_of

torch = pytest.importorskip("torch")

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
    torch.uint16,
]


def tensor(shape: tuple[int, ...], dtype: Any = torch.float32, seed: int = 0) -> Any:
    """Random bits, or what of them the dtype allows."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8).bool()
    raw = torch.randint(0, 120, (count,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def bits(one: Any) -> bytes:
    """The bytes of a tensor in row-major order."""
    flat = torch.empty(one.numel(), dtype=one.dtype).copy_(one.detach().reshape(-1))
    return flat.view(torch.uint8).numpy().tobytes() if one.numel() else b""


def read(path: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {name: (one.shape, one.numpy().tobytes()) for name, one in streamconv.open(path).items()}


def saved(path: Path, value: Any, **arguments: Any) -> Path:
    torch.save(value, path, **arguments)
    return path


def agrees(path: Path, state: dict[str, Any]) -> None:
    assert read(path) == {name: (tuple(one.shape), bits(one)) for name, one in state.items()}


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (2, 1, 3, 2), (0, 4)], ids=str)
def test_every_dtype_and_rank(tmp_path, dtype, shape) -> None:
    state = {"a": tensor(shape, dtype, 1), "b.c": tensor((4,), dtype, 2)}
    agrees(saved(tmp_path / "m.bin", state), state)


def strided() -> dict[str, Any]:
    base, cube = tensor((6, 10), seed=3), tensor((4, 6, 5), seed=4)
    return {
        "base": base,
        "transposed": base.t(),
        "rows": base[2:5],
        "columns": base[:, 3:7],
        "every other": base[::2, 1::3],
        "one row": base[1],
        "one column": base[:, 4],
        "one element": base[2, 3],
        "permuted": cube.permute(2, 0, 1),
        "cut and turned": cube[1:3, ::2].transpose(0, 2),
        "part": cube[:, 1:3, 2],
        "view": cube.view(24, 5),
        "last": cube[3, 5:, 4:],
    }


def test_tensors_that_are_no_rows_of_their_storage(tmp_path) -> None:
    state = strided()
    path = saved(tmp_path / "m.pt", state)
    agrees(path, state)
    streamconv.convert(path, tmp_path / "out", model="raw", max_mem="8G")
    agrees(tmp_path / "out", state)
    streamconv.verify(tmp_path / "out", source=path, max_mem="8G")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_strided_tensor(tmp_path_factory, data) -> None:
    one = tensor(tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))), seed=5)
    for _ in range(data.draw(st.integers(0, 4))):
        axis = data.draw(st.integers(0, one.dim() - 1)) if one.dim() else 0
        match data.draw(st.sampled_from(["turn", "cut", "step", "take"])):
            case "turn":
                one = one.permute(data.draw(st.permutations(range(one.dim()))))
            case "cut" if one.dim():
                begin = data.draw(st.integers(0, one.shape[axis] - 1))
                one = one.narrow(axis, begin, data.draw(st.integers(1, one.shape[axis] - begin)))
            case "step" if one.dim():
                one = one[(slice(None),) * axis + (slice(None, None, data.draw(st.integers(1, 3))),)]
            case "take" if one.dim():
                one = one.select(axis, data.draw(st.integers(0, one.shape[axis] - 1)))
    path = saved(tmp_path_factory.mktemp("strided") / "m.bin", {"x": one, "y": tensor((3,))})
    agrees(path, {"x": one, "y": tensor((3,))})


def test_tensors_that_share_a_storage_parameters_and_metadata(tmp_path) -> None:
    layer = torch.nn.Linear(3, 4)
    state = layer.state_dict()
    assert state._metadata
    weight = torch.nn.Parameter(tensor((5, 2)))
    state |= {"tied": state["weight"], "parameter": weight, "buffer": tensor((2,), torch.int64)}
    path = saved(tmp_path / "m.bin", state)
    agrees(path, state)
    catalog = open_catalog(path)
    assert catalog["tied"].extents == catalog["weight"].extents


@pytest.mark.parametrize("root", ["model", "state_dict", "module", "model_state_dict"])
def test_a_state_dict_inside_of_what_training_saves(tmp_path, root) -> None:
    state = OrderedDict(a=tensor((2, 3)), b=tensor((4,)))
    beside = {"optimizer": {"state": {0: {"exp_avg": tensor((2, 3))}}}, "epoch": 3, "args": {"lr": 0.1, "x": None}}
    path = saved(tmp_path / "m.pth", {root: state, **beside})
    agrees(path, state)
    ignored = open_catalog(path).ignored
    assert {name.removeprefix("m.pth: ") for name in ignored} == set(beside)


def test_what_is_no_tensor_is_ignored_and_listed(tmp_path) -> None:
    path = saved(tmp_path / "m.bin", {"a": tensor((2,)), "epoch": 3, "nested": {"b": tensor((3,))}})
    assert dict(open_catalog(path).ignored) == {
        "m.bin: epoch": "not a tensor",
        "m.bin: nested": "a dictionary inside the state dict",
    }


def test_two_state_dicts_are_one_too_many(tmp_path) -> None:
    path = saved(tmp_path / "m.bin", {"model": {"a": tensor((2,))}, "module": {"a": tensor((3,))}})
    with pytest.raises(SourceError, match="2 state dicts, model, module: it is ambiguous which one is the model"):
        open_catalog(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: saved(p, [tensor((2,))]), "holds no dictionary"),
        (lambda p: saved(p, {"epoch": 3}), "holds no state dict, but epoch"),
        (
            lambda p: saved(p, {"a": tensor((2,))}, _use_new_zipfile_serialization=False),
            "before version 1.6; save it again: .*torch.save",
        ),
        (
            lambda p: saved(p, torch.nn.Linear(2, 2)),
            r"asks for torch\.nn\.modules\.linear\.Linear.*nothing was executed",
        ),
        (lambda p: saved(p, {"a": tensor((3, 1)).expand(3, 4)}), "contiguous"),
        (lambda p: saved(p, {"a": tensor((4,), torch.complex64)}) and p, None),
        (lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), p) or p, "TorchScript"),
        (lambda p: (p.write_bytes(b"") and p) or p, "empty file"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n") and p, "git lfs pull"),
        (lambda p: p.write_bytes(b"/annex/objects/SHA256E-s9--0.bin\n") and p, "git annex get"),
        (lambda p: p.write_bytes(b"hello") and p, "does not begin as a zip"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_files_that_are_none(tmp_path, make, said) -> None:
    path = make(tmp_path / "m.bin")
    if said is None:
        assert open_catalog(path)
        return
    with pytest.raises(StreamconvError) as caught:
        open_catalog(path)
    assert re.search(said, text_of(caught.value))


# Directories ----------------------------------------------------------------------------------------------------------


def llama_state() -> dict[str, Any]:
    return {s.name: tensor(s.shape, torch.bfloat16, number) for number, s in enumerate(hf(LLAMA))}


@pytest.mark.parametrize("spelling", ["pytorch_model-{:05}-of-00003.bin", "pytorch_model_{:05}-of-00003.bin", "index"])
def test_shards(tmp_path, spelling) -> None:
    state, folder = llama_state(), tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    names = list(state)
    pattern = "part{}.bin" if spelling == "index" else spelling
    files = {pattern.format(i + 1): names[i::3] for i in range(3)}
    for file, some in files.items():
        saved(folder / file, {name: state[name] for name in some})
    if spelling == "index":
        index = {"metadata": {}, "weight_map": {name: file for file, some in files.items() for name in some}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    agrees(folder, state)
    streamconv.convert(folder, tmp_path / "ms", max_mem="8G")
    streamconv.convert(tmp_path / "ms", tmp_path / "back", reverse=True, max_mem="8G")
    agrees(tmp_path / "back", state)
    (folder / next(iter(files))).unlink()
    with pytest.raises(SourceError, match=r"lacks 1 shard: "):
        open_catalog(folder)


def test_safetensors_win_and_what_is_no_model_is_never_opened(tmp_path) -> None:
    others = ["optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "consolidated.00.pth"]
    for name in (*others, "adapter_model.bin"):
        (tmp_path / name).write_bytes(b"no torch file")
    (tmp_path / "original").mkdir()
    saved(tmp_path / "pytorch_model.bin", {"a": tensor((2,))})
    assert open_catalog(tmp_path).ignored.keys() == {*others, "adapter_model.bin", "original"}
    samples.write_hf(tmp_path / "hf", LLAMA, hf(LLAMA), 1 << 20)
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "model.safetensors")
    catalog = open_catalog(tmp_path)
    assert catalog.format == "safetensors"
    assert "the safetensors files next to it" in catalog.ignored["pytorch_model.bin"]


def test_torch_and_mindspore_side_by_side_are_a_question(tmp_path) -> None:
    saved(tmp_path / "m.bin", {"a": tensor((2,))})
    streamconv.convert(tmp_path / "m.bin", tmp_path / "m.ckpt", model="raw", max_mem="8G")
    with pytest.raises(SourceError, match=r"torch files \(m\.bin\) and \.ckpt files \(m\.ckpt\)"):
        open_catalog(tmp_path)


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".bin", ".pt", ".pth"])
def test_a_torch_file_in_reverse(tmp_path, ending) -> None:
    samples.write_hf(tmp_path / "hf", LLAMA, hf(LLAMA), 3000)
    streamconv.convert(tmp_path / "hf", tmp_path / "ms", max_mem="8G")
    path = tmp_path / f"out{ending}"
    streamconv.convert(tmp_path / "ms", path, reverse=True, max_mem="8G")
    expected = read(tmp_path / "hf")
    assert read(path) == expected
    for mapped in (False, True):
        state = torch.load(path, weights_only=True, mmap=mapped)
        assert {name: (tuple(one.shape), bits(one)) for name, one in state.items()} == expected
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    streamconv.verify(path)
    streamconv.verify(path, source=tmp_path / "ms", max_mem="8G")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(StreamconvError):
        streamconv.verify(path)


def test_every_dtype_is_written(tmp_path) -> None:
    state = {str(dtype): tensor((3, 2), dtype, number) for number, dtype in enumerate(DTYPES)}
    state["scalar"], state["a name: größe/重み"] = tensor(()), tensor((1,))
    source = saved(tmp_path / "m.bin", state)
    streamconv.convert(source, tmp_path / "out.pt", model="raw", max_mem="8G")
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert {name: (one.dtype, one.shape, bits(one)) for name, one in loaded.items()} == {
        name: (one.dtype, one.shape, bits(one)) for name, one in state.items()
    }


def test_a_family_s_root(tmp_path) -> None:
    case = golden.cases("vit")[0]
    source = case.write_source(tmp_path / "source")
    arguments = {"model": "vit", "max_mem": "8G"}
    streamconv.convert(source, tmp_path / "ms.ckpt", **arguments)
    streamconv.convert(tmp_path / "ms.ckpt", tmp_path / "out.pth", reverse=True, **arguments)
    loaded = torch.load(tmp_path / "out.pth", weights_only=True)
    assert loaded.keys() == {"model"}
    assert read(tmp_path / "out.pth") == read(source)


def test_a_torch_file_holds_no_mindspore_names(tmp_path) -> None:
    samples.write_hf(tmp_path / "hf", LLAMA, hf(LLAMA), 1 << 20)
    with pytest.raises(
        UsageError, match=r"(?s)a torch file is for HuggingFace's tensors.*add reverse=True if source is MindSpore's"
    ):
        streamconv.plan(tmp_path / "hf", tmp_path / "out.bin", max_mem="8G")


# Damage ---------------------------------------------------------------------------------------------------------------


def small(path: Path) -> tuple[bytes, dict[str, Any]]:
    state = {"a": tensor((3, 4)), "b": tensor((5,), torch.float16), "c": tensor((4, 6)).t()}
    return saved(path, state).read_bytes(), read(path)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_damaged_byte_is_an_error_or_no_matter(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    whole, expected = small(folder / "m.bin")
    shapes = {name: shape for name, (shape, _) in expected.items()}
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 2))):
        broken[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (folder / "m.bin").write_bytes(broken[: data.draw(st.sampled_from((len(whole), len(whole) - 1, len(whole) // 2)))])
    try:
        found = read(folder / "m.bin")
    except StreamconvError as error:
        assert text_of(error)
    else:
        assert len(found) <= len(shapes)


def test_entries_that_are_compressed(tmp_path) -> None:
    small(tmp_path / "m.bin")
    with (
        zipfile.ZipFile(tmp_path / "m.bin") as old,
        zipfile.ZipFile(tmp_path / "n.bin", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name) * 40)
    with pytest.raises(StreamconvError, match="is compressed, and torch"):
        open_catalog(tmp_path / "n.bin")


def test_a_directory_that_says_there_is_more_than_there_is(tmp_path) -> None:
    whole, _ = small(tmp_path / "m.bin")
    at = whole.rindex(b"PK\5\6")
    forged = whole[: at + 8] + struct.pack("<HH", 0xFFF0, 0xFFF0) + whole[at + 12 :]
    (tmp_path / "m.bin").write_bytes(forged)
    with pytest.raises(SourceError):
        open_catalog(tmp_path / "m.bin")


@pytest.mark.slow
def test_headers_that_the_budget_does_not_allow(tmp_path) -> None:
    state = {f"layer.{i}.weight": tensor((1,)) for i in range(3000)}
    path = saved(tmp_path / "m.bin", state)
    assert len(open_catalog(path)) == 3000
    for room, what in ((20_000, "zip directory"), (600_000, "pickle")):
        with pytest.raises(SourceError, match=rf"the {what} of m\.bin .* \d+ are allowed"):
            open_catalog(path, lambda nbytes=room: HeaderRoom(nbytes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.complex128])
def test_a_dtype_beside_the_tensors_is_ignored(tmp_path, dtype) -> None:
    """A training configuration has such; torch.load(weights_only=True) takes it."""
    path = tmp_path / "a.pth"
    torch.save({"model": {"a": tensor((3,))}, "config": {"dtype": dtype}}, path)
    torch.load(path, weights_only=True)
    assert list(streamconv.open(path)) == ["a"]


# Tensors of other devices ---------------------------------------------------------------------------------------------


class Calling:
    """Pickled as a call of a function that is not installed here, as another device's tensors are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, arguments: Callable[[Any], tuple[Any, ...]]) -> None:
        module, _, function = name.rpartition(".")

        def called(*_: object) -> None:
            raise AssertionError("it is never called")

        called.__module__, called.__qualname__ = module, function
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            if (part := ".".join(parts[:end])) not in sys.modules:
                monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        monkeypatch.setattr(sys.modules[module], function, called, raising=False)
        self.function, self.arguments = called, arguments

    def __call__(self, one: Any) -> Any:
        return _Reduced(self.function, self.arguments(one))


class _Reduced:
    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.reduced


NPU = "torch_npu.utils.storage._rebuild_npu_tensor"
XLA = "torch._utils._rebuild_device_tensor_from_cpu_tensor"


def npu_arguments(one: Any, *npu_format: Any) -> tuple[Any, ...]:
    strided = one.storage_offset(), tuple(one.size()), one.stride()
    return (one._typed_storage(), *strided, one.requires_grad, OrderedDict(), *npu_format)


@pytest.mark.parametrize("kind", ["a flag", "a number", "an enum"])
def test_tensors_of_ascends_npu(tmp_path, monkeypatch, kind: str) -> None:
    """How the NPU arranges a tensor in its memory says nothing of the bytes in the file, which are the CPU's copy."""
    format_ = Calling(monkeypatch, "torch_npu.npu._format.Format", lambda number: (number,))
    said = {"a flag": True, "a number": 29, "an enum": format_(2)}[kind]
    npu = Calling(monkeypatch, NPU, lambda one: npu_arguments(one, said))
    base = tensor((6, 4), torch.bfloat16)
    state = {"a": tensor((3, 5), seed=1), "slice": base[2:5], "turned": base.T, "scalar": tensor((), torch.int64)}
    agrees(saved(tmp_path / "m.bin", {name: npu(one) for name, one in state.items()}), state)
    around = Calling(monkeypatch, "torch._utils._rebuild_parameter", lambda one: (npu(one), True, OrderedDict()))
    wrapped = {"model": {"w": around(state["a"]), "plain": state["a"]}, "epoch": 1}
    agrees(saved(tmp_path / "p.bin", wrapped), {"w": state["a"], "plain": state["a"]})


@pytest.mark.parametrize("npu_format", [(), (True, {"neg": True})])
def test_npu_tensors_that_torch_npu_does_not_write(tmp_path, monkeypatch, npu_format: tuple[Any, ...]) -> None:
    npu = Calling(monkeypatch, NPU, lambda one: npu_arguments(one, *npu_format))
    with pytest.raises(StreamconvError, match=r"too few values|negated"):
        open_catalog(saved(tmp_path / "m.bin", {"a": npu(tensor((2,)))}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn], ids=str)
def test_tensors_of_xla(tmp_path, monkeypatch, dtype: Any) -> None:
    xla = Calling(monkeypatch, XLA, lambda one: (one, one.dtype, "xla:0", False))
    state = {"a": tensor((3, 5), dtype, 1)}
    agrees(saved(tmp_path / "m.bin", {"a": xla(state["a"])}), state)


def test_a_cast_that_loading_would_make_is_not_left_out(tmp_path, monkeypatch) -> None:
    xla = Calling(monkeypatch, XLA, lambda one: (one, torch.float16, "xla:0", False))
    with pytest.raises(UnsupportedError, match="holds no state dict"):
        open_catalog(saved(tmp_path / "m.bin", {"a": xla(tensor((2,)))}))


@pytest.mark.parametrize("name", ["_rebuild_device_tensor_from_numpy", "_rebuild_xla_tensor"])
def test_devices_that_are_not_read_are_named(tmp_path, monkeypatch, name: str) -> None:
    other = Calling(monkeypatch, f"torch._utils.{name}", lambda one: ([1], one.dtype, "xla:0", False))
    with pytest.raises(UnsupportedError, match=f"asks for torch._utils.{name}") as caught:
        open_catalog(saved(tmp_path / "m.bin", {"a": other(tensor((2,)))}))
    assert "load it with torch and save its state dict alone" in caught.value.hint
