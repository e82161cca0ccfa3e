"""streamconv.formats.rank_slices: files of one rank are refused, and the only one of a single card is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streamconv.errors import SourceError, StreamconvError, UnsupportedError
from streamconv.formats import ckpt, safetensors, shards
from streamconv.formats.catalog import open_catalog
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support.helpers import text_of

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path, file_bytes) -> Write:
    """Write a file with one tensor."""

    def run(name: str, tensor: str = "w") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        specs = [TensorSpec(tensor, dtypes.F32, (2,))]
        output = ckpt.lay_out(name, specs) if name.endswith(".ckpt") else safetensors.lay_out(name, specs, {})
        path.write_bytes(file_bytes(output, {tensor: bytes(8)}))
        return path

    return run


def refused(path: Path, *expected: str, error: type[StreamconvError] = UnsupportedError) -> None:
    with pytest.raises(error) as caught:
        open_catalog(path)
    said = text_of(caught.value)
    assert [text for text in expected if text not in said] == [], said
    assert "remove" not in said


# Slices for sure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "llama-", "my-model-"])
def test_an_iteration_of_mindformers_2(write, tmp_path, prefix: str) -> None:
    for number in range(3):
        for what in ("model", "opt"):
            write(f"iteration_00000010/{prefix}{what}-{number:07}-0000003.safetensors")
    (tmp_path / "iteration_00000010" / "metadata.json").write_text("{}")
    refused(
        tmp_path / "iteration_00000010",
        f"{prefix}model-0000000-0000003.safetensors is one of the 3 files of a distributed checkpoint, like 2 more",
        "slices of tensors, not a model",
        "which holds all of them",
    )
    lone = tmp_path / "iteration_00000010" / f"{prefix}model-0000002-0000003.safetensors"
    refused(lone, "is one of the 3 files of a distributed checkpoint: slices")


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("kind", ["1_10", "network", "network-1_10", "trainable_params-1_10"])
def test_rank_folders_of_mindformers(write, tmp_path, ending: str, kind: str) -> None:
    paths = [write(f"checkpoint/rank_{rank}/llama2_7b_rank_{rank}-{kind}{ending}") for rank in (0, 1)]
    for rank, path in enumerate(paths):
        home = f"give {tmp_path / 'checkpoint'}, which holds the files of all ranks"
        told = (f"the file of rank {rank} of a distributed checkpoint", home)
        refused(path, *told)
        refused(path.parent, *told)


def test_rank_0_with_others_only_next_door(write, tmp_path) -> None:
    """The name of the folder decides: MindSpore's functions do not put the rank in the file's name."""
    for rank in range(3):
        write(f"rank_{rank}/net.ckpt")
    refused(tmp_path / "rank_0", "holds the file of rank 0 of a distributed checkpoint, one of 3", f"give {tmp_path},")
    refused(tmp_path / "rank_2" / "net.ckpt", "holds the file of rank 2")
    (tmp_path / "newest").symlink_to("rank_0")
    refused(tmp_path / "newest", "holds the file of rank 0")


def test_ranks_in_one_folder(write, tmp_path) -> None:
    for rank in range(2):
        write(f"llama_rank_{rank}-5_1.safetensors")
    refused(tmp_path, "llama_rank_0-5_1.safetensors is the file of rank 0 of a distributed checkpoint, like 1 more")
    refused(tmp_path / "llama_rank_0-5_1.safetensors", "is the file of rank 0")


def test_another_rank_than_0_alone(write, tmp_path) -> None:
    refused(write("CKP_rank_3-1_4.ckpt"), "CKP_rank_3-1_4.ckpt is the file of rank 3")
    refused(tmp_path, "is the file of rank 3")


def test_a_restarted_run_and_one_that_broke_down(write) -> None:
    refused(write("a/x_rank_2_1-1_4.ckpt"), "rank 2")
    refused(write("b/x_rank_2-1_4_breakpoint.ckpt"), "rank 2")


def test_vllms_sharded_state(write, tmp_path) -> None:
    for rank in range(2):
        write(f"model-rank-{rank}-part-0.safetensors")
    refused(tmp_path, "vLLM's slice for rank 0, like 1 more", "give the checkpoint that vLLM's slices were made from")


@pytest.mark.parametrize(
    "name", ["ckpt_strategy_rank_0.ckpt", "ckpt_strategy.ckpt", "merged_ckpt_strategy.ckpt", "strategy.ckpt"]
)
def test_a_strategy_file(write, tmp_path, name: str) -> None:
    refused(write(name), "is a strategy file of MindSpore", "give the directory of the checkpoint")
    refused(tmp_path, "a strategy file: it says how tensors are cut, and holds none", error=SourceError)
    write("net.ckpt")
    assert open_catalog(tmp_path).ignored == {name: "a strategy file: it says how tensors are cut, and holds none"}


def test_an_optimizers_file_alone(write, tmp_path) -> None:
    write("llama-opt-0000000-0000001.safetensors")
    refused(tmp_path, "the state of an optimizer, not a model", error=SourceError)


# What may be a model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
def test_rank_0_alone_is_read_with_a_warning(write, tmp_path, ending: str) -> None:
    path = write(f"rank_0/llama_rank_0-5_1{ending}")
    (tmp_path / "rank_1").mkdir()  # as of a training that was stopped before it saved
    why = f"llama_rank_0-5_1{ending} is named like the file of one rank"
    for given in (path, path.parent):
        catalog = open_catalog(given)
        assert (list(catalog), catalog.slice_of) == (["w"], why)
        assert catalog.warnings == (f"{why}; it is read as a whole model",)


def test_what_was_merged_is_in_rank_0(write, tmp_path) -> None:
    """MindFormers' transform_ckpt.py writes there: nothing to warn of, but worth a word if shapes do not fit."""
    write("rank_0/checkpoint_0.ckpt")
    catalog = open_catalog(tmp_path / "rank_0")
    assert catalog.warnings == ()
    assert catalog.slice_of == "checkpoint_0.ckpt is in a folder named like that of one rank, rank_0"


