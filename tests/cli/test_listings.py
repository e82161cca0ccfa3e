"""What `inspect` and `models` say, to people and to programs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import streamconv
from streamconv.families import families, spell
from streamconv.formats.catalog import open_catalog
from streamconv.text import counted
from support import FIXTURES, golden, running
from support.running import call


@pytest.mark.parametrize("kind", ["hf", "dest", "dest.ckpt"])
def test_inspect_names_every_tensor(kind: str, tmp_path: Path, capsys) -> None:
    path = source = running.llama(tmp_path / "source")
    if kind != "hf":
        path = tmp_path / kind
        streamconv.convert(source, path)
    ended = call(capsys, "inspect", path)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    catalog = open_catalog(path)
    for ref in catalog.values():
        file = ref.extents[0].file.path.name
        assert f"{ref.name}  {ref.dtype}  {list(ref.shape)}  {ref.nbytes}  {file}" in lines
    assert lines[len(catalog)].startswith(f"{len(catalog)} tensors, ")
    assert lines[len(catalog)].endswith(f"in {counted(len(catalog.files), 'file')} of format {catalog.format}")


@pytest.mark.parametrize("name", ["many_dtypes.ckpt", "many_dtypes.safetensors", "sliced_1KiB.ckpt", "int4.ckpt"])
def test_inspect_json_tells_where_every_byte_lies(name: str, capsys) -> None:
    values = json.loads(call(capsys, "inspect", FIXTURES / name, "--json").out)
    data = (FIXTURES / name).read_bytes()
    assert values["files"] == {name: len(data)}
    assert values["format"] == name.split(".")[1]
    catalog = open_catalog(FIXTURES / name)
    assert [t["name"] for t in values["tensors"]] == list(catalog)
    for tensor in values["tensors"]:
        stored = b"".join(data[offset : offset + length] for _, offset, length in tensor["extents"])
        assert stored == golden.stored_bytes(catalog[tensor["name"]])
        assert len(stored) == tensor["bytes"]
        assert (tensor["dtype"], tuple(tensor["shape"])) == (
            catalog[tensor["name"]].dtype.name,
            catalog[tensor["name"]].shape,
        )


def test_what_is_left_alone_is_said(tmp_path: Path, capsys) -> None:
    source = running.llama(tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(b"torch")
    (source / "original").mkdir()
    ended = call(capsys, "inspect", source)
    assert "ignored: original (a subdirectory" in ended.out
    assert "ignored: pytorch_model.bin (a torch file" in ended.out
    assert set(json.loads(call(capsys, "inspect", source, "--json").out)["ignored"]) == {
        "original",
        "pytorch_model.bin",
    }
    assert "ignored  " in str(streamconv.plan(source, tmp_path / "dest"))


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (lambda p: None, 3, "No such file or directory\nhint: check the path"),
        (lambda p: p.mkdir(), 3, "holds no file to read that ends in .safetensors, .ckpt, .bin"),
        (lambda p: p.write_bytes(b""), 4, "neither a directory nor a file that ends in .safetensors, .ckpt, .bin"),
    ],
    ids=["nothing", "an empty directory", "another file"],
)
def test_nothing_to_inspect(make, code: int, message: str, tmp_path: Path, capsys) -> None:
    make(tmp_path / "thing")
    ended = call(capsys, "inspect", tmp_path / "thing")
    assert ended.code == code
    assert message in ended.err


def test_a_torch_file(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.bin").write_bytes(b"PK")
    ended = call(capsys, "inspect", tmp_path / "a.bin")
    assert ended.code == 4
    assert "it does not begin as a zip archive" in ended.err


def test_models_lists_all(capsys) -> None:
    ended = call(capsys, "models")
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines] == [family.name for family in families()]
    for line, family in zip(lines, families(), strict=True):
        assert family.title in line
        assert all(option.name in line for option in family.options)


#: Options whose values give no table of their own in some family.
WITHOUT_A_TABLE = ("lora_names", "mtp", "use_gmm", "sft", "decoder", "experts", "quantised", "conv1d")


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_a_family_in_full(family, capsys) -> None:
    ended = call(capsys, "models", family.name)
    assert (ended.code, ended.err) == (0, "")
    assert f"{family.name}: {family.title}" in ended.out
    for part in (*family.model_types, *family.repositories, *(option.help for option in family.options)):
        assert part in ended.out
    table = ended.out.split("names and transforms, HuggingFace -> MindSpore:\n")[1].splitlines()
    assert len(table) >= 1
    lines = [line for line in table if not re.fullmatch(r"  with .*:", line)]
    assert all(" -> " in line or ": dropped, " in line for line in lines)
    titles = "\n".join(line.strip() for line in table if line.startswith("  with "))
    for option in family.options:
        refused = (family.name, option.name) == ("deepseek32", "layout")  # its other value is there to say why not
        if not option.any_positive and not refused and option.name not in WITHOUT_A_TABLE:
            assert re.search(rf"^with {option.name}={spell(option.values[1])}(, .*)?:$", titles, re.MULTILINE)
    (values,) = json.loads(call(capsys, "models", family.name, "--json").out)
    assert values["name"] == family.name
    assert [(o["name"], o["default"]) for o in values["options"]] == [(o.name, o.default) for o in family.options]


def test_plan_prints_every_tensor(tmp_path: Path, capsys) -> None:
    source = running.tiny(tmp_path / "source")
    ended = call(capsys, "plan", source, tmp_path / "dest", "-o", "qkv_concat=true")
    assert (ended.code, ended.err) == (0, "")
    q, k, v = (f"model.layers.1.self_attn.{p}_proj.weight" for p in "qkv")
    assert f"model.layers.1.attention.w_qkv.weight  BF16  [48, 20]  <- {q}, {k}, {v}" in ended.out
    assert "qkv_concat=true" in ended.out
    assert not (tmp_path / "dest").exists()
