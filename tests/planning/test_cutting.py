"""Cutting a mapping for ranks: who holds which slice, what is shared, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from streamconv.errors import UnsupportedError
from streamconv.planning.cutting import cut_for_ranks, written_layouts
from streamconv.planning.mapping import RankFile, TensorMapping
from streamconv.planning.outputs import Output
from streamconv.ranks.device_layouts import DeviceLayout
from streamconv.rules.statements import Direction
from streamconv.tensors import dtypes, views
from streamconv.tensors.refs import Extent, SourceFile, TensorRef


@dataclass
class Stage:
    layouts: dict[str, DeviceLayout]
    ranks: int
    first_rank: int = 0


@dataclass
class Strategy:
    stages: list[Stage] = field(default_factory=list)


def output(name: str, shape: tuple[int, ...]) -> Output:
    file = SourceFile(Path("a.safetensors"), 1 << 20)
    ref = TensorRef(name, dtypes.BF16, shape, (Extent(file, 0, 2),))
    return Output(name, dtypes.BF16, views.leaf(ref), (name,))


def mapping(**shapes: tuple[int, ...]) -> TensorMapping:
    outputs = tuple(output(name, shape) for name, shape in shapes.items())
    return TensorMapping("raw", {}, Direction.FORWARD, None, outputs, {})


def held(cut: TensorMapping) -> dict[int, list[str]]:
    """Rank -> the outputs that it holds."""
    return {rank: [cut.outputs[n].name for n in file.outputs] for file in cut.rank_files for rank in file.ranks}


def two_by_two(*axes: tuple[int, ...], shards: int = 0) -> DeviceLayout:
    return DeviceLayout((2, 2), axes, shards)


def test_a_slice_is_one_output_however_many_ranks_hold_it() -> None:
    stage = Stage({"w": two_by_two((0,), ()), "n": two_by_two(())}, 4)
    cut = cut_for_ranks(mapping(w=(8, 6), n=(6,)), Strategy([stage]))
    assert held(cut) == {0: ["w[0:4, :]", "n"], 1: ["w[4:8, :]", "n"], 2: ["w[0:4, :]", "n"], 3: ["w[4:8, :]", "n"]}
    assert cut.rank_files == (RankFile((0, 2), (0, 2)), RankFile((1, 3), (1, 2)))
    assert [one.view.shape for one in cut.outputs] == [(4, 6), (4, 6), (6,)]
    assert [one.tensor for one in cut.outputs] == ["w", "w", "n"]
    assert (cut.tensors, cut.ranks) == (2, 4)


def test_optimizer_sharding_cuts_the_first_dimension_again() -> None:
    stage = Stage({"w": two_by_two((), (0,), shards=-1)}, 4)
    cut = cut_for_ranks(mapping(w=(4, 6)), Strategy([stage]))
    assert held(cut) == {0: ["w[0:2, 0:3]"], 1: ["w[0:2, 3:6]"], 2: ["w[2:4, 0:3]"], 3: ["w[2:4, 3:6]"]}


def test_several_axes_of_one_dimension() -> None:
    """In a strategy they look like one axis for each of two dimensions."""
    stage = Stage({"b": DeviceLayout((2, 2), ((1,), (0,)), may_be_list=True)}, 4)
    cut = cut_for_ranks(mapping(b=(8,)), Strategy([stage]))
    assert held(cut) == {0: ["b[0:2]"], 1: ["b[2:4]"], 2: ["b[4:6]"], 3: ["b[6:8]"]}


def test_stages_hold_what_they_name_and_all_that_nobody_names() -> None:
    one = Stage({"e": DeviceLayout((2,), ((0,), ())), "a": DeviceLayout((2,), ((),))}, 2)
    other = Stage({"e": DeviceLayout((2,), ((0,), ())), "b": DeviceLayout((2,), ((),))}, 2, 2)
    cut = cut_for_ranks(mapping(e=(4, 2), a=(3,), b=(3,), s=()), Strategy([one, other]))
    assert held(cut) == {
        0: ["e[0:2, :]", "a", "s"],
        1: ["e[2:4, :]", "a", "s"],
        2: ["e[0:2, :]", "b", "s"],
        3: ["e[2:4, :]", "b", "s"],
    }
    assert [note for note in cut.notes if "written whole for every rank: s" in note]
    assert [*written_layouts(cut, other)] == ["e", "b"]


def test_names_of_the_training_are_expected_and_others_are_noted() -> None:
    layouts = dict.fromkeys(("w", "adam_m.w", "accu_grads.w", "lora.a", "lora.b"), two_by_two((0,), ()))
    cut = cut_for_ranks(mapping(w=(8, 6)), Strategy([Stage(layouts, 4)]))
    assert cut.notes == ("2 tensors that the strategy names and the result does not have: lora.a, lora.b",)
    assert [*written_layouts(cut, Stage(layouts, 4))] == ["w"]


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (two_by_two((0,), (1,)), r"w of shape \[8, 5\] cannot be cut into \[2, 2\] equal parts"),
        (two_by_two((0,)), "for a tensor of 1 dimension"),
        (replace(two_by_two((0,), ()), shape=(16, 5)), r"has shape \[8, 5\], but the strategy is for \[16, 5\]"),
    ],
)
def test_what_does_not_fit(layout: DeviceLayout, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        cut_for_ranks(mapping(w=(8, 5)), Strategy([Stage({"w": layout}, 4)]))


def test_a_strategy_of_another_model() -> None:
    with pytest.raises(UnsupportedError, match="names none of the tensors that are written: it has x, and they are w"):
        cut_for_ranks(mapping(w=(8, 6)), Strategy([Stage({"x": two_by_two((0,), ())}, 4)]))


def test_a_stage_without_tensors() -> None:
    stages = [Stage({"w": two_by_two((0,), ())}, 4), Stage({"x": two_by_two((0,), ())}, 4, 4)]
    with pytest.raises(UnsupportedError, match="pipeline stage 1 of the strategy has none"):
        cut_for_ranks(mapping(w=(8, 6)), Strategy(stages))


def test_a_tensor_that_is_named_like_a_slice() -> None:
    whole = mapping(**{"w": (8, 6), "w[0:4, :]": (4, 6)})
    with pytest.raises(UnsupportedError, match="named like a slice of another one"):
        cut_for_ranks(whole, Strategy([Stage({"w": two_by_two((0,), ())}, 4)]))


def test_the_digest_knows_who_holds_what() -> None:
    """The same slices in other ranks are another result."""
    plain = mapping(w=(8, 6))
    one, other = (cut_for_ranks(plain, Strategy([Stage({"w": two_by_two(axes, ())}, 4)])) for axes in ((0, 1), (1, 0)))
    assert {o.name for o in one.outputs} == {o.name for o in other.outputs}
    assert len({plain.digest, one.digest, other.digest}) == 3
    assert one.cut != other.cut
    assert not plain.cut
