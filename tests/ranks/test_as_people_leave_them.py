"""Trainings as people leave them: moved, mixed up, half there. Nothing is guessed, and nothing is lost in silence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import streamconv
from streamconv.errors import SourceError, UnsupportedError, UsageError
from support import golden, running
from support.golden_ranks import RankCase, case


def copied(one: RankCase, folder: Path) -> Path:
    """A case's output, to be spoiled."""
    return Path(shutil.copytree(one.folder, folder / "output", ignore=shutil.ignore_patterns("case.json")))


def refused(path: Path, *words: str, error: type[Exception] = SourceError, **arguments: object) -> None:
    with pytest.raises(error) as caught:
        streamconv.open(path, **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_folders_that_were_swapped(tmp_path: Path) -> None:
    """The names of files contradict those of their folders: whose slices they hold, nothing tells."""
    ranks = copied(case("d01"), tmp_path) / "checkpoint_network"
    (ranks / "rank_0").rename(ranks / "rank_x")
    (ranks / "rank_1").rename(ranks / "rank_0")
    (ranks / "rank_x").rename(ranks / "rank_1")
    refused(ranks, "is named like the file of rank 1, and is in the folder of rank 0")


@pytest.mark.parametrize("place", ["checkpoint", "."])
def test_a_stray_file_next_to_the_ranks(place: str, tmp_path: Path) -> None:
    output = copied(case("d17"), tmp_path)
    first = next((output / "checkpoint" / "rank_0").glob("*.safetensors"))
    shutil.copy(first, output / place / "best.safetensors")
    refused(output, "best.safetensors", "the files of 2 ranks: it is ambiguous which are meant")
    refused(output / place, "best.safetensors", "ambiguous")


def test_a_folder_whose_disk_is_not_mounted(tmp_path: Path) -> None:
    ranks = copied(case("d16"), tmp_path) / "checkpoint"
    shutil.rmtree(ranks / "rank_1")
    (ranks / "rank_1").symlink_to(tmp_path / "unmounted")
    refused(ranks, "cannot list", "rank_1")


def test_ranks_that_saved_nothing_yet(tmp_path: Path) -> None:
    ranks = copied(case("d16"), tmp_path) / "checkpoint"
    for file in (ranks / "rank_1").iterdir():
        file.rename(file.with_suffix(".tmp"))
    warnings = streamconv.inspect(ranks)["warnings"]
    assert any("rank 1 is missing" in warning for warning in warnings)


def test_redundancy_was_removed_and_a_rank_is_gone(tmp_path: Path) -> None:
    """Without a strategy nothing tells what it held; that it held something is sure."""
    ranks = copied(case("d14"), tmp_path) / "checkpoint"
    shutil.rmtree(ranks.parent / "strategy")
    shutil.rmtree(ranks / "rank_1")
    with pytest.raises((SourceError, UnsupportedError)):
        streamconv.open(ranks)


def test_half_of_a_pipeline_without_strategies(tmp_path: Path) -> None:
    output = copied(case("d04"), tmp_path)
    for gone in ("strategy", "checkpoint/rank_1", "checkpoint/rank_3"):
        shutil.rmtree(output / gone)
    refused(output, "every rank holds other tensors, and rank 1 is missing: what only it held is lost")


@pytest.mark.slow
def test_from_inside_the_folders(tmp_path: Path) -> None:
    """The parent of `.` is found by where it is, and that of a link by either way."""
    one = case("d01")
    ranks = copied(one, tmp_path) / "checkpoint_network"
    (tmp_path / "link").symlink_to(ranks)
    assert len(streamconv.open(tmp_path / "link")) == len(one.unified)
    for cwd, path in ((ranks, "."), (ranks, "./"), (ranks / "rank_0", ".."), (ranks, "rank_0/..")):
        ended = running.run("convert", path, tmp_path / "out", "--model", "raw", "--overwrite", cwd=cwd)
        assert ended.code == 0, ended.err
        assert golden.found(tmp_path / "out") == one.unified


def test_from_inside_an_iteration(tmp_path: Path) -> None:
    one = case("d20")
    output = copied(one, tmp_path)
    ended = running.run("inspect", ".", cwd=output / "checkpoint" / "iteration_00000010")
    assert (ended.code, "iteration 10" in ended.out) == (0, True)


def test_one_rank_where_strategies_tell_of_others(tmp_path: Path) -> None:
    output = copied(case("d01"), tmp_path)
    shutil.rmtree(output / "checkpoint_network" / "rank_1")
    refused(output / "checkpoint_network" / "rank_0", "the file of rank 0", error=UnsupportedError)
    refused(output, "rank 1 is missing")


def test_a_strategy_of_another_model(tmp_path: Path) -> None:
    output = copied(case("d13"), tmp_path)
    strategy = case("d04").strategy_files[0].parent
    refused(output, "names none of the tensors that the ranks hold", strategy=strategy)


def test_a_step_that_may_be_an_iteration(tmp_path: Path) -> None:
    output = copied(case("d17"), tmp_path)
    shutil.copytree(case("d20").checkpoint, output / "checkpoint" / "iteration_00000010")
    refused(output, "may be iteration_00000010, or a step in the folders", error=UsageError, step=10)
    assert len(streamconv.open(output, step="1_10")) == len(case("d17").unified)
    refused(output, "step is empty", error=UsageError, step="")


def test_another_step_is_named_where_the_newest_is_half_written(tmp_path: Path) -> None:
    output = copied(case("d17"), tmp_path)
    for path in output.glob("checkpoint/rank_*/*1_10.safetensors"):
        path.chmod(0o600)
        os.truncate(path, path.stat().st_size // 2)
    refused(output, "truncated", "choose another step")
    assert len(streamconv.open(output, step="1_5")) == len(case("d17").unified)


def test_metadata_that_exchanges_two_slices(tmp_path: Path) -> None:
    """Of a layout with several axes on a dimension: other tensors of the same layout tell who has which slice."""
    folder = copied(case("d19"), tmp_path) / "checkpoint" / "iteration_00000010"
    stated = json.loads((folder / "metadata.json").read_text())
    one, other = ("('output_layer.weight', (0,))", "('output_layer.weight', (1,))")
    storage = stated["storage_data"]
    storage[one], storage[other] = storage[other], storage[one]
    (folder / "metadata.json").chmod(0o600)
    (folder / "metadata.json").write_text(json.dumps(stated))
    refused(folder, "output_layer.weight", "is stored by rank", "other tensors of its layout")
