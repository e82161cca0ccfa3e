"""What a part has of each tensor: every element in one part, or in none where two parts share its bytes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamconv import plans
from streamconv.parts.cutting import cut_parts
from streamconv.parts.scopes import Scopes
from streamconv.tensors.grids import box_shape, flat_boxes, overlap, whole, without
from streamconv.tensors.refs import files_by_tensor
from support import golden_ranks, running
from support.parts import small_parts


@given(st.lists(st.integers(1, 5), max_size=4), st.data())
def test_a_run_of_elements_is_boxes_that_hold_just_these(shape: list[int], data: st.DataObject) -> None:
    count = math.prod(shape)
    first = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(first, count))
    numbers = np.arange(count).reshape(shape)
    found = [numbers[tuple(slice(a, b) for a, b in box)] for box in flat_boxes(first, stop, tuple(shape))]
    assert sorted(number for part in found for number in part.flat) == list(range(first, stop))
    assert len(found) <= 2 * max(1, len(shape))


@given(st.data())
def test_an_overlap_is_what_is_not_outside(data: st.DataObject) -> None:
    def box() -> tuple[tuple[int, int], ...]:
        lows = data.draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
        return tuple((low, low + data.draw(st.integers(1, 4))) for low in lows)

    one, other = box(), box()
    both = overlap(one, other)
    outside = sum(math.prod(box_shape(rest)) for rest in without(one, other))
    assert math.prod(box_shape(one)) - outside == (math.prod(box_shape(both)) if both else 0)


@pytest.mark.parametrize(("dest", "shard"), [("shards", "30KB"), ("one.ckpt", "5GB"), ("one.bin", "5GB")])
def test_every_element_is_in_one_part_or_shared(dest: str, shard: str, tmp_path: Path) -> None:
    with small_parts(least=1 << 10):
        model = "raw" if dest.endswith(".bin") else None
        planned = plans.plan(running.llama(tmp_path / "hf"), tmp_path / dest, model=model, max_shard_size=shard)
        parts, scopes = cut_parts(planned.mapping, planned.layout), Scopes(planned.mapping, planned.layout)
        counts = [np.zeros(output.view.shape, int) for output in planned.outputs]
        shared = [np.zeros(output.view.shape, int) for output in planned.outputs]
        nbytes = 0
        for scope in map(scopes.of, parts):
            nbytes += scope.nbytes
            for number in scope.outputs:
                for box in scope.clip(number, whole(planned.outputs[number].view.shape)):
                    target = shared if scope.is_shared(number, box) else counts
                    target[number][tuple(slice(a, b) for a, b in box)] += 1
    for own, common in zip(counts, shared, strict=True):
        assert np.all((own == 1) ^ (common == 2))
    assert nbytes == sum(int(own.sum()) * o.dtype.itemsize for own, o in zip(counts, planned.outputs, strict=True))
    # Only in a .ckpt do elements lie across blocks.
    assert dest.endswith(".ckpt") or not any(common.any() for common in shared)


def test_a_tensor_in_several_files_is_in_every_part_that_has_one_of_them(tmp_path: Path) -> None:
    one = golden_ranks.case("d07")
    with small_parts(least=1 << 10):
        planned = plans.plan(one.folder, tmp_path / "out", model="raw", dest_strategy=one.strategy_files, links=False)
        parts, scopes = cut_parts(planned.mapping, planned.layout), Scopes(planned.mapping, planned.layout)
        found = [number for scope in map(scopes.of, parts) for number in scope.outputs]
    many = {name for name, files in files_by_tensor(planned.layout.files).items() if len(files) > 1}
    assert many and all(found.count(n) > 1 for n, output in enumerate(planned.outputs) if output.name in many)
