"""Checkpoints cut for ranks, end to end: every tensor of every rank is what MindSpore's own functions cut."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamconv
from support import cut_ranks


def cut(name: str, tmp_path: Path, source: str = "whole.safetensors", **arguments: object) -> Path:
    """A golden case, cut again from its whole tensors."""
    whole = cut_ranks.write_whole(tmp_path / source, cut_ranks.whole_tensors(name))
    dest = tmp_path / "ranks"
    strategy = cut_ranks.strategy_files(name)
    streamconv.convert(whole, dest, model="raw", dest_strategy=strategy, **arguments)
    return dest


def check_ranks(name: str, dest: Path, ending: str) -> None:
    """Every rank has what the case says; where it lacks copies on purpose, at least that."""
    found = cut_ranks.case(name)
    assert {path.name for path in dest.glob("rank_*")} == {f"rank_{rank}" for rank in range(found["world_size"])}
    for rank, entry in found["ranks"].items():
        held = cut_ranks.tensors_in(dest / f"rank_{rank}" / f"checkpoint_{rank}.{ending}")
        described = {one: tensor.described for one, tensor in held.items()}
        assert {one: described.get(one) for one in entry["tensors"]} == entry["tensors"], rank
        if "remove_redundancy" not in name:
            assert described.keys() == entry["tensors"].keys(), rank


@pytest.mark.parametrize("name", cut_ranks.cut_cases())
@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize("links", [True, False])
def test_slices_are_those_of_mindspore(name: str, ending: str, links: bool, tmp_path: Path) -> None:
    dest = cut(name, tmp_path, f"whole.{ending}", format=ending, links=links)
    check_ranks(name, dest, ending)
    whole = tmp_path / f"whole.{ending}"
    assert streamconv.verify(dest).tensors
    assert streamconv.verify(dest, sample=0.5, seed=1).tensors
    assert streamconv.verify(dest, source=whole).total == sum(
        output.spec.nbytes
        for output in streamconv.plan(whole, dest, model="raw", dest_strategy=dest / "strategy").outputs
    )
