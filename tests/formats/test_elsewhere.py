"""streamconv.formats.elsewhere and foreign_shards: a path one level too high, and training frameworks' folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamconv.errors import SourceError, StreamconvError, UnsupportedError
from streamconv.formats import elsewhere, foreign_shards
from streamconv.formats.directory import list_directory
from streamconv.formats.header_room import HeaderRoom
from streamconv.formats.selection import select
from support.helpers import text_of


def make(root: Path, *paths: str) -> None:
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.rpartition(":")[2] if ":" in path else "x")


def refused(path: Path, *expected: str, error: type[StreamconvError] = SourceError) -> None:
    with pytest.raises(error) as caught:
        select(list_directory(path, HeaderRoom()))
    said = text_of(caught.value)
    assert [text for text in expected if text not in said] == [], said


# One level too high ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "where", "give"),
    [
        (["model/model.safetensors"], "they are in model", "model"),
        (["a/b/net.ckpt"], "they are in a/b", "a/b"),
        (
            ["checkpoint-500/model.safetensors", "checkpoint-1000/model.safetensors", "trainer.json", "runs/x.pt"],
            "they are in checkpoint-1000, checkpoint-500",
            "checkpoint-1000, the newest",
        ),
        (
            [f"out/iteration_000000{step}/model-0000000-0000001.safetensors" for step in (10, 20)],
            "out/iteration_00000010, out/iteration_00000020",
            "out/iteration_00000020, the newest",
        ),
        (
            ["checkpoint/rank_0/x_rank_0-1_1.ckpt", "strategy/ckpt_strategy_rank_0.ckpt"],
            "in checkpoint/rank_0;",
            "checkpoint/rank_0",
        ),
        (["hub/models/o/m/model.safetensors", "hub/models/o/m/config.json"], "in hub/models/o/m;", "hub/models/o/m"),
        (["Qwen/Qwen2.5-7B/model-00001-of-00001.safetensors"], "in Qwen/Qwen2.5-7B;", "Qwen/Qwen2.5-7B"),
        (["checkpoint-5/adapter_model.safetensors", "checkpoint-5/optimizer.pt"], "in checkpoint-5;", "checkpoint-5"),
        (["b/model.safetensors", "a/model.safetensors"], "in a, b;", "a, or another of them"),
    ],
)
def test_the_path_to_give(tmp_path: Path, paths: list[str], where: str, give: str) -> None:
    make(tmp_path, *paths)
    refused(tmp_path, f"{tmp_path} holds no weights itself; they", where, f"give {tmp_path}/{give}")


def snapshot(root: Path, repository: str, *revisions: str, main: str = "") -> None:
    for revision in revisions:
        make(root, f"{repository}/blobs/0123", f"{repository}/snapshots/{revision}/config.json")
        (root / repository / "snapshots" / revision / "model.safetensors").symlink_to("../../blobs/0123")
    if main:
        make(root, f"{repository}/refs/x")
        (root / repository / "refs" / "main").write_text(main)


def test_a_repository_in_huggingfaces_cache(tmp_path: Path) -> None:
    snapshot(tmp_path, "models--o--m", "aaa", "bbb", "ccc", main="bbb")
    root = tmp_path / "models--o--m"
    refused(root, "they are in snapshots/bbb;", f"give {root}/snapshots/bbb")
    refused(root / "snapshots", "they are in aaa, bbb, ccc;", f"give {root}/snapshots/aaa, or another of them")
    (root / "refs" / "main").write_text("gone")
    refused(root, "in snapshots/aaa, snapshots/bbb, snapshots/ccc;")
    (root / "refs" / "main").unlink()
    os.mkfifo(root / "refs" / "main")
    refused(root, "in snapshots/aaa, snapshots/bbb, snapshots/ccc;")


def test_a_hub_cache(tmp_path: Path) -> None:
    for name in ("models--o--m", "models--o--n"):
        snapshot(tmp_path, f"hub/{name}", "aaa", "bbb", main="bbb")
    make(tmp_path, "hub/version.txt", "hub/.locks/models--o--m/x.lock")
    found = "models--o--m/snapshots/bbb, models--o--n/snapshots/bbb"
    refused(tmp_path / "hub", f"they are in {found};", f"{tmp_path}/hub/models--o--m/snapshots/bbb, or another of them")
    refused(tmp_path, "hub/models--o--m/snapshots/bbb")


@pytest.mark.parametrize(
    "paths",
    [
        ["config.json", "tokenizer/tokenizer.json"],
        ["checkpoint-500/trainer_state.json", "checkpoint-500/optimizer.pt", "checkpoint-500/rng_state.pth"],
        ["a/b/c/d/e/f/model.safetensors"],
        [".cache/model.safetensors"],
        ["x/consolidated.safetensors"],
    ],
)
def test_where_nothing_is(tmp_path: Path, paths: list[str]) -> None:
    make(tmp_path, *paths)
    refused(tmp_path, "holds no file to read that ends in")


def test_links_in_a_circle_and_folders_without_end(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "loop").symlink_to(".")
    for number in range(40):
        (tmp_path / f"d{number}").mkdir()
    monkeypatch.setattr(elsewhere, "_MOST_FOLDERS", 20)
    refused(tmp_path, "holds no file to read")


def test_the_slices_of_a_distributed_checkpoint_one_level_up(tmp_path: Path) -> None:
    make(tmp_path, *(f"output/checkpoint/rank_{rank}/x_rank_{rank}-1_1.safetensors" for rank in range(2)))
    for folder in ("output", "output/checkpoint"):
        refused(
            tmp_path / folder, "rank_0 holds the file of rank 0 of a distributed checkpoint", error=UnsupportedError
        )
    make(tmp_path, *(f"it/iteration_00000010/model-000000{rank}-0000002.safetensors" for rank in range(2)))
    refused(tmp_path / "it", "is one of the 2 files of a distributed checkpoint, like 1 more", error=UnsupportedError)


# Shards of training frameworks ----------------------------------------------------------------------------------------

ZERO = ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt")
FOLDERS = [
    ("ckpt-5/pytorch_model_fsdp_0", ("__0_0.distcp", "__1_0.distcp"), "PyTorch's FSDP", "merge-weights {folder} OUT"),
    ("dcp", ("__0_0.distcp", ".metadata"), "a distributed checkpoint of PyTorch", "dcp_to_torch {folder} OUT.pt"),
    ("checkpoint-5/global_step500", ZERO, "DeepSpeed's ZeRO", "`python zero_to_fp32.py . OUT` in {above}"),
    ("global_step5", ("zero_pp_rank_0_mp_rank_00_model_states.pt",), "DeepSpeed's ZeRO", "zero_to_fp32.py . OUT"),
    ("iter_0000010", ("__0_0.distcp", "common.pt", "metadata.json"), "Megatron's", "the tools of the Megatron"),
    ("iter_0000001/mp_rank_00", ("model_optim_rng.pt",), "Megatron's", "the tools of the Megatron"),
]  # fmt: skip


@pytest.mark.parametrize(("folder", "names", "what", "hint"), FOLDERS)
def test_the_folder_itself_and_one_level_up(
    tmp_path: Path, folder: str, names: tuple[str, ...], what: str, hint: str
) -> None:
    make(tmp_path, *(f"{folder}/{name}" for name in names), "run/zero_to_fp32.py", "latest")
    path = tmp_path / folder
    told = (f"{path} holds shards of {what}", names[0], hint.format(folder=path, above=path.parent))
    refused(path, *told)
    refused(path.parent, *told)
    refused(tmp_path, *told)


def test_every_kind_is_tried() -> None:
    tried = [foreign_shards.refusal(Path("/x") / folder, names) for folder, names, _, _ in FOLDERS]
    assert None not in tried
    assert len({error.hint.partition("with")[2][:20] for error in tried if error}) == len(foreign_shards.KINDS) - 1


def test_a_model_that_was_gathered_next_to_its_shards_is_read(tmp_path: Path) -> None:
    make(tmp_path, "model.safetensors", "global_step5/mp_rank_00_model_states.pt", "__0_0.distcp", "zero_to_fp32.py")
    assert select(list_directory(tmp_path, HeaderRoom())).names == ["model.safetensors"]


def test_an_optimizers_shards_are_no_model(tmp_path: Path) -> None:
    make(tmp_path, "optimizer_0/__0_0.distcp")
    refused(tmp_path, "holds no file to read")
