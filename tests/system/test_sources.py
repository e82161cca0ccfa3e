"""What people give as SOURCE, from the command line to what it says: nothing of it becomes half a model in silence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv.formats import ckpt, safetensors, shards
from streamconv.formats.catalog import open_catalog
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import running

#: What is made of a whole model in `folder`, and the path to give.
Make = Callable[[Path], Path]


def in_shards(pattern: str, lost: int) -> Make:
    """One tensor a shard, without an index; one shard is lost."""

    def make(folder: Path) -> Path:
        shutil.rmtree(folder)
        folder.mkdir()
        for number in (1, 2, 3, 4):
            if number != lost:
                output = safetensors.lay_out("x", [TensorSpec(f"t{number}", dtypes.F32, (2,))], {})
                (folder / pattern.format(number)).write_bytes(b"".join(data for _, data in output.literals) + bytes(8))
        return folder

    return make


def next_to(name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name.format(first=sorted(folder.glob("*.safetensors"))[0].name)).touch()
        return folder

    return make


def hub_cache(folder: Path) -> Path:
    root = folder.parent / "models--o--m"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    (root / "blobs").mkdir()
    (root / "snapshots").mkdir()
    folder.rename(root / "snapshots" / "abc")
    return root


def stale_index(folder: Path) -> Path:
    next(folder.glob("*.safetensors")).rename(folder / "model.safetensors")
    (folder / shards.HF_INDEX).write_bytes(shards.index_bytes(0, {"a": "model-00001-of-00002.safetensors"}))
    return folder


def one_rank(folder: Path) -> Path:
    for rank in (0, 1):
        target = folder.parent / "checkpoint" / f"rank_{rank}"
        target.mkdir(parents=True)
        shutil.copy(next(folder.glob("*.safetensors")), target / f"llama_rank_{rank}-1_5.safetensors")
    return folder.parent / "checkpoint" / "rank_1"


def iteration(folder: Path) -> Path:
    target = folder.parent / "checkpoint" / "iteration_00000005"
    target.mkdir(parents=True)
    for kind in ("model", "opt"):
        for rank in (0, 1):
            shutil.copy(next(folder.glob("*.safetensors")), target / f"llama-{kind}-{rank:07}-0000002.safetensors")
    return target


DEEPSEEK, KIMI = "model-{:05}-of-000004.safetensors", "model-{}-of-4.safetensors"
REFUSED: dict[str, tuple[Make, int, str, str]] = {
    "DeepSeek's names": (in_shards(DEEPSEEK, 3), 3, f"lacks 1 shard: {DEEPSEEK.format(3)}", "download them again"),
    "Kimi's names": (in_shards(KIMI, 3), 3, f"lacks 1 shard: {KIMI.format(3)}", "download them again"),
    "spaces": (in_shards("model {} of 4.safetensors", 3), 3, "lacks 1 shard: model 3 of 4.safetensors", "download"),
    "no separators": (in_shards("m{}of4.safetensors", 4), 3, "lacks 1 shard: m4of4.safetensors", "download"),
    "parentheses": (in_shards("m({}of4).safetensors", 1), 3, "lacks 1 shard: m(1of4).safetensors", "download"),
    "aria2": (next_to("{first}.aria2"), 3, "aria2's control file", "let the download finish"),
    "a config": (next_to("config.json.part"), 3, "config.json is not complete", "let the download finish"),
    "a browser": (next_to("{first}.crdownload"), 3, "Chrome's partial download", "let the download finish"),
    "a repository's cache": (hub_cache, 3, "holds no weights itself", "models--o--m/snapshots/abc"),
    "a stale index": (stale_index, 3, "model.safetensors would be a whole checkpoint", "give that file, or remove"),
    "one rank": (one_rank, 4, "the file of rank 1 of a distributed checkpoint", "which holds the files of all ranks"),
    "an iteration": (iteration, 3, "2 files of a distributed checkpoint and no metadata.json", "another iteration"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_refused_with_the_next_step(tmp_path: Path, capsys: Any, command: str, what: str) -> None:
    make, code, said, hint = REFUSED[what]
    running.tiny(tmp_path / "model", shard=1 << 40)
    source = make(tmp_path / "model")
    ended = running.call(capsys, command, source, tmp_path / "dest", "--model", "raw")
    assert ended.code == code, ended.err
    error, _, advice = ended.err.partition("\nhint: ")
    assert said in error
    assert hint in advice
    assert not (tmp_path / "dest").exists()


def test_inspect_shows_warnings(tmp_path: Path, capsys: Any) -> None:
    running.tiny(tmp_path / "model", shard=1 << 40)
    target = tmp_path / "rank_0" / "llama_rank_0-1_5.safetensors"
    target.parent.mkdir()
    next((tmp_path / "model").glob("*.safetensors")).rename(target)
    why = "llama_rank_0-1_5.safetensors is named like the file of one rank; it is read as a whole model"
    assert running.call(capsys, "inspect", target.parent).out.splitlines()[-1] == f"warning: {why}"
    assert streamconv.inspect(target)["warnings"] == [why]


def test_lightnings_checkpoint_becomes_a_ckpt_and_comes_back(tmp_path: Path, capsys: Any) -> None:
    torch = pytest.importorskip("torch")
    state = {"net.w": torch.arange(6.0).reshape(2, 3), "net.b": torch.ones(3, dtype=torch.bfloat16)}
    torch.save({"state_dict": state, "epoch": 1, "loops": {}}, tmp_path / "last.ckpt")
    ended = running.call(capsys, "convert", tmp_path / "last.ckpt", tmp_path / "out.ckpt", "--model", "raw", "--verify")
    assert ended.code == 0, ended.err
    assert open_catalog(tmp_path / "out.ckpt").format == "ckpt"
    assert running.call(capsys, "diff", tmp_path / "last.ckpt", tmp_path / "out.ckpt").code == 0


def test_shards_of_a_ckpt_are_read_as_one_checkpoint(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "model").mkdir()
    for number in (1, 2, 3):
        output = ckpt.lay_out("x", [TensorSpec(f"t{number}", dtypes.F32, (2,))])
        data = b"".join(data for _, data in output.literals) + bytes([number] * 8)
        (tmp_path / "model" / f"m-{number}-of-3.ckpt").write_bytes(data)
    ended = running.call(capsys, "convert", tmp_path / "model", tmp_path / "out.ckpt", "--model", "raw", "--verify")
    assert ended.code == 0, ended.err
    assert list(open_catalog(tmp_path / "out.ckpt").tensors) == ["t1", "t2", "t3"]
    assert running.call(capsys, "diff", tmp_path / "model", tmp_path / "out.ckpt").code == 0
    (tmp_path / "model" / "m-2-of-3.ckpt").unlink()
    ended = running.call(capsys, "plan", tmp_path / "model", tmp_path / "dest", "--model", "raw")
    assert ended.code == 3
    assert "lacks 1 shard: m-2-of-3.ckpt" in ended.err
