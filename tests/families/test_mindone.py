"""Checkpoints that mindone saved: what names tell, and what only a checkpoint of the other side does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv.errors import BudgetError, DestinationError, SourceError, StreamconvError, UnsupportedError, UsageError
from streamconv.formats import safetensors
from streamconv.tensors.dtypes import F32
from streamconv.tensors.refs import TensorSpec
from support import golden

CELLS = {
    "embed.embedding_table": (10, 8),
    "bn.gamma": (8,),
    "bn.beta": (8,),
    "bn.moving_mean": (8,),
    "bn.moving_variance": (8,),
    "conv.weight": (8, 2, 1, 3),
    "conv.bias": (8,),
    "pos.weight_g": (1, 1, 1, 8),
    "image.weight": (8, 2, 3, 3),
    "proj.weight": (3, 8),
}


def store(path: Path, cells: dict[str, tuple[int, ...]]) -> Path:
    specs = [TensorSpec(name, F32, shape) for name, shape in cells.items()]
    data = {spec.name: golden.golden_bytes(spec) for spec in specs}
    golden.write(path, safetensors.lay_out(path.name, specs, {}), data)
    return path


@pytest.fixture
def saved(tmp_path) -> Path:
    return store(tmp_path / "model.safetensors", CELLS)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (_, shape, _) in golden.found(path).items()}


def test_which_convolutions_are_one_dimensional_is_asked(saved, tmp_path) -> None:
    with pytest.raises(UsageError, match=r'"conv1d": "false"(.|\n)*"conv1d": "true"'):
        streamconv.plan(saved, tmp_path / "hf", model="mindone", reverse=True, max_mem="8G")


@pytest.mark.parametrize(("conv1d", "conv", "pos"), [(True, (8, 2, 3), (1, 1, 8)), (False, (8, 2, 1, 3), (1, 1, 1, 8))])
def test_names_and_axes(saved, tmp_path, conv1d, conv, pos) -> None:
    streamconv.convert(saved, tmp_path / "hf", model="mindone", reverse=True, options={"conv1d": conv1d}, max_mem="8G")
    assert shapes(tmp_path / "hf") == {
        "embed.weight": (10, 8),
        "bn.weight": (8,),
        "bn.bias": (8,),
        "bn.running_mean": (8,),
        "bn.running_var": (8,),
        "conv.weight": conv,
        "conv.bias": (8,),
        "pos.weight_g": pos,
        "image.weight": (8, 2, 3, 3),
        "proj.weight": (3, 8),
    }
    before, after = golden.found(saved), golden.found(tmp_path / "hf")
    assert sorted(digest for *_, digest in before.values()) == sorted(digest for *_, digest in after.values())


def test_a_gamma_by_itself_is_not_taken_for_a_norm_s(tmp_path) -> None:
    """Models with a scale for each layer call it so in HuggingFace too."""
    saved = store(tmp_path / "model.safetensors", {"block.gamma": (8,), "block.proj.weight": (8, 8)})
    with pytest.raises(SourceError, match=r"block\.beta: missing"):
        streamconv.plan(saved, tmp_path / "hf", model="mindone", reverse=True, max_mem="8G")


@pytest.mark.parametrize("options", [{}, {"conv1d": True}])
def test_names_of_huggingface_do_not_tell_the_cells(saved, tmp_path, options) -> None:
    with pytest.raises(StreamconvError, match=r"which cells are MindSpore's own(.|\n)*config=.DIR.") as error:
        streamconv.plan(saved, tmp_path / "ms", model="mindone", options=options, max_mem="8G")
    assert "random weights" in error.value.hint


HF = {
    "embed.weight": (10, 8),
    "bn.weight": (8,),
    "bn.bias": (8,),
    "bn.running_mean": (8,),
    "bn.running_var": (8,),
    "bn.num_batches_tracked": (),
    "conv.weight": (8, 2, 3),
    "flat.weight": (8, 2, 1, 3),
    "scale.gamma": (8,),
    "cls": (),
}
MS = {
    "embed.embedding_table": (10, 8),
    "bn.gamma": (8,),
    "bn.beta": (8,),
    "bn.moving_mean": (8,),
    "bn.moving_variance": (8,),
    "conv.weight": (8, 2, 1, 3),
    "flat.weight": (8, 2, 1, 3),
    "scale.gamma": (8,),
    "cls": (),
}


def model(folder: Path, cells: dict[str, tuple[int, ...]]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "made-up"}')
    store(folder / "model.safetensors", cells)
    return folder


@pytest.fixture
def hf(tmp_path) -> Path:
    return model(tmp_path / "hf", HF)


@pytest.fixture
def ms(tmp_path) -> Path:
    return model(tmp_path / "ms", MS)


def convert(source: Path, dest: Path, **more: Any) -> Path:
    streamconv.convert(source, dest, model="mindone", max_mem="8G", **more)
    return dest


def test_there_and_back_by_what_the_other_side_lists(hf, ms, tmp_path) -> None:
    there = convert(hf, tmp_path / "there", config=ms)
    assert shapes(there) == MS
    assert (there / "config.json").read_text().split() == ["{", '"model_type":', '"made-up"', "}"]
    back = convert(there, tmp_path / "back", reverse=True, config=hf)
    counted = {"bn.num_batches_tracked"}
    assert golden.found(back) == {name: one for name, one in golden.found(hf).items() if name not in counted}


def test_what_was_converted_so_asks_for_the_other_side_s_checkpoint_again(hf, ms, tmp_path) -> None:
    there = convert(hf, tmp_path / "there", config=ms)
    streamconv.verify(there, source=hf, config=ms, max_mem="8G")
    with pytest.raises(UsageError, match=r"config=.DIR."):
        streamconv.verify(there, source=hf, max_mem="8G")
    with pytest.raises(UsageError, match=r"config=.DIR."):
        streamconv.plan(there, tmp_path / "back", reverse=True, max_mem="8G")


def test_the_plan_has_no_option_that_the_listing_decides(hf, ms, tmp_path) -> None:
    plan = streamconv.plan(hf, tmp_path / "there", model="mindone", config=ms, max_mem="8G")
    assert "conv1d" not in str(plan)
    with pytest.raises(UsageError, match=r"omit options\[.conv1d"):
        streamconv.plan(hf, tmp_path / "x", model="mindone", config=ms, options={"conv1d": True}, max_mem="8G")


def test_a_model_that_is_not_the_listed_one_is_refused(hf, ms, tmp_path) -> None:
    other = model(tmp_path / "other", {**HF, "embed.weight": (11, 8), "head.weight": (3, 8)})
    with pytest.raises(UnsupportedError, match=r"head\.weight: no rule(.|\n)*\[11, 8\] does not fit \[10, 8\]"):
        streamconv.plan(other, tmp_path / "x", model="mindone", config=ms, max_mem="8G")
    other = model(tmp_path / "wider", {**HF, "conv.weight": (8, 2, 5)})
    with pytest.raises(UnsupportedError, match=r"conv\.weight: shape \[8, 2, 1, 5\] does not fit \[8, 2, 1, 3\]"):
        streamconv.plan(other, tmp_path / "x", model="mindone", config=ms, max_mem="8G")
    other = model(tmp_path / "another", {**MS, "up.weight": (8, 2, 1, 3)})
    with pytest.raises(UnsupportedError, match=r"up\.weight: the checkpoint given as config has no such weight"):
        streamconv.plan(other, tmp_path / "x", model="mindone", reverse=True, config=hf, max_mem="8G")


def test_the_source_itself_and_a_directory_without_weights_list_nothing(hf, ms, tmp_path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    for config in (hf, tmp_path / "bare", ms / "config.json"):
        with pytest.raises(UsageError, match=r"config=.DIR."):
            streamconv.plan(hf / "model.safetensors", tmp_path / "x", model="mindone", config=config, max_mem="8G")


def test_a_result_does_not_replace_what_lists_its_names(hf, ms, tmp_path) -> None:
    with pytest.raises(DestinationError, match="is a directory that the run reads"):
        convert(hf, ms, config=ms, overwrite=True)


def test_all_comes_back_but_what_mindspore_does_not_count(hf, ms) -> None:
    found = list(streamconv.check("mindone", hf, config=ms, max_mem="8G"))
    assert [one.text for one in found if one.is_error] == []
    assert "all but 1 come back" in found[-1].text
    assert any(one.is_error and "config" in one.text for one in streamconv.check("mindone", hf, max_mem="8G"))


def test_processes_that_share_a_conversion_read_the_same_listing(hf, ms, tmp_path) -> None:
    for number in (1, 2):
        convert(hf, tmp_path / "there", config=ms, part=f"{number}/2")
    assert shapes(tmp_path / "there") == MS


@pytest.mark.parametrize("place", ["bare", "bare/model.safetensors"])
def test_weights_without_a_config_list_names_too(hf, ms, tmp_path, place) -> None:
    (tmp_path / "bare").mkdir()
    (ms / "model.safetensors").rename(tmp_path / "bare" / "model.safetensors")
    there = convert(hf, tmp_path / "there", config=tmp_path / place)
    assert shapes(there) == MS
    assert (there / "config.json").is_file()
    with pytest.raises(UsageError, match="holds weights and no config, and llama reads only"):
        streamconv.plan(hf, tmp_path / "x", model="llama", config=tmp_path / place, max_mem="8G")


def test_a_listing_of_the_source_s_side_is_refused(hf, ms, tmp_path) -> None:
    there = convert(hf, tmp_path / "there", config=ms)
    back = convert(there, tmp_path / "back", reverse=True, config=hf)
    with pytest.raises(UsageError, match=r"back.* is HuggingFace's, as the source is"):
        streamconv.plan(hf, tmp_path / "x", model="mindone", config=back, max_mem="8G")
    with pytest.raises(UsageError, match=r"there.* is MindSpore's, as the source is"):
        streamconv.plan(ms, tmp_path / "x", model="mindone", reverse=True, config=there, max_mem="8G")


@pytest.mark.slow
def test_a_listing_needs_memory_too(hf, tmp_path) -> None:
    listed = model(tmp_path / "listed", {f"layers.{number}.weight": (1,) for number in range(9_000)})
    with pytest.raises(BudgetError, match=r"(planning 9010 tensors|the header of model).* needs") as error:
        streamconv.plan(hf, tmp_path / "x", model="mindone", config=listed, max_mem="72M")
    assert error.value.hint


def test_a_broken_listing_is_not_ignored(hf, ms, tmp_path) -> None:
    (ms / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        streamconv.plan(hf, tmp_path / "x", model="mindone", config=ms, max_mem="8G")
