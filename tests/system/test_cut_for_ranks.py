"""Checkpoints cut for ranks, end to end: every tensor of every rank is what MindSpore's own functions cut."""

from __future__ import annotations

import importlib.util
import json
import resource
from pathlib import Path

import numpy as np
import pytest

import streamconv
from streamconv.engine import sharing, tasks
from streamconv.errors import UnsupportedError, UsageError
from streamconv.formats import safetensors
from streamconv.ranks.device_layouts import DeviceLayout
from streamconv.ranks.strategy_format import encode
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import cut_ranks, golden, golden_ranks, running, strategies
from support.golden_ranks import RankCase
from support.mindspore_loader import by_mindspore, loaded
from support.running import run, tree, with_large_values

needs_mindspore = pytest.mark.skipif(not importlib.util.find_spec("mindspore"), reason="no wheel for this Python")


def cut(case: RankCase, tmp_path: Path, source: str = "whole.safetensors", **arguments: object) -> Path:
    """A golden case, cut again from its whole tensors."""
    dest = tmp_path / "ranks"
    whole = cut_ranks.write_whole(tmp_path / source, case)
    streamconv.convert(whole, dest, model="raw", dest_strategy=case.strategy_files, **arguments)
    return dest


def check_ranks(case: RankCase, dest: Path, ending: str) -> None:
    """Every rank has what the case says; where the case lacks copies on purpose, at least that."""
    assert {path.name for path in dest.glob("rank_*")} == {f"rank_{rank}" for rank in range(case.world_size)}
    for rank, expected in case.slices.items():
        held = cut_ranks.described(dest / f"rank_{rank}" / f"checkpoint_{rank}.{ending}")
        assert {name: held.get(name) for name in expected} == expected, rank
        assert held.keys() == expected.keys() or "remove_redundancy" in case.name, rank


@pytest.mark.parametrize("case", cut_ranks.CUT, ids=lambda case: case.name)
@pytest.mark.parametrize(("ending", "links"), [("ckpt", True), ("safetensors", False)])
def test_slices_are_those_of_mindspore(case: RankCase, ending: str, links: bool, tmp_path: Path) -> None:
    dest = cut(case, tmp_path, f"whole.{ending}", format=ending, links=links)
    check_ranks(case, dest, ending)
    assert streamconv.verify(dest).tensors
    assert streamconv.verify(dest, sample=0.5, seed=1).tensors
    assert streamconv.verify(dest, source=tmp_path / f"whole.{ending}").tensors == len(
        {**case.unified, **case.not_in_strategy}
    )


def write_hf(folder: Path, case: RankCase) -> Path:
    """The HuggingFace model that a case was made from."""
    folder.mkdir()
    specs = [TensorSpec(name, dtypes.from_safetensors(d, "here"), shape) for name, (d, shape, _) in case.hf.items()]
    file = safetensors.lay_out("model.safetensors", specs, {"format": "pt"})
    golden.write(folder / file.name, file, {spec.name: golden.golden_bytes(spec) for spec in specs})
    (folder / "config.json").write_text(json.dumps(case.model["config"]))
    return folder


@pytest.mark.parametrize(
    "case", [c for c in cut_ranks.CUT if not c.values.get("hf_bytes_not_by_golden_rule")], ids=lambda case: case.name
)
def test_a_model_is_converted_and_cut_in_one_go(case: RankCase, tmp_path: Path) -> None:
    source, dest = write_hf(tmp_path / "hf", case), tmp_path / "ranks"
    options = case.model["options"]
    streamconv.convert(source, dest, model=case.model["model"], options=options, strategy=case.strategy_files[0].parent)
    for rank, expected in case.slices.items():
        held = cut_ranks.described(dest / f"rank_{rank}" / f"checkpoint_{rank}.safetensors")
        wanted = {name: one for name, one in expected.items() if name in case.unified and not name.startswith("adam_")}
        assert {name: held.get(name) for name in wanted} == wanted, rank
    assert (dest / "config.json").exists()
    assert streamconv.verify(dest, source=source).tensors == len(held_names(dest))


