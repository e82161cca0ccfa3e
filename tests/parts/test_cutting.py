"""Parts: every block once, about as much work in each, and the same whoever cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv import plans
from streamconv.parts import cutting
from streamconv.parts.cutting import BlockRange, Part, cut_parts
from streamconv.units import BLOCK
from support import found_in_the_tree, running
from support.parts import small_parts

with found_in_the_tree():
    from benchmarks import checkpoints


def blocks_of(parts: list[Part] | tuple[Part, ...]) -> list[tuple[int, int]]:
    return [(r.file, block) for part in parts for r in part.blocks for block in range(r.first, r.stop)]


@pytest.mark.parametrize("dest", ["shards", "one.ckpt", "one.bin"])
@pytest.mark.parametrize("shard", ["20KB", "5GB"])
def test_every_block_is_in_one_part(dest: str, shard: str, tmp_path: Path) -> None:
    with small_parts():
        model = "raw" if dest.endswith(".bin") else None
        planned = plans.plan(running.llama(tmp_path / "hf"), tmp_path / dest, model=model, max_shard_size=shard)
        parts = cut_parts(planned.mapping, planned.layout)
        every = [(n, b) for n, file in enumerate(planned.layout.files) for b in range(-(-file.size // (4 << 10)))]
    assert blocks_of([*parts]) == every
    assert [part.number for part in parts] == list(range(len(parts))) and len(parts) > 1
    assert cut_parts.__module__ == cutting.__name__


def test_limits_and_workers_change_no_part(tmp_path: Path) -> None:
    source = running.mixtral(tmp_path / "hf")
    one = plans.plan(source, tmp_path / "a", max_mem="16G", workers=1)
    other = plans.plan(source, tmp_path / "b", max_mem="8G", workers=4, io="read")
    assert cut_parts(one.mapping, one.layout) == cut_parts(other.mapping, other.layout)


def test_small_files_are_parts_of_their_own(tmp_path: Path) -> None:
    """A cut between files cuts no tensor."""
    planned = plans.plan(running.tiny(tmp_path / "hf"), tmp_path / "ms", max_shard_size="2KB")
    assert [part.blocks for part in cut_parts(planned.mapping, planned.layout)] == [
        (BlockRange(number, 0, 1),) for number in range(len(planned.files))
    ]


def test_a_result_without_tensors_has_at_most_one_part(tmp_path: Path) -> None:
    checkpoints.matrices(tmp_path / "hf", 1, 0, 5)
    planned = plans.plan(tmp_path / "hf", tmp_path / "ms.ckpt", model="raw")
    assert len(cut_parts(planned.mapping, planned.layout)) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1e9), max_size=40), min_size=1, max_size=8))
def test_any_costs_are_cut_into_ascending_ends(costs: list[list[float]]) -> None:
    before = np.cumsum(np.concatenate([[0.0], *map(np.array, costs)]))
    firsts = np.cumsum([0, *map(len, costs)])
    ends = cutting._ends(before, firsts)
    assert ends == sorted(set(ends)) and ends[-1:] == ([len(before) - 1] if len(before) > 1 else [])
    assert all(end > 0 for end in ends)


@pytest.mark.slow
def test_parts_of_deepseek_v3_are_even(tmp_path: Path) -> None:
    """At full size, cast and dequantised as usual: no part takes more than 1.1 times the mean."""
    planned = plans.plan(checkpoints.deepseek_v3(tmp_path / "hf"), tmp_path / "ms", model="deepseek3", max_mem="16G")
    parts = cut_parts(planned.mapping, planned.layout)
    costs = [part.cost for part in parts]
    assert len(parts) > 4 * 256
    assert max(costs) <= 1.1 * sum(costs) / len(costs)
    assert sum(costs) == pytest.approx(planned.layout.total + planned.catalog.nbytes, rel=0.01)
    assert max(r.stop - r.first for part in parts for r in part.blocks) * BLOCK < 1 << 30
