"""Checkpoints cut for ranks, end to end: every tensor of every rank is what MindSpore's own functions cut."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamconv
from support import cut_ranks
from support.golden_ranks import RankCase


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
@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize("links", [True, False])
def test_slices_are_those_of_mindspore(case: RankCase, ending: str, links: bool, tmp_path: Path) -> None:
    dest = cut(case, tmp_path, f"whole.{ending}", format=ending, links=links)
    check_ranks(case, dest, ending)
    assert streamconv.verify(dest).tensors
    assert streamconv.verify(dest, sample=0.5, seed=1).tensors
    assert streamconv.verify(dest, source=tmp_path / f"whole.{ending}").tensors == len(
        {**case.unified, **case.not_in_strategy}
    )
