"""Every golden case of many ranks, through the API and the command line: merged to HuggingFace, and put together."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import streamconv
from streamconv.errors import SourceError, UsageError, VerificationError
from streamconv.formats import ckpt, safetensors
from streamconv.formats.header_room import HeaderRoom
from support import golden, running
from support.golden_ranks import Expected, RankCase, case, cases

GOOD = [one for one in cases() if not one.is_hostile]
MODELS = [one for one in GOOD if one.model["model"] != "raw"]

#: Broken cases, and what their errors have to name.
REFUSED = {
    "d23": ("rank 2 is missing", "model.layers.0.attention.wq.weight (rank 2)"),
    "d25": ("the strategy is for 4 ranks, and 2 are here", "lm_head.weight (ranks 2, 3)"),
    "d26": ("model.layers.0.feed_forward.w2.weight is [12, 16] BF16 in rank 1 and [16, 12] BF16 in rank 0",),
    "d27": ("lm_head.weight is [12, 16] BF16 in rank 1 and [20, 16] BF16 in rank 0",),
}


def whole(one: RankCase) -> dict[str, Expected]:
    return {**one.unified, **one.not_in_strategy}


def hashes(path: Path) -> dict[str, Expected]:
    """What one rank's file holds, read as it is."""
    _, refs = ckpt.read(path) if path.suffix == ".ckpt" else safetensors.read(path, HeaderRoom())
    digests = {name: hashlib.sha256(golden.stored_bytes(ref)).hexdigest() for name, ref in refs.items()}
    return {name: (ref.dtype.name, ref.shape, digests[name]) for name, ref in refs.items()}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def test_all_cases_are_here() -> None:
    assert (len(GOOD), len(cases())) == (20, 26)


@pytest.mark.parametrize("one", GOOD, ids=lambda one: one.name)
def test_put_together_with_raw(one: RankCase, tmp_path: Path) -> None:
    report = streamconv.convert(one.folder, tmp_path / "out", model="raw", verify=True)
    assert golden.found(tmp_path / "out") == whole(one)
    assert report.prepared.catalog.of_ranks


@pytest.mark.parametrize("one", MODELS, ids=lambda one: one.name)
def test_to_huggingface(one: RankCase, tmp_path: Path, config: Path) -> None:
    config.write_text(json.dumps(one.model["config"]))
    streamconv.convert(
        one.folder,
        tmp_path / "out",
        reverse=True,
        model=one.model["model"],
        options=one.model["options"],
        config=config,
    )
    assert golden.found(tmp_path / "out") == one.hf


@pytest.mark.parametrize("one", GOOD, ids=lambda one: one.name)
def test_the_command_line_gives_the_same(one: RankCase, tmp_path: Path, config: Path, capsys) -> None:
    config.write_text(json.dumps(one.model["config"]))
    options = [word for name, value in one.model["options"].items() for word in ("-o", f"{name}={str(value).lower()}")]
    chosen = ("--reverse", "--config", config, *options) if one in MODELS else ()
    for words, expected in (((*chosen, "--model", one.model["model"]), one.hf), (("--model", "raw"), whole(one))):
        ended = running.call(capsys, "convert", one.folder, tmp_path / words[-1], *words)
        assert ended.code == 0, ended.err
        assert golden.found(tmp_path / str(words[-1])) == expected


@pytest.mark.parametrize(
    ("one", "kind"),
    [
        pytest.param(one, kind, id=f"{one.name} {kind}")
        for number, one in enumerate(one for one in GOOD if one.strategy_files)
        for kind in ("safetensors", "ckpt")[number % 2 :][:1]
    ],
)
def test_put_together_and_cut_again(one: RankCase, kind: str, tmp_path: Path) -> None:
    """From slices to the same slices, without a copy of the whole; the result needs no strategy next to it."""
    out = tmp_path / "out"
    streamconv.convert(one.folder, out, model="raw", dest_strategy=one.strategy_files, format=kind, verify=True)
    found = {rank: hashes(out / f"rank_{rank}" / f"checkpoint_{rank}.{kind}") for rank in one.slices}
    # With redundancy removed, the case's ranks have only some of what they hold.
    assert all(found[rank].items() >= slices.items() for rank, slices in one.slices.items())
    assert streamconv.diff(one.folder, out).same
    assert streamconv.verify(out).files == streamconv.verify(out, source=one.folder).files
    streamconv.convert(out, tmp_path / "whole", model="raw")
    assert golden.found(tmp_path / "whole") == whole(one)


@pytest.mark.parametrize("name", REFUSED)
def test_broken_ones_are_refused_before_the_first_byte(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        streamconv.convert(case(name).folder, tmp_path / "out", model="raw")
    assert all(words in str(caught.value) for words in REFUSED[name])
    ended = running.run("convert", case(name).folder, tmp_path / "out", "--model", "raw")
    assert ended.code == SourceError.exit_code
    assert all(words in ended.err for words in REFUSED[name])
    assert not [*tmp_path.iterdir()]


def test_copies_that_differ(tmp_path: Path) -> None:
    """Without `verify` one copy is read, and the report says so; with it the difference is found."""
    one = case("d24")
    report = streamconv.convert(one.folder, tmp_path / "out", model="raw")
    assert golden.found(tmp_path / "out") == whole(one)
    assert "copies in other ranks are not compared: verify=True does" in str(report)
    planned = streamconv.plan(one.folder, tmp_path / "out", model="raw")
    assert planned.notes
    assert all(note.isprintable() and note in str(planned) for note in (*planned.notes, *planned.warnings))
    ended = running.run("convert", one.folder, tmp_path / "again", "--model", "raw")
    assert "copies in other ranks are not compared: --verify does" in ended.out
    shutil.rmtree(tmp_path / "again")
    with pytest.raises(VerificationError, match="in ranks 1 and 3 differ"):
        streamconv.convert(one.folder, tmp_path / "verified", model="raw", verify=True)
    ended = running.run("convert", one.folder, tmp_path / "verified", "--model", "raw", "--verify")
    assert ended.code == 7
    assert "first at byte" in ended.err
    assert not (tmp_path / "verified").exists()


def test_a_dash_in_a_name(tmp_path: Path) -> None:
    streamconv.convert(case("d28").folder, tmp_path / "out", model="raw")
    assert golden.found(tmp_path / "out") == case("d28").unified


def test_inspect_shows_what_is_there_and_what_is_missing() -> None:
    values = streamconv.inspect(case("d23").folder)
    assert "model.layers.0.attention.wq.weight (rank 2)" in values["missing"]
    assert {tensor["name"] for tensor in values["tensors"]} >= {"model.norm_out.weight"}
    ended = running.run("inspect", case("d23").folder)
    assert ended.code == 0
    assert "missing: slices of lm_head.weight (rank 2)" in ended.out
    assert "hold copies of all" not in ended.out
    assert "missing" not in streamconv.inspect(case("d18").folder)


def test_diff_of_one_training_with_another(tmp_path: Path) -> None:
    """Where the strategy is elsewhere; a side that no ranks left needs none."""
    one = case("d01")
    shutil.copytree(one.checkpoint, tmp_path / "ranks")
    streamconv.convert(one.folder, tmp_path / "whole", model="raw")
    strategy = one.strategy_files[0].parent
    assert streamconv.diff(tmp_path / "ranks", tmp_path / "whole", strategy=strategy).same
    assert running.run("diff", tmp_path / "whole", tmp_path / "ranks", "--strategy", strategy).code == 0
    with pytest.raises(UsageError, match="strategy has no effect"):
        streamconv.diff(tmp_path / "whole", tmp_path / "whole", strategy=strategy)
