"""streamconv.ranks.strategy_format: one strategy file, read and written, and what is refused in one."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamconv.errors import BudgetError, SourceError, StreamconvError, UnsupportedError
from streamconv.formats.header_room import HeaderRoom
from streamconv.ranks.device_layouts import DeviceLayout
from streamconv.ranks.messages import bytes_field, number_field, numbers_message
from streamconv.ranks.strategy_format import decode, encode, read
from support import golden_ranks
from support.helpers import text_of

ROOM = HeaderRoom()
PATH, JSON = Path("ckpt_strategy_rank_0.ckpt"), Path("ckpt_strategy_rank_0.json")
COLUMN = DeviceLayout((1, 2), ((0,), ()))
LEGACY = [case for hostile in (False, True) for case in golden_ranks.legacy_cases(hostile) if case.strategy_files]

LAYOUTS = {
    "column": DeviceLayout((2, 2, 2), ((0,), ())),
    "row": DeviceLayout((2, 2, 2), ((), (2,))),
    "whole": DeviceLayout((2, 2, 2), ((),)),
    "scalar": DeviceLayout((2, 2, 2), ()),
    "several axes": DeviceLayout((2, 2, 2), ((0, 2), ())),
    "several axes of one dimension": DeviceLayout((2, 2, 2), ((2, 1),)),
    "sharded": DeviceLayout((2, 2, 2), ((1,), ()), -1),
    "sharded in part": DeviceLayout((4, 2), ((0,), ()), 2),
    "名字 with-a-dash": DeviceLayout((8,), ((0,), (), ())),
}


def item(name=b"w", devices=(1, 2), maps=((0, -1),), more=b""):
    stated = b"".join(bytes_field(2, numbers_message(one)) for one in maps)
    stated = bytes_field(1, numbers_message(devices)) + stated + more
    return bytes_field(3, bytes_field(1, name) + bytes_field(2, stated))


def refused(data, *expected, error=SourceError, path=PATH, room=ROOM):
    with pytest.raises(error) as caught:
        decode(data, path, room)
    for text in expected:
        assert text in text_of(caught.value)


@pytest.mark.parametrize("case", LEGACY, ids=lambda case: case.name)
def test_golden_layouts(case):
    for path in case.strategy_files:
        for stage, layouts in read(path, ROOM).stages.items():
            assert layouts == case.layouts[stage]


def test_the_example_of_mindspore_to_the_byte():
    data = bytes.fromhex(
        "08 00 12 16 0A 0A 4D 61 74 4D 75 6C 2D 6F 70 30 12 08 08 00 12 04 08 01 08 01 1A 22 0A 01 77 12 1D 0A 02 08 02"
        "12 0D 08 00 08 FF FF FF FF FF FF FF FF FF 01 1A 00 22 00 28 00 30 00 38 00"
    )
    found = decode(data, PATH, ROOM)
    assert (found.stage, dict(found.layouts)) == (0, {"w": DeviceLayout((2,), ((0,), ()))})


def test_there_and_back():
    for stage, (name, layout) in enumerate(LAYOUTS.items()):
        found = decode(encode(stage, {name: layout}), PATH, ROOM)
        assert found.stage == stage
        assert found.layouts[name].for_dims(len(layout.axes)) == layout


def test_sharding_without_copies_is_not_written():
    layouts = {"w": DeviceLayout((2,), ((0,),), -1), "v": DeviceLayout((2,), ((0,),), 1)}
    assert set(decode(encode(0, layouts), PATH, ROOM).layouts.values()) == {DeviceLayout((2,), ((0,),))}


def test_mindspore_reads_what_is_written(tmp_path):
    pytest.importorskip("mindspore")
    from mindspore.parallel._parallel_serialization import _build_searched_strategy, _convert_to_list
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    path = tmp_path / "strategy.ckpt"
    layouts = {name.replace("-", "_"): layout for name, layout in LAYOUTS.items()}
    path.write_bytes(encode(3, layouts))
    found = _convert_to_list(_build_searched_strategy(str(path)))
    assert list(found) == list(layouts)
    for name, layout in layouts.items():
        devices, tensor_map, parts, field, step, shards, _ = found[name]
        lists = [one if isinstance(one, list) else [one] for one in tensor_map]
        axes = tuple(tuple(axis for axis in one if axis >= 0) for one in lists)
        if name == "several axes of one dimension":
            axes = (tuple(axis for one in axes for axis in one),)
        assert DeviceLayout(tuple(devices), axes, shards) == layout
        assert (parts, field, bool(step)) == ([], 0, bool(shards))
    everything = ParallelStrategyMap.FromString(path.read_bytes())
    assert everything.parallel_strategy_item[0].parallel_strategys.stage == 3
    # Protobuf's own writer makes the same bytes of it.
    assert everything.SerializeToString() == path.read_bytes()


@pytest.mark.parametrize("start", ["d06", "d07", "d09"])
def test_steps_of_optimizer_sharding_are_mindspores(start):
    pytest.importorskip("mindspore")
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    path = golden_ranks.case(start).strategy_files[0]
    again = encode(0, read(path, ROOM).layouts)
    one, other = (ParallelStrategyMap.FromString(data) for data in (path.read_bytes(), again))
    assert one.parallel_layout_item == other.parallel_layout_item


def test_mindspore_cuts_by_what_is_written(tmp_path):
    """It cuts whole tensors for the ranks of our file into what the layouts say."""
    mindspore = pytest.importorskip("mindspore")
    # A list for one dimension, and dashes, are what MindSpore 2.10 itself cannot cut by.
    layouts = {name.replace(" ", "_"): one for name, one in LAYOUTS.items() if one.axes and "-" not in name}
    del layouts["several_axes_of_one_dimension"]
    whole = {name: np.random.default_rng(1).random((16, 8)[: len(one.axes)], "f4") for name, one in layouts.items()}
    strategy, full, cut = tmp_path / "strategy.ckpt", tmp_path / "full", tmp_path / "cut"
    strategy.write_bytes(encode(0, layouts))
    (full / "rank_0").mkdir(parents=True)
    tensors = [{"name": name, "data": mindspore.Tensor(array)} for name, array in whole.items()]
    mindspore.save_checkpoint(tensors, str(full / "rank_0" / "full.ckpt"))
    mindspore.transform_checkpoints(str(full), str(cut), "net", None, str(strategy))
    for rank in range(8):
        found = golden_ranks.arrays(cut / f"rank_{rank}" / f"net{rank}.ckpt")
        for name, layout in layouts.items():
            parts = zip(whole[name].shape, layout.divisions, layout.index_of(rank), strict=True)
            part = tuple(slice(size // n * at, size // n * (at + 1)) for size, n, at in parts)
            assert found[name].tobytes() == whole[name][part].tobytes()


def test_json_as_mindspore_writes_it():
    stated = {
        "current_stage": 1,
        "parallel_strategy_item": {"MatMul-op0": {"stage": 1, "parallel_strategy": [[1, 2]]}},
        "parallel_layout_item": {
            "w": {
                "dev_matrix": [2, 2],
                "tensor_map": [0, -1],
                "tensor_shape": [8, 4],
                "param_split_shape": [],
                "indices_offset": [],
                "field": 0,
                "opt_weight_shard_step": 2,
                "opt_weight_shard_size": -1,
                "later": {"anything": 1},
            },
            "b": {"dev_matrix": [2, 2], "tensor_map": [0, 1], "tensor_shape": [8]},
            "c": {"dev_matrix": [2, 2], "tensor_map": [[1, 0]]},
        },
    }
    for path in (JSON, PATH):
        found = decode(json.dumps(stated).encode(), path, ROOM)
        assert found.stage == 1
        assert found.layouts == {
            "w": DeviceLayout((2, 2), ((0,), ()), -1, (8, 4)),
            "b": DeviceLayout((2, 2), ((0, 1),), 0, (8,)),
            "c": DeviceLayout((2, 2), ((1, 0),)),
        }
        assert found.layouts["c"].for_dims(2) is None


def test_json_and_protobuf_say_the_same_to_mindspore(tmp_path):
    pytest.importorskip("mindspore")
    from mindspore.parallel._parallel_serialization import _build_searched_strategy, _convert_to_list

    layout = {"dev_matrix": [4, 2], "tensor_map": [0, -1], "field": 0}
    layout |= {"opt_weight_shard_step": 2, "opt_weight_shard_size": 2}
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"parallel_layout_item": {"w": layout}}))
    other = tmp_path / "s.ckpt"
    other.write_bytes(encode(0, read(path, ROOM).layouts))
    one, two = (_convert_to_list(_build_searched_strategy(str(file))) for file in (path, other))
    assert one == two


def test_step_or_size_zero_is_no_sharding():
    for step, size in ((0, -1), (1, 0)):
        found = decode(item(maps=[(-1,)], more=number_field(6, step) + number_field(7, size)), PATH, ROOM)
        assert found.layouts["w"].optimizer_shards == 0


def test_what_any_protobuf_reader_accepts():
    packed = bytes_field(1, bytes_field(1, b"\x01\x02")) + bytes_field(2, bytes_field(1, b"\x00"))
    halves = bytes_field(2, packed[:6]) + bytes_field(2, packed[6:])
    unknown = bytes_field(9, b"x") + number_field(10, 5) + b"\x5d" + bytes(4) + b"\x59" + bytes(8)
    data = unknown + bytes_field(3, halves + unknown + bytes_field(1, b"w")) + b"\x08\x00"
    assert decode(data, PATH, ROOM).layouts == {"w": DeviceLayout((1, 2), ((0,),))}


def test_merged_names_are_split_at_the_first_dash_only_where_all_have_one():
    one = decode(item(b"0-a-b") + item(b"1-a-b") + item(b"10-c"), PATH, ROOM)
    assert one.is_merged
    assert {stage: list(names) for stage, names in one.stages.items()} == {0: ["a-b"], 1: ["a-b"], 10: ["c"]}
    other = decode(item(b"0-a") + item(b"b-1") + item(b"00-a"), PATH, ROOM)
    assert not other.is_merged
    assert list(other.stages[None]) == ["0-a", "b-1", "00-a"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no tensor"),
        (number_field(1, 0), "no tensor"),
        (item(devices=(0, 2)), "an axis of 0 devices"),
        (item(devices=(-1, 2)), "an axis of -1 devices"),
        (item(devices=(1 << 40,)), "an axis of 1099511627776 devices"),
        (item(devices=(1 << 15, 1 << 15)), "1073741824 ranks"),
        (item(devices=(1,) * 40), "a device matrix of 40 axes"),
        (item(maps=[(-1,) * 40]), "more than 32 dimensions"),
        (item(maps=[(0,)] * 40), "more than 32 dimensions"),
        (item(maps=[(2, -1)]), "w is cut along device axis 2, and the device matrix has 2"),
        (item(maps=[(-2, -1)]), "device axis -2"),
        (item(maps=[(0, 0)]), "device axis 0 twice"),
        (item(maps=[(0, 1), (1,)]), "device axis 1 twice"),
        (item(maps=[]), "no device matrix or no tensor map"),
        (item(more=number_field(6, 1) + number_field(7, -2)), "into -2 parts"),
        (item((b"w"), (4, 2), more=number_field(6, 1) + number_field(7, 3)), "into 3 parts, and 4 ranks"),
        (item(b"\xff"), "byte 4: a name is not UTF-8"),
        (item() + item(maps=[(-1, 0)]), "two layouts of w"),
        (item() + item(b"v", (4,)), "cuts w for 2 ranks, v for 4"),
        (item(b"0-w") + item(b"0-v", (4,)), "cuts w for 2 ranks, v for 4"),
        (bytes_field(3, bytes_field(1, b"w")), "byte 2: a layout has no name, or a name no layout"),
        (item(more=bytes_field(3, b"\x08\x00" * 70000)), "a list has more than 65536 numbers"),
        (item(more=bytes_field(3, bytes_field(1, bytes(70000)))), "a list has more than 65536 numbers"),
        (b"\x1b", "byte 0: a field has the wire type 3"),
        (b"\x02\x00", "the number 0"),
        (b"\x1a\x7f", "byte 0: a field reaches 127 bytes past the end"),
        (b"\x08" + b"\xff" * 11, "byte 1: a number is cut off"),
        (bytes_field(2, bytes_field(2, number_field(1, 1 << 50))) + item(), "more than any training has"),
    ],
)
def test_refused(data, said):
    refused(data, PATH.name, said)


def test_stages_of_a_merged_file_may_have_matrices_of_their_own():
    assert decode(item(b"0-w", (2,), [(0,)]) + item(b"1-w", (1, 2)), PATH, ROOM).is_merged


def test_uneven_parts_are_refused_and_even_ones_are_not():
    refused(item(more=number_field(5, 1)), "w is cut into parts of different sizes", error=UnsupportedError)
    parts = bytes_field(3, numbers_message([3, 5]))
    refused(item(more=parts), "w is cut into parts of different sizes", error=UnsupportedError)
    assert decode(item(more=bytes_field(3, numbers_message([4, 4]))), PATH, ROOM).layouts["w"] == COLUMN


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        ("{}", "no tensor"),
        ('{"parallel_layout_item": []}', "no tensor"),
        ('{"parallel_layout_item": [1]}', "parallel_layout_item is not an object"),
        ('{"parallel_layout_item": {"w": 1}}', "w is not an object"),
        ('{"parallel_layout_item": {"w": {}}}', "tensor_map"),
        ('{"parallel_layout_item": {"w": {"dev_matrix": [1.5], "tensor_map": []}}}', "dev_matrix"),
        ('{"parallel_layout_item": {"w": {"dev_matrix": [true], "tensor_map": []}}}', "dev_matrix"),
        ('{"parallel_layout_item": {"w": {"dev_matrix": [2], "tensor_map": [0], "tensor_shape": [2, 2]}}}', "shape"),
        ('{"parallel_layout_item": {"\\ud800": {"dev_matrix": [2], "tensor_map": [0]}}}', "not Unicode"),
        ('{"parallel_strategy_item": {"n": {"stage": "0"}}}', "stage"),
        ('{"parallel_layout_item": {"w": {"dev_matrix": [1e999], "tensor_map": []}}}', "dev_matrix"),
    ],
)
def test_json_refused(text, said):
    refused(text.encode(), JSON.name, said, path=JSON)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"\x0a\x05hello")
    with pytest.raises(SourceError, match="begins like a checkpoint"):
        read(path, ROOM)
    path.write_bytes(b"")
    with pytest.raises(SourceError, match="empty"):
        read(path, ROOM)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SourceError, match="git-lfs"):
        read(path, ROOM)


@pytest.mark.parametrize(
    ("begins", "size", "said"),
    [
        (bytes(512), 1 << 30, "begins with 512 zeros"),
        ((1000).to_bytes(8, "little") + b'{"w":', 1 << 29, "is a safetensors file"),
        ((8).to_bytes(8, "little") + b"{}      ", 16, "is a safetensors file"),
        (b"PK\x03\x04", 1 << 29, "is a torch file"),
        (b"\x0a\x08\x08", 1 << 29, "begins like a checkpoint"),
        (b"GGUF", 1 << 29, "does not begin like one"),
    ],
)
@pytest.mark.parametrize("name", [PATH.name, JSON.name, "model.safetensors"])
def test_large_files_of_another_kind_are_not_charged(name, begins, size, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(begins)
    os.truncate(path, size)
    with pytest.raises(SourceError, match=f"{name} is not a strategy file of MindSpore: it {said}"):
        read(path, HeaderRoom(1 << 20, memory_limit=1 << 30))


def test_no_more_than_there_is_room_for(tmp_path):
    path = tmp_path / PATH.name
    path.write_bytes(encode(0, {"w" * 100: COLUMN}))
    with pytest.raises(BudgetError):
        read(path, HeaderRoom(100, memory_limit=1 << 20))
    many = b"".join(item(str(number).encode()) for number in range(1000))
    refused(many, f"{PATH.name} (", error=BudgetError, room=HeaderRoom(len(many), memory_limit=1 << 20))
    text = json.dumps({"parallel_layout_item": {str(number): [] for number in range(1000)}}).encode()
    refused(text, path=JSON, error=BudgetError, room=HeaderRoom(len(text), memory_limit=1 << 20))


WHOLE = encode(0, LAYOUTS) if len({layout.ranks for layout in LAYOUTS.values()}) == 1 else b""


def test_every_truncation_is_refused_or_says_less():
    for end in range(len(WHOLE)):
        try:
            found = decode(WHOLE[:end], PATH, ROOM)
        except StreamconvError:
            continue
        assert set(found.layouts) < set(LAYOUTS)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_changed_byte_never_crashes(at, byte):
    data = bytearray(WHOLE)
    data[at] = byte
    try:
        found = decode(bytes(data), PATH, ROOM)
    except StreamconvError:
        return
    for layout in found.layouts.values():
        assert all(
            at < divisions for at, divisions in zip(layout.index_of(layout.ranks - 1), layout.divisions, strict=True)
        )


@given(st.binary(max_size=60))
def test_any_bytes_never_crash(data):
    for path in (PATH, JSON):
        try:
            decode(data, path, ROOM)
        except StreamconvError:
            continue


def test_a_large_file_is_fast():
    names = [f"model.layers.{i}.feed_forward.w{n}.weight" for i in range(100) for n in range(15)]
    data = encode(0, {name: list(LAYOUTS.values())[i % 7] for i, name in enumerate(names)})
    times = []
    for _ in range(5):
        begin = time.process_time()
        assert len(decode(data, PATH, ROOM).layouts) == len(names)
        times.append(time.process_time() - begin)
    assert min(times) < 0.03
