"""streamconv.formats.contents and files: a file is read as what it is, whatever its name ends in."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from streamconv.errors import SourceError, StreamconvError, UnsupportedError
from streamconv.formats import ckpt, contents, safetensors, shards, torch_writer
from streamconv.formats.catalog import open_catalog
from streamconv.tensors import dtypes
from streamconv.tensors.refs import OutputFile, TensorSpec
from support.helpers import text_of

ENDINGS = [".safetensors", ".ckpt", ".bin", ".pt", ".pth"]
SPECS = [TensorSpec("w", dtypes.F32, (2,))]
WRITERS: dict[str, Callable[[], OutputFile]] = {
    "safetensors": lambda: safetensors.lay_out("m", SPECS, {}),
    "ckpt": lambda: ckpt.lay_out("m", SPECS),
    "torch": lambda: torch_writer.lay_out("m", SPECS, None),
}


def refused(path: Path, *expected: str, error: type[StreamconvError] = SourceError) -> None:
    with pytest.raises(error) as caught:
        open_catalog(path)
    said = text_of(caught.value)
    assert [text for text in expected if text not in said] == [], said


@pytest.fixture
def content(file_bytes) -> Callable[[str], bytes]:
    return lambda kind: file_bytes(WRITERS[kind](), {"w": b"12345678"})


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_under_every_name(tmp_path, content, ref_bytes, kind: str, ending: str) -> None:
    path = tmp_path / f"m{ending}"
    path.write_bytes(content(kind))
    for given in (path, tmp_path):
        catalog = open_catalog(given)
        assert (catalog.format, ref_bytes(catalog["w"])) == (kind, b"12345678")
    assert contents.format_of(path) == kind


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_cut_off_is_said_to_be(tmp_path, content, kind: str, ending: str) -> None:
    path = tmp_path / f"m{ending}"
    path.write_bytes(content(kind)[:-3])
    refused(path, f"m{ending}", "truncated")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", [4096, 100_000, 64])
def test_zeros_only(tmp_path, ending: str, size: int) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(bytes(size))
    for given in (path, tmp_path):
        refused(given, f"model{ending} holds nothing but zeros", "copy or download the file again")
    path.write_bytes(bytes(size) + b"\1" * 5000)
    if size >= 512:
        refused(path, f"model{ending} begins with 512 zeros: it was not downloaded or copied completely")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("data", "said", "error"),
    [
        (b"GGUF\3\0\0\0" + bytes(100), "is a GGUF file, not a checkpoint", UnsupportedError),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file", UnsupportedError),
        (gzip.compress(b"x" * 100, mtime=0), "is compressed, not a checkpoint; unpack it first", UnsupportedError),
        (b"\n<!DOCTYPE html>\n<html><body>404", "is a web page, not a checkpoint; copy or download", SourceError),
        (b"<html lang=en>" + b" " * 100, "is a web page", SourceError),
    ],
)
def test_what_is_no_checkpoint(tmp_path, ending: str, data: bytes, said: str, error: type[StreamconvError]) -> None:
    path = tmp_path / f"m{ending}"
    path.write_bytes(data)
    refused(path, f"m{ending}", said, error=error)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "data", [b"x", b"\n", b"\n\x05\n", b"\x08\0\0\0\0\0\0\0{", b"\x0a\xff\xff\xff", b"hello world"]
)
def test_what_is_nothing_is_refused_by_its_name(tmp_path, ending: str, data: bytes) -> None:
    path = tmp_path / f"m{ending}"
    path.write_bytes(data)
    assert contents.format_of(path) is None
    refused(path, f"m{ending}", error=StreamconvError)


def test_shards_of_several_formats(tmp_path, content, file_bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content("safetensors"))
    other = torch_writer.lay_out("b", [TensorSpec("v", dtypes.F32, (2,))], None)
    (tmp_path / "b.safetensors").write_bytes(file_bytes(other, {"v": bytes(8)}))
    refused(tmp_path, "holds shards of several formats: a.safetensors (safetensors), b.safetensors (torch)")


def test_tensors_without_elements(tmp_path, file_bytes) -> None:
    """As DeepSpeed's ZeRO-3 leaves them on the rank that saves."""
    specs = [TensorSpec(f"w{number}", dtypes.F32, (0,)) for number in range(3)]
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes(safetensors.lay_out("m", specs, {}), {spec.name: b"" for spec in specs}))
    (said,) = open_catalog(tmp_path).warnings
    assert said.startswith("all 3 tensors are empty: DeepSpeed's ZeRO-3 leaves such a file")
    specs.append(TensorSpec("v", dtypes.F32, (1,)))
    path.write_bytes(file_bytes(safetensors.lay_out("m", specs, {}), {spec.name: bytes(spec.nbytes) for spec in specs}))
    assert open_catalog(tmp_path).warnings == ()


# PyTorch Lightning ----------------------------------------------------------------------------------------------------


def test_lightnings_checkpoint(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    state = {"model.w": torch.arange(4.0), "model.b": torch.ones(2)}
    saved = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}],
        "hyper_parameters": {"lr": 1e-3},
    }
    torch.save(saved, tmp_path / "last.ckpt")
    for given in (tmp_path, tmp_path / "last.ckpt"):
        catalog = open_catalog(given)
        assert (sorted(catalog), catalog.format) == (["model.b", "model.w"], "torch")
    assert catalog.ignored["last.ckpt: optimizer_states"] == "not part of the model"


def test_a_file_from_before_torch_1_6_named_ckpt(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "m.ckpt", "the format that torch wrote before version 1.6", error=UnsupportedError)


# Indices that Windows wrote -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [shards.HF_INDEX, shards.MS_MAP, shards.TORCH_INDEX])
def test_an_index_with_a_byte_order_mark(tmp_path, content, name: str) -> None:
    kind, shard = ("torch", "m.bin") if name == shards.TORCH_INDEX else ("safetensors", "m.safetensors")
    (tmp_path / shard).write_bytes(content(kind))
    text = shards.index_bytes(0, {"w": shard})
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text)
    assert list(open_catalog(tmp_path)) == ["w"]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        (tmp_path / name).write_bytes(text.decode().encode(encoding))
        refused(tmp_path, f"{name} is UTF-16; save it as UTF-8")


def test_a_header_with_a_byte_order_mark(tmp_path, content) -> None:
    """Neither the safetensors library nor MindSpore takes one."""
    whole = content("safetensors")
    header = b"\xef\xbb\xbf" + whole[8:-8]
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + whole[-8:])
    refused(tmp_path, "m.safetensors", "not valid JSON")