def held_names(dest: Path) -> set[str]:
    """The names in the files of all ranks."""
    return {name for path in dest.glob("rank_*/*") for name in golden_ranks.arrays(path)}


@needs_mindspore
@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize("start", ["d01", "d07", "d08"])
def test_mindspore_loads_every_slice(start: str, ending: str, tmp_path: Path) -> None:
    case = golden_ranks.case(start)
    dest = cut(case, tmp_path, format=ending)
    rank = case.world_size - 1
    path = dest / f"rank_{rank}" / f"checkpoint_{rank}.{ending}"
    expected = {name: (shape, digest) for name, (_, shape, digest) in cut_ranks.described(path).items()}
    assert {name: (shape, digest) for name, (_, shape, digest) in loaded(path).items()} == expected


_MERGE = """
import sys
import mindspore as ms
import mindspore.train.serialization as serialization
ranks, strategy, whole, ending = sys.argv[1:]
ms.merge_pipeline_strategys(strategy, whole + ".strategy")
ms.transform_checkpoints(ranks, whole, "whole", whole + ".strategy", None, output_format=ending)
"""


@needs_mindspore
@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize("start", ["d03", "d04", "d08", "d12"])
def test_mindspore_merges_what_is_cut(start: str, ending: str, tmp_path: Path) -> None:
    """By the strategy files that are written next to the ranks."""
    case = golden_ranks.case(start)
    dest = cut(case, tmp_path, format=ending)
    by_mindspore(_MERGE, dest, dest / "strategy", tmp_path / "merged", ending)
    merged = cut_ranks.described(next((tmp_path / "merged").glob(f"rank_0/*.{ending}")))
    assert {name: merged.get(name) for name in case.unified} == case.unified


def large(folder: Path, rows: int, columns: int) -> Path:
    """One matrix, of random bytes."""
    spec = TensorSpec("w.weight", dtypes.BF16, (rows, columns))
    file = safetensors.lay_out("model.safetensors", [spec], {"format": "pt"})
    golden.write(folder / file.name, file, {spec.name: np.random.default_rng(1).bytes(spec.nbytes)})
    return folder / file.name


def one_strategy(folder: Path, name: str, layout: DeviceLayout) -> Path:
    folder.mkdir()
    (folder / "ckpt_strategy_rank_0.ckpt").write_bytes(encode(0, {name: layout}))
    return folder


@pytest.mark.parametrize("axis", [0, 1])
def test_a_tensor_larger_than_the_memory_limit(axis: int, tmp_path: Path) -> None:
    """Cut on either axis, each byte of it is read once."""
    source = large(tmp_path, 16_384, 8192)
    axes = tuple((0,) if one == axis else () for one in range(2))
    strategy = one_strategy(tmp_path / "strategy", "w.weight", DeviceLayout((8,), axes))
    words = ("convert", source, tmp_path / "ranks", "--model", "raw", "--dest-strategy", strategy, "--json", "--quiet")
    done = run(*words, "--max-mem", "112M")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["peak_bytes"] <= 112 << 20
    assert report["read_bytes"] < 1.01 * (256 << 20)
    whole = golden_ranks.arrays(source)["w.weight"]
    parts = [golden_ranks.arrays(tmp_path / f"ranks/rank_{r}/checkpoint_{r}.safetensors")["w.weight"] for r in range(8)]
    assert np.array_equal(np.concatenate(parts, axis), whole)


@pytest.mark.parametrize("case", cut_ranks.CUT, ids=lambda case: case.name)
@pytest.mark.parametrize("links", [True, False])
def test_slices_are_the_same_one_by_one(case: RankCase, links: bool, tmp_path: Path, monkeypatch) -> None:
    """Whether or not slices share windows of the source."""
    (tmp_path / "one").mkdir()
    dest = cut(case, tmp_path, links=links)
    monkeypatch.setattr(sharing, "_MOST", 1)
    assert tree(cut(case, tmp_path / "one", links=links)) == tree(dest)