def test_a_folder_of_another_rank_alone(write, tmp_path) -> None:
    write("rank_3/net.ckpt")
    assert "a folder named like that of one rank, rank_3" in open_catalog(tmp_path / "rank_3").warnings[0]


def test_a_single_cards_iteration(write, tmp_path) -> None:
    write("model-0000000-0000001.safetensors")
    write("opt-0000000-0000001.safetensors", "adam_m.w")
    catalog = open_catalog(tmp_path)
    assert (list(catalog), catalog.warnings) == (["w"], ())
    assert catalog.ignored == {"opt-0000000-0000001.safetensors": "the state of an optimizer, not a model"}


def test_two_steps_of_a_single_card(write, tmp_path) -> None:
    for step in ("1_5", "1_10", "2_1"):
        write(f"x_rank_0-{step}.safetensors")
    refused(
        tmp_path,
        "holds 3 checkpoints of a training",
        "it is ambiguous which is meant; give the file to convert; the newest is x_rank_0-2_1.safetensors",
        error=SourceError,
    )
    assert list(open_catalog(tmp_path / "x_rank_0-1_10.safetensors")) == ["w"]


# Names that say nothing of the kind -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "lora_rank_16.safetensors",
        "pytorch_lora_weights_rank_32.safetensors",
        "rank_1.safetensors",
        "model-0001-0002.safetensors",
        "rank_8/adapter_model.safetensors",
        "rank_1/model.safetensors",
    ],
)
def test_other_ranks(write, tmp_path, name: str) -> None:
    path = write(name)
    write("rank_0/model.safetensors")
    for given in {path, path.parent}:
        catalog = open_catalog(given)
        assert (list(catalog), catalog.warnings, catalog.slice_of) == (["w"], (), "")


def test_an_index_decides(write, tmp_path) -> None:
    """Whatever the files are called: an index of whole tensors is one."""
    write("net_rank_1-1_1.safetensors")
    (tmp_path / shards.MS_MAP).write_bytes(shards.index_bytes(0, {"w": "net_rank_1-1_1.safetensors"}))
    assert open_catalog(tmp_path).slice_of == ""


def test_a_directory_that_cannot_be_listed(write, tmp_path, monkeypatch) -> None:
    path = write("rank_0/x_rank_0-1_1.ckpt")

    def fail(directory: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("streamconv.storage.disk.listdir", fail)
    assert open_catalog(path).slice_of


# Shards of a whole ----------------------------------------------------------------------------------------------------


def test_one_shard_alone_is_read_with_a_warning(write) -> None:
    path = write("model-00002-of-00003.safetensors")
    assert open_catalog(path).warnings == (
        "model-00002-of-00003.safetensors is shard 2 of 3; for the whole checkpoint, give its directory",
    )
    assert open_catalog(write("model-00001-of-00001.safetensors")).warnings == ()
