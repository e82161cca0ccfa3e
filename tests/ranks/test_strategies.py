"""streamconv.ranks.strategies: the files of a training, put together."""

import json
import os
import shutil

import pytest

from streamconv.errors import BudgetError, SourceError, UsageError
from streamconv.formats.header_room import HeaderRoom
from streamconv.ranks import strategies
from streamconv.ranks.device_layouts import DeviceLayout
from streamconv.ranks.strategy_format import encode
from support import golden_ranks
from support.helpers import text_of

COLUMN, ROW, WHOLE = (DeviceLayout((1, 2), axes) for axes in (((0,), ()), ((), (0,)), ((), ())))
LEGACY = [case for hostile in (False, True) for case in golden_ranks.legacy_cases(hostile) if case.strategy_files]


@pytest.fixture
def write(tmp_path):
    """Writes `strategy/NAME` of a stage with these layouts."""
    folder = tmp_path / "strategy"
    folder.mkdir()

    def run(name, stage, **layouts):
        (folder / name).write_bytes(encode(stage, {key.replace("_", "-"): one for key, one in layouts.items()}))
        return folder

    return run


def refused(paths, *expected, error=SourceError, **room):
    with pytest.raises(error) as caught:
        strategies.read(paths, **room)
    for text in expected:
        assert text in text_of(caught.value)


@pytest.mark.parametrize("case", LEGACY, ids=lambda case: case.name)
def test_golden_cases(case):
    for paths in (case.strategy_files, [case.strategy_files[0].parent]):
        found = strategies.read(paths)
        assert {number: stage.layouts for number, stage in enumerate(found.stages)} == case.layouts
        assert found.world_size == case.values.get("world_size_of_strategy", case.world_size)
        assert [stage.first_rank for stage in found.stages] == [
            number * found.world_size // len(case.layouts) for number in range(len(case.layouts))
        ]
        assert set(found.files) == set(case.strategy_files)


def test_equal_files_are_decoded_once(write, monkeypatch):
    decoded = []
    monkeypatch.setattr(strategies, "decode", lambda *args: decoded.append(args[1].name) or decode(*args))
    from streamconv.ranks.strategy_format import decode

    for rank in range(20):
        folder = write(f"ckpt_strategy_rank_{rank}.ckpt", rank // 10, w=COLUMN)
    assert len(strategies.read([folder]).files) == 20
    assert len(decoded) == 2


def test_a_shared_parameter_is_in_both_stages(write):
    write("a.ckpt", 0, w=COLUMN, shared=ROW)
    folder = write("b.ckpt", 1, v=COLUMN, shared=WHOLE)
    found = strategies.read([folder / "b.ckpt", folder / "a.ckpt"])
    assert [list(stage.layouts) for stage in found.stages] == [["w", "shared"], ["v", "shared"]]
    assert [(stage.ranks, stage.first_rank) for stage in found.stages] == [(2, 0), (2, 2)]
    assert found.world_size == 4


def test_a_file_given_twice_counts_once(write):
    folder = write("ckpt_strategy_rank_0.ckpt", 0, w=COLUMN)
    assert strategies.read([folder, folder / "ckpt_strategy_rank_0.ckpt"]).files == (
        folder / "ckpt_strategy_rank_0.ckpt",
    )


def test_files_of_any_name_are_known_by_their_content(write):
    write("mine_rank_0.ckpt", 0, w=COLUMN)
    folder = write("mine_rank_1.ckpt", 1, w=COLUMN)
    (folder / "model.ckpt").write_bytes(b"\x0a\x05hello")
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"\x08\x00")
    os.mkfifo(folder / "fifo.ckpt")
    assert [path.name for path in strategies.read([folder]).files] == ["mine_rank_0.ckpt", "mine_rank_1.ckpt"]


def test_json_in_a_directory(tmp_path):
    layout = {"dev_matrix": [1, 2], "tensor_map": [0, -1], "field": 0}
    text = json.dumps({"current_stage": 0, "parallel_layout_item": {"w": layout}})
    (tmp_path / "ckpt_strategy_rank_0.json").write_text(text)
    (tmp_path / "ckpt_strategy_rank_1.json").write_text(text)
    found = strategies.read([tmp_path])
    assert (found.stages[0].layouts, len(found.files)) == ({"w": COLUMN}, 2)


def test_a_merged_file_next_to_files_of_ranks_is_left_out(write):
    write("merged_ckpt_strategy.ckpt", 0, **{"0_w": COLUMN, "1_v": ROW})
    write("ckpt_strategy_rank_0.ckpt", 0, w=COLUMN)
    folder = write("ckpt_strategy_rank_2.ckpt", 1, v=ROW, accu_grads=ROW)
    assert [path.name for path in strategies.read([folder]).files] == [
        "ckpt_strategy_rank_0.ckpt",
        "ckpt_strategy_rank_2.ckpt",
    ]


