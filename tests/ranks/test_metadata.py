"""streamconv.ranks.metadata: metadata.json of MindFormers 1.7 to 2.1, and what is refused in one."""

import copy
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamconv.errors import BudgetError, SourceError, StreamconvError, UnsupportedError
from streamconv.formats.header_room import HeaderRoom
from streamconv.ranks import metadata
from streamconv.ranks.device_layouts import DeviceLayout
from streamconv.ranks.metadata import Holder, SavedLayout, ShardedTensor
from streamconv.tensors import dtypes
from support import golden_ranks
from support.helpers import text_of

ROOM = HeaderRoom()
CASES = [case for case in golden_ranks.cases() if not case.is_legacy]

LAYOUT = {
    "device_matrix": [2, 2],
    "tensor_map": [0, -1],
    "interleaved_parallel": False,
    "alias_name": ["a", "b"],
    "rank_list": [4, 5, 6, 7],
}


def tensor(shape=(4, 6), divisions=(2, 1), dtype="bfloat16", layout=None, **more):
    local = [size // parts for size, parts in zip(shape, divisions, strict=True)]
    count = int(np.prod(divisions))
    chunks = [{"global_offset": [number], "local_shape": local} for number in range(count)]
    properties = {"dtype": dtype, "replica_id": [0], "allow_shape_mismatch": False, "allow_to_save": True}
    stated = {"properties": properties, "global_shape": list(shape), "axis_fragmentations": list(divisions)}
    return {**stated, "layout": layout, "chunk": chunks, **more}


def held(*ranks, **more):
    return [{"file_name": f"model-{rank:07}-0000008.safetensors", "storage_rank": rank, **more} for rank in ranks]


@pytest.fixture
def stated():
    """One tensor in two slices, each held by two ranks."""
    return {
        "state_dict_metadata": {"w": tensor(layout=copy.deepcopy(LAYOUT))},
        "storage_data": {"('w', (0,))": held(4, 6), "('w', (1,))": held(5, 7)},
    }


@pytest.fixture
def read(tmp_path):
    def run(stated, room=ROOM):
        path = tmp_path / "metadata.json"
        path.write_text(stated if isinstance(stated, str) else json.dumps(stated, ensure_ascii=False), "utf-8")
        return metadata.read(path, room)

    return run


@pytest.fixture
def refused(read):
    def run(stated, *expected, error=SourceError, room=ROOM):
        with pytest.raises(error) as caught:
            read(stated, room)
        for text in ("metadata.json", *expected):
            assert text in text_of(caught.value)

    return run


def box(found, number):
    """The range of each dimension that a slice has in the whole tensor."""
    at = np.unravel_index(number, found.divisions)
    return tuple(slice(int(i) * n, (int(i) + 1) * n) for i, n in zip(at, found.slice_shape, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_slices_put_together_are_the_whole_tensors(case):
    found = metadata.read(case.checkpoint / "metadata.json", ROOM)
    files = {name: golden_ranks.arrays(case.checkpoint / name) for name in case.files}
    expected = {**case.unified, **case.optimizer}
    assert set(found) == set(expected)
    for name, one in found.items():
        dtype, shape, digest = expected[name]
        assert (one.dtype.name, one.shape) == (dtype, shape)
        whole = np.zeros(shape, f"u{one.dtype.itemsize}")
        for number, holders in enumerate(one.holders):
            for holder in holders:
                whole[box(one, number)] = files[holder.file_name][name]
        assert hashlib.sha256(whole.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_holders_are_those_that_the_layout_says(case):
    for one in metadata.read(case.checkpoint / "metadata.json", ROOM).values():
        layout, ranks = one.saved
        number = {rank: np.ravel_multi_index(layout.index_of(i), layout.divisions) for i, rank in enumerate(ranks)}
        for slice_number, holders in enumerate(one.holders):
            assert all(number[holder.rank] == slice_number for holder in holders)
            if not case.values["remove_redundancy"]:
                assert len(holders) == list(number.values()).count(slice_number)


def test_what_is_read(read, stated):
    name = "model-{:07}-0000008.safetensors"
    holders = tuple(tuple(Holder(name.format(rank), rank) for rank in ranks) for ranks in ((4, 6), (5, 7)))
    saved = SavedLayout(DeviceLayout((2, 2), ((0,), ())), (4, 5, 6, 7))
    assert read(stated) == {"w": ShardedTensor(dtypes.BF16, (4, 6), (2, 1), holders, saved)}


def test_variants(read):
    """Null layouts, no or other rank_group, PyNative's names of dtypes, chunks in any order, names with quotes."""
    several = {**LAYOUT, "tensor_map": [[1, 0], -1]}
    names = ["it's", 'say "w"', "层", "x\n"]
    tensors = dict(zip(names, (tensor((), (), "Float32"), tensor((8, 2), (4, 1), layout=several)), strict=False))
    tensors["层"] = tensor((4,), (4,), "Int32", {**LAYOUT, "tensor_map": [[0, 1]]})
    tensors["x\n"] = tensor((0, 3), (1, 3), "BOOL")
    tensors['say "w"']["chunk"].reverse()
    storage = {repr((name, (k,))): held(k) for name, one in tensors.items() for k in range(len(one["chunk"]))}
    storage[repr(("it's", (0,)))] = held(0, 3, rank_group=[0, 3])
    found = read({"state_dict_metadata": tensors, "storage_data": storage, "more": 1})
    assert [one.dtype.name for one in found.values()] == ["F32", "BF16", "I32", "BOOL"]
    assert [[h.rank for h in holders] for holders in found["it's"].holders] == [[0, 3]]
    assert [[h.rank for h in holders] for holders in found['say "w"'].holders] == [[0], [1], [2], [3]]
    assert found['say "w"'].saved.layout.axes == ((1, 0), ())
    assert found["层"].saved.layout.axes == ((0, 1),)
    assert found["it's"].saved is None


def test_equal_holders_are_one_object(read, stated):
    stated["state_dict_metadata"]["v"] = stated["state_dict_metadata"]["w"]
    stated["storage_data"] |= {"('v', (0,))": held(4, 6), "('v', (1,))": held(5, 7)}
    found = read(stated)
    assert found["w"].holders[0] is found["v"].holders[0]


W = ("state_dict_metadata", "w")
HOLDER = ("storage_data", "('w', (0,))", 0)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("state_dict_metadata",), None, "state_dict_metadata"),
        (("state_dict_metadata",), {}, "lists no tensor"),
        (("storage_data",), [], "storage_data"),
        (W, [], "w is not an object"),
        ((*W, "properties"), None, "properties of"),
        ((*W, "global_shape"), [4, -6], "negative dimension -6"),
        ((*W, "global_shape"), [4, 1 << 62], "2^63"),
        ((*W, "global_shape"), [5, 6], "w of shape [5, 6] cannot be cut into [2, 1]"),
        ((*W, "global_shape"), [4], "cannot be cut"),
        ((*W, "global_shape"), "46", "global_shape"),
        ((*W, "axis_fragmentations"), [0, 1], "cannot be cut"),
        ((*W, "axis_fragmentations"), [4, 1], "cut into 4 slices, and its chunks are 0, 1"),
        ((*W, "axis_fragmentations"), [1, 2], "slice 0 has the shape [2, 6], and [4, 3]"),
        ((*W, "chunk"), [], "cut into 2 slices"),
        ((*W, "chunk", 0, "global_offset"), [1], "global_offset"),
        ((*W, "chunk", 0, "global_offset"), [0, 0], "global_offset"),
        ((*W, "chunk", 0, "global_offset"), [2], "cut into 2 slices, and its chunks are 2, 1"),
        ((*W, "chunk", 0, "global_offset"), [-1], "chunks are -1, 1"),
        ((*W, "chunk", 0, "global_offset"), [True], "global_offset"),
        ((*W, "chunk", 1, "local_shape"), [1, 6], "slice 1 has the shape [1, 6], and [2, 6] is one of 2 of [4, 6]"),
        ((*W, "layout", "device_matrix"), [2, 0], "an axis of 0 devices"),
        ((*W, "layout", "tensor_map"), [0, 2], "device axis 2"),
        ((*W, "layout", "tensor_map"), [0, 1], "cut into [2, 1] parts, and its layout is of [2, 2] parts"),
        ((*W, "layout", "rank_list"), [4, 5, 6], "4 ranks, of which rank_list names 3"),
        ((*W, "layout", "rank_list"), [4, 5, 6, 6], "4 ranks, of which rank_list names 3"),
        ((*HOLDER, "storage_rank"), 0, "rank 0, and its layout is for other ranks"),
        ((*W, "layout", "rank_list"), [4, 5, 6, 1 << 30], "rank 1073741824"),
        (HOLDER[:2], [], "w, slice 0: storage_data names no file"),
        (HOLDER[:2], {"file_name": "a"}, "slice 0 is not a list"),
        (HOLDER, 1, "slice 0 is not an object"),
        ((*HOLDER, "file_name"), "../model.safetensors", "slice 0 is in a file without a plain name: ../model"),
        ((*HOLDER, "file_name"), "a\\b", "plain name"),
        ((*HOLDER, "file_name"), None, "plain name"),
        ((*HOLDER, "storage_rank"), -1, "the rank -1"),
        ((*HOLDER, "storage_rank"), "0", "storage_rank"),
        ((*HOLDER, "rank_group"), [5], "rank 4, which is not in its rank_group"),
    ],
)
def test_refused(stated, refused, keys, value, said):
    place = stated
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    refused(stated, said)


def test_unsupported(stated, refused):
    stated["state_dict_metadata"]["w"]["properties"]["dtype"] = "Float8E4M3FN"
    refused(stated, "w has type Float8E4M3FN", error=UnsupportedError)
    stated["state_dict_metadata"]["w"] = tensor(layout={**LAYOUT, "interleaved_parallel": True})
    refused(stated, "w is saved with interleaved_parallel", error=UnsupportedError)


def test_one_file_is_of_one_rank(stated, refused):
    """What names the file of rank 6 for a slice that rank 5 saved loads silently wrong in MindFormers."""
    stated["storage_data"]["('w', (1,))"][0]["file_name"] = "model-0000006-0000008.safetensors"
    refused(stated, "rank 6 wrote model-0000006-0000008.safetensors, for w, and that rank 5 did, for w")


def test_a_rank_has_the_slice_that_the_layout_says(stated, refused, read):
    storage = stated["storage_data"]
    storage["('w', (0,))"], storage["('w', (1,))"] = storage["('w', (1,))"], storage["('w', (0,))"]
    refused(stated, "w, slice 0 is stored by rank 5, and by its layout that rank has slice 1")
    stated["state_dict_metadata"]["w"]["layout"]["rank_list"] = [5, 4, 7, 6]
    assert [holder.rank for holder in read(stated)["w"].holders[0]] == [5, 7]
    stated["state_dict_metadata"]["w"]["layout"]["rank_list"] = [0, 1, 2, 3]
    refused(stated, "w, slice 0 is stored by rank 5, and its layout is for other ranks")


def test_the_order_of_several_axes_is_left_open(stated, read):
    """Which is the more significant was not measured for every version; who holds a slice does not depend on it."""
    stated["state_dict_metadata"]["w"] = tensor(divisions=(4, 1), layout={**LAYOUT, "tensor_map": [[0, 1], -1]})
    stated["storage_data"] = {f"('w', ({k},))": held(4 + k) for k in range(4)}
    assert [holders[0].rank for holders in read(stated)["w"].holders] == [4, 5, 6, 7]


def test_slices_of_no_tensor(stated, refused):
    stated["storage_data"]["('v', (0,))"] = held(4)
    stated["storage_data"]["('w', (2,))"] = held(4)
    refused(stated, "2 slices of no tensor", "('v', (0,)), ('w', (2,))")


def test_json_that_is_none(refused, stated):
    refused("", "not valid JSON")
    refused("[]", "not an object")
    refused('{"state_dict_metadata": {"w": {}, "w": {}}}', "twice")
    refused("version https://git-lfs.github.com/spec/v1", "git-lfs")
    stated["state_dict_metadata"]["w"]["global_shape"] = [1e999, 6]
    refused(json.dumps(stated), "global_shape")
    refused(json.dumps(stated).replace('"w"', '"\\ud800"'), "not Unicode")


def test_no_more_than_there_is_room_for(refused, stated):
    refused(stated, error=BudgetError, room=HeaderRoom(100, memory_limit=1 << 20))


SMALL = {
    "state_dict_metadata": {"w": tensor((2,), (2,), layout={**LAYOUT, "tensor_map": [0]})},
    "storage_data": {"('w', (0,))": held(4, rank_group=[4, 6]), "('w', (1,))": held(5)},
}


def places(value, at=()):
    """Every place in JSON."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*at, key))


ODD = st.sampled_from([None, True, -1, 0, 1, 2, 1 << 70, 1.5, "", "x", [], {}, [[]], [0, 0], {"a": []}])


@given(st.sampled_from([at for at in places(SMALL) if at]), ODD)
def test_any_other_value_never_crashes(tmp_path_factory, at, value):
    stated = copy.deepcopy(SMALL)
    place = stated
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    path = tmp_path_factory.getbasetemp() / "metadata.json"
    path.write_text(json.dumps(stated))
    try:
        found = metadata.read(path, ROOM)
    except StreamconvError:
        return
    assert all(len(one.holders) == np.prod(one.divisions) for one in found.values())
