"""A memory limit that is too low is refused with one that suffices, whatever needs the memory: two refusals at most."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import streamconv
from streamconv.formats import ckpt, safetensors, shards, torch_writer
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import golden, running

MANY = 30_000


def specs(first: int, count: int) -> list[TensorSpec]:
    names = (f"model.layers.{n // 1000}.mlp.experts.{n % 1000}.down_proj.weight" for n in range(first, first + count))
    return [TensorSpec(name, dtypes.BF16, (1, 1)) for name in names]


def write(path: Path, lay_out: Callable[..., object], some: list[TensorSpec]) -> Path:
    golden.write(path, lay_out(path.name, some), dict.fromkeys((spec.name for spec in some), b"\0\0"))
    return path


def plain(name: str, some: list[TensorSpec]) -> object:
    return safetensors.lay_out(name, some, {})


def one_file(folder: Path) -> Path:
    return write(folder / "model.safetensors", plain, specs(0, MANY))


def indexed(folder: Path, count: int = 20) -> Path:
    where = {}
    for number in range(count):
        some = specs(number * MANY // count, MANY // count)
        path = write(folder / shards.hf_shard_name(number + 1, count), plain, some)
        where.update(dict.fromkeys((spec.name for spec in some), path.name))
    (folder / shards.HF_INDEX).write_bytes(shards.index_bytes(0, where))
    return folder


def without_index(folder: Path) -> Path:
    (indexed(folder) / shards.HF_INDEX).unlink()
    return folder


def of_mindspore(folder: Path) -> Path:
    return write(folder / "model.ckpt", ckpt.lay_out, specs(0, MANY))


def of_torch(folder: Path) -> Path:
    return write(folder / "model.bin", torch_writer.lay_out, specs(0, MANY))


def large_config(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write(folder / "model.safetensors", plain, specs(0, 10))
        (folder / name).write_text(json.dumps({"x": {f"{n:x}": [] for n in range(250_000)}}))
        return folder

    return make


def large_manifest(folder: Path) -> Path:
    write(folder / "model.safetensors", plain, specs(0, 2000))
    streamconv.convert(folder / "model.safetensors", folder / "made", model="raw")
    path = folder / "made" / "streamconv.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "more": {f"{n:x}": [] for n in range(250_000)}}))
    return folder / "made"


SOURCES: dict[str, Callable[[Path], Path]] = {
    "a header": one_file,
    "an index and a header": lambda folder: indexed(folder, 1),
    "an index and many headers": indexed,
    "many headers": without_index,
    "a .ckpt": of_mindspore,
    "a torch file": of_torch,
    "config.json": large_config("config.json"),
    "a manifest": large_manifest,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_limit_that_is_named_suffices(kind: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source, limits = SOURCES[kind](tmp_path / "source"), ["64M"]
    for _ in range(4):
        ended = running.run("convert", source, tmp_path / "dest", "--model", "raw", "--max-mem", limits[-1], "--quiet")
        if ended.code == 0:
            break
        assert ended.code == 6, ended.err
        named = re.search(r"^hint: give --max-mem (\d+M) or more$", ended.err, re.MULTILINE)
        assert named, ended.err
        limits.append(named[1])
    assert ended.code == 0
    assert 2 <= len(limits) <= 3, limits