def test_overflow_is_counted_once_for_each_slice(tmp_path: Path, monkeypatch) -> None:
    source = with_large_values(running.tiny(tmp_path / "source"))
    strategy = strategies.write(tmp_path / "strategy", streamconv.plan(source, tmp_path / "no"), (2, 2), 2)
    streamconv.convert(source, tmp_path / "one", strategy=strategy, dtype="fp16")
    assert streamconv.verify(tmp_path / "one", source=source).tensors
    for seed in range(10):
        assert streamconv.verify(tmp_path / "one", source=source, sample=0.3, seed=seed).tensors
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "_MOST", 1)
        streamconv.convert(source, tmp_path / "other", strategy=strategy, dtype="fp16")
    assert tree(tmp_path / "other") == tree(tmp_path / "one")
    assert '"overflowed": {}' not in next((tmp_path / "one").glob("*streamconv.json")).read_text()


@pytest.mark.parametrize("before", [(4, 1), (1, 2), (1, 4), (2, 2), (1, 8)], ids=str)
def test_slices_cut_for_other_ranks(before: tuple[int, int], tmp_path: Path) -> None:
    """A window is then shared by the slices that lie in one slice of the source."""
    source = large(tmp_path, 256, 512)
    first = one_strategy(tmp_path / "first", "w.weight", DeviceLayout(before, ((1,), (0,))))
    then = one_strategy(tmp_path / "then", "w.weight", DeviceLayout((4,), ((), (0,))))
    streamconv.convert(source, tmp_path / "ranks", model="raw", dest_strategy=first)
    arguments = {"model": "raw", "strategy": first, "dest_strategy": then}
    planned = streamconv.plan(tmp_path / "ranks", tmp_path / "again", **arguments)
    planned.run()
    work = tasks.tasks(planned.mapping, 1 << 20, tasks.Unrecorded(), lambda name: None)
    assert any(len(one) > 1 for one in work) is (before[1] < 4)
    whole = golden_ranks.arrays(source)["w.weight"]
    for rank, expected in enumerate(np.split(whole, 4, 1)):
        held = golden_ranks.arrays(tmp_path / f"again/rank_{rank}/checkpoint_{rank}.safetensors")["w.weight"]
        assert np.array_equal(held, expected)
    assert streamconv.verify(tmp_path / "again", source=tmp_path / "ranks", **arguments).tensors == 1


@pytest.mark.parametrize("rank", range(4))
def test_a_byte_that_differs_is_found_in_any_slice(rank: int, tmp_path: Path) -> None:
    source = large(tmp_path, 64, 512)
    strategy = one_strategy(tmp_path / "strategy", "w.weight", DeviceLayout((4,), ((), (0,))))
    streamconv.convert(source, tmp_path / "ranks", model="raw", dest_strategy=strategy)
    path = tmp_path / f"ranks/rank_{rank}/checkpoint_{rank}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(streamconv.VerificationError, match=f"rank_{rank}"):
        streamconv.verify(tmp_path / "ranks", source=source)


@pytest.mark.parametrize("links", [True, False])
def test_more_ranks_than_files_may_be_open(links: bool, tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    strategy = strategies.write(tmp_path / "strategy", streamconv.plan(source, tmp_path / "no"), (48, 2))
    streamconv.convert(source, tmp_path / "one", strategy=strategy, links=links)
    words = [
        "convert",
        source,
        tmp_path / "other",
        "--strategy",
        strategy,
        "--quiet",
        *([] if links else ["--no-links"]),
    ]
    done = run(*words, prepare=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48)))
    assert done.code == 0, done.err
    assert tree(tmp_path / "other") == tree(tmp_path / "one")
    assert len(list((tmp_path / "other").glob("rank_*/*.safetensors"))) == 96
    done = run(
        "verify", source, tmp_path / "other", prepare=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
    )
    assert done.code == 0, done.err