def test_a_merged_file_adds_the_stages_that_only_it_has(write):
    write("merged_ckpt_strategy.ckpt", 0, **{"0_w": COLUMN, "1_v": ROW})
    folder = write("ckpt_strategy_rank_0.ckpt", 0, w=COLUMN)
    found = strategies.read([folder])
    assert [stage.layouts for stage in found.stages] == [{"w": COLUMN}, {"v": ROW}]
    assert len(found.files) == 2


def test_a_merged_file_that_contradicts(write):
    write("merged_ckpt_strategy.ckpt", 0, **{"0_w": COLUMN, "0_v": ROW})
    folder = write("ckpt_strategy_rank_0.ckpt", 0, w=ROW, v=ROW)
    refused([folder], "the merged", "merged_ckpt_strategy.ckpt", "rank_0.ckpt", "cut w differently", "remove")
    write("ckpt_strategy_rank_0.ckpt", 0, w=COLUMN)
    refused([folder], "only merged_ckpt_strategy.ckpt has v")


def test_files_of_one_stage_that_differ(write):
    write("ckpt_strategy_rank_0.ckpt", 0, u=WHOLE, w=COLUMN, v=COLUMN)
    folder = write("ckpt_strategy_rank_1.ckpt", 0, u=WHOLE, w=ROW, v=ROW)
    refused([folder], "rank_0.ckpt", "rank_1.ckpt", "the same stage, 0", "cut w differently")
    write("ckpt_strategy_rank_1.ckpt", 0, u=WHOLE, w=COLUMN)
    refused([folder], "only ckpt_strategy_rank_0.ckpt has v")
    write("ckpt_strategy_rank_1.ckpt", 0, u=WHOLE, w=COLUMN, v=COLUMN, x=ROW)
    refused([folder], "only ckpt_strategy_rank_1.ckpt has x")


def test_the_same_in_another_order_is_no_difference(write):
    write("ckpt_strategy_rank_0.ckpt", 0, w=COLUMN, v=ROW)
    folder = write("ckpt_strategy_rank_1.ckpt", 0, v=ROW, w=COLUMN)
    assert len(strategies.read([folder]).stages) == 1


def test_a_missing_stage(write):
    write("ckpt_strategy_rank_0.ckpt", 0, w=COLUMN)
    folder = write("ckpt_strategy_rank_4.ckpt", 2, v=COLUMN)
    refused([folder], "stage 1 is missing", "0 (ckpt_strategy_rank_0.ckpt), 2 (ckpt_strategy_rank_4.ckpt)")
    refused([folder / "ckpt_strategy_rank_4.ckpt"], "stage 0 is missing")
    merged = write("merged_ckpt_strategy_1.ckpt", 0, **{"999999_w": COLUMN})
    refused([merged / "merged_ckpt_strategy_1.ckpt"], "stage 0 is missing")


def test_stages_of_different_size(write):
    write("ckpt_strategy_rank_0.ckpt", 0, w=COLUMN)
    folder = write("ckpt_strategy_rank_2.ckpt", 1, v=DeviceLayout((4,), ((0,),)))
    refused([folder], "stage 0 has 2 ranks", "rank_0.ckpt", "stage 1 has 4", "rank_2.ckpt")


def test_files_that_do_not_say_their_stage(tmp_path):
    # Field 3 alone: no operator, so no stage.
    for number, name in enumerate("ab"):
        data = encode(0, {name: COLUMN})
        (tmp_path / f"{name}.ckpt").write_bytes(b"\x08\x00" + data[data.index(b"\x1a") :])
        assert strategies.read([tmp_path / f"{name}.ckpt"]).world_size == 2, number
    refused([tmp_path], "a.ckpt does not say its pipeline stage", "merge_pipeline_strategys")


def test_nothing_there(tmp_path):
    refused([], "no strategy file is given", error=UsageError)
    refused([tmp_path], f"{tmp_path} holds no strategy file")
    refused([tmp_path / "no.ckpt"], "no.ckpt", "No such file")


def test_a_directory_that_may_not_be_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(strategies.disk, "listdir", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied")))
    refused([tmp_path], "cannot read", "denied")


def test_each_file_has_the_room_that_is_left(write):
    folder = write("ckpt_strategy_rank_0.ckpt", 0, w=COLUMN)
    shutil.copy(folder / "ckpt_strategy_rank_0.ckpt", folder / "ckpt_strategy_rank_1.ckpt")
    asked = []
    strategies.read([folder], header_room=lambda: asked.append(1) or HeaderRoom())
    assert len(asked) == 2
    refused([folder], "rank_0.ckpt", error=BudgetError, header_room=lambda: HeaderRoom(10, memory_limit=1 << 20))