def test_a_result_of_ranks_is_replaced_only_by_request(tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    planned = streamconv.plan(source, tmp_path / "no")
    strategy = strategies.write(tmp_path / "strategy", planned, (2, 2))
    streamconv.convert(source, dest, strategy=strategy)
    with pytest.raises(streamconv.DestinationError, match="exists"):
        streamconv.convert(source, dest, strategy=strategy)
    strategies.write(strategy, planned, (4,))
    streamconv.convert(source, dest, strategy=strategy, format="ckpt", overwrite=True)
    assert len(list(dest.glob("rank_*/*.ckpt"))) == 4
    (dest / "rank_0" / "notes.txt").write_text("mine")
    with pytest.raises(streamconv.DestinationError, match="belong to no checkpoint"):
        streamconv.convert(source, dest, strategy=strategy, overwrite=True)


def test_what_a_training_saved_is_never_replaced(tmp_path: Path) -> None:
    """Files of ranks that streamconv did not write may be the work of days."""
    case = golden_ranks.case("d01")
    dest = tmp_path / "ranks"
    for rank, path in case.rank_files.items():
        (dest / f"rank_{rank}").mkdir(parents=True)
        (dest / f"rank_{rank}" / path.name).write_bytes(path.read_bytes())
    whole = cut_ranks.write_whole(tmp_path / "whole.ckpt", case)
    with pytest.raises(streamconv.DestinationError, match="belong to no checkpoint"):
        streamconv.convert(whole, dest, model="raw", dest_strategy=case.strategy_files, overwrite=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"format": "hf"}, "choose safetensors or ckpt"),
        ({"format": "torch"}, "choose safetensors or ckpt"),
        ({"format": "other"}, "choose safetensors or ckpt"),
        ({"crc": True}, "only .ckpt files can have a CRC"),
        ({"dest_strategy": "there"}, 'dest_strategy goes with model="raw" only'),
        ({"dest_strategy": "there", "strategy": None, "reverse": True}, "HuggingFace's side has no strategy"),
        ({"strategy": [""]}, "strategy is empty"),
        ({"links": 1}, "links must be bool"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: dict[str, object], words: str, tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    strategy = strategies.write(tmp_path / "strategy", streamconv.plan(source, tmp_path / "no"), (2,))
    with pytest.raises(UsageError) as caught:
        streamconv.plan(source, tmp_path / "dest", **{"strategy": strategy, **arguments})
    assert words in str(caught.value)


def test_a_file_holds_no_ranks(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    strategy = strategies.write(tmp_path / "strategy", streamconv.plan(source, tmp_path / "no"), (2,))
    with pytest.raises(UsageError, match="a file for each rank"):
        streamconv.plan(source, tmp_path / "dest.ckpt", strategy=strategy)


def test_the_plan_says_who_holds_what(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    strategy = strategies.write(tmp_path / "strategy", streamconv.plan(source, tmp_path / "no"), (2, 2))
    planned = streamconv.plan(source, tmp_path / "dest", strategy=strategy)
    tensors = len(streamconv.plan(source, tmp_path / "no").outputs)
    assert f"safetensors, {tensors} tensors in 2 files" in str(planned)
    assert "2 files, 2 links to them" in str(planned)
    values = planned.to_json()
    assert values["ranks"] == 4
    assert values["linked"]["rank_2/checkpoint_2.safetensors"] == "rank_0/checkpoint_0.safetensors"
    assert f"wrote {tensors} tensors" in str(planned.run())


def test_too_many_slices_to_plan_are_refused_before_one_is_made(tmp_path: Path) -> None:
    source = large(tmp_path, 1 << 17, 16)
    layout = DeviceLayout((1 << 16,), ((0,), ()))
    strategy = one_strategy(tmp_path / "strategy", "w.weight", layout)
    with pytest.raises(streamconv.BudgetError, match="planning 65536 tensors alone"):
        streamconv.plan(source, tmp_path / "dest", model="raw", dest_strategy=strategy, max_mem="112M")


def test_another_model_s_strategy(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    strategy = one_strategy(tmp_path / "strategy", "w.weight", DeviceLayout((2,), ((0,),)))
    with pytest.raises(UnsupportedError, match="names none of the tensors"):
        streamconv.plan(source, tmp_path / "dest", strategy=strategy)
