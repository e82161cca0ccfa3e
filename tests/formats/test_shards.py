"""streamconv.formats: directories, their indexes, and the split into shards."""

import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamconv.errors import SourceError, UnsupportedError
from streamconv.formats import ckpt, safetensors, shards
from streamconv.formats.catalog import open_catalog
from streamconv.formats.header_room import HeaderRoom
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from streamconv.text import quote
from support.helpers import text_of

F32 = dtypes.F32
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def write(tmp_path, file_bytes):
    """Writes a safetensors (or .ckpt) file of small float32 tensors with these names."""

    def run(name, *tensors):
        specs = [TensorSpec(tensor, F32, (2,)) for tensor in tensors]
        output = ckpt.lay_out(name, specs) if name.endswith(".ckpt") else safetensors.lay_out(name, specs, {})
        path = tmp_path / name
        path.write_bytes(file_bytes(output, {tensor: bytes(8) for tensor in tensors}))
        return path

    return run


@pytest.fixture
def index(tmp_path):
    def run(weight_map, name=shards.HF_INDEX):
        (tmp_path / name).write_bytes(shards.index_bytes(0, weight_map))

    return run


@pytest.fixture
def sharded(write, index):
    write(B, "c", "a")
    write(A, "b", "d")
    index({"a": B, "b": A, "c": B, "d": A})


def refused(path, *expected, error=SourceError):
    with pytest.raises(error) as caught:
        open_catalog(path)
    said = text_of(caught.value)
    for text in expected:
        assert text in said


# Honest directories


def test_shards_in_order_of_name_and_offset(tmp_path, sharded):
    catalog = open_catalog(tmp_path)
    assert list(catalog) == ["b", "d", "c", "a"]
    assert [file.path.name for file in catalog.files] == [A, B]
    assert (catalog.format, catalog.directory, catalog.nbytes) == ("safetensors", tmp_path, 32)
    assert catalog.ignored == {}


@pytest.mark.parametrize("bare", [False, True])
def test_mindspores_map_in_both_spellings(tmp_path, write, bare):
    write("part0.safetensors", "a")
    write("part1.safetensors", "b")
    weight_map = {"a": "part0.safetensors", "b": "part1.safetensors"}
    content = weight_map if bare else {"metadata": {"total_size": 16}, "weight_map": weight_map}
    (tmp_path / shards.MS_MAP).write_text(json.dumps(content))
    assert list(open_catalog(tmp_path)) == ["a", "b"]


def test_a_bare_map_may_hold_a_tensor_called_weight_map(tmp_path, write):
    write("part0.safetensors", "weight_map")
    (tmp_path / shards.MS_MAP).write_text('{"weight_map": "part0.safetensors"}')
    assert list(open_catalog(tmp_path)) == ["weight_map"]


def test_what_mindspore_writes_next_to_its_map(tmp_path, write):
    """unified_safetensors puts parameters that are in no strategy into a file that its map does not name."""
    write("part0.safetensors", "a")
    write(shards.MS_REST, "epoch_num", "norm")
    (tmp_path / shards.MS_MAP).write_text('{"a": "part0.safetensors"}')
    catalog = open_catalog(tmp_path)
    assert sorted(catalog) == ["a", "epoch_num", "norm"]
    assert catalog.ignored == {}
    write("part1.safetensors", "b")
    assert list(open_catalog(tmp_path).ignored) == ["part1.safetensors"]
    (tmp_path / shards.MS_MAP).rename(tmp_path / shards.HF_INDEX)
    assert list(open_catalog(tmp_path).ignored) == [shards.MS_REST, "part1.safetensors"]


def test_shards_without_an_index(tmp_path, write):
    write("b.safetensors", "x")
    write("a.safetensors", "y")
    assert list(open_catalog(tmp_path)) == ["y", "x"]


@pytest.mark.parametrize(("name", "kind"), [("model.safetensors", "safetensors"), ("net.ckpt", "ckpt")])
def test_one_file_by_itself_and_by_its_directory(tmp_path, write, name, kind):
    path = write(name, "b", "a")
    for given_path in (path, tmp_path):
        catalog = open_catalog(given_path)
        assert (list(catalog), catalog.format, catalog.directory) == (["b", "a"], kind, tmp_path)
        assert (catalog.path, catalog.files[0].path) == (given_path, path)


def test_a_huggingface_cache_snapshot(tmp_path, sharded):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, name in enumerate((A, B, shards.HF_INDEX)):
        shutil.move(tmp_path / name, blobs / f"{number:064}")
        (snapshot / name).symlink_to(f"../../blobs/{number:064}")
    catalog = open_catalog(snapshot)
    assert list(catalog) == ["b", "d", "c", "a"]
    assert catalog.files[0].path == snapshot / A
    assert catalog.files[0].size == (blobs / f"{0:064}").stat().st_size


def test_what_is_left_alone_is_listed(tmp_path, sharded, write):
    beside = ["net.ckpt", "consolidated.safetensors", "adapter_model.safetensors", "model.safetensors"]
    for name in beside:
        write(name, "z")
    for name in (
        "pytorch_model-00001-of-00002.bin",
        "consolidated.00.pth",
        "x.pt",
        "x.gguf",
        "config.json",
        ".bin",
    ):
        (tmp_path / name).touch()
    (tmp_path / "original").mkdir()
    catalog = open_catalog(tmp_path)
    assert list(catalog) == ["b", "d", "c", "a"]
    assert sorted(catalog.ignored) == sorted(
        [*beside, "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "x.pt", "x.gguf", "original"]
    )
    assert "not named by the index" in catalog.ignored["model.safetensors"]
    assert "adapter" in catalog.ignored["adapter_model.safetensors"]
    assert "torch" in catalog.ignored["x.pt"]
    assert "safetensors" in catalog.ignored["net.ckpt"]
    assert "subdirectory" in catalog.ignored["original"]


def test_safetensors_win_without_an_index_too(tmp_path, write):
    write("net.ckpt", "z")
    write("consolidated.safetensors", "z")
    write("model.safetensors", "a")
    catalog = open_catalog(tmp_path)
    assert list(catalog) == ["a"]
    assert list(catalog.ignored) == ["consolidated.safetensors", "net.ckpt"]


def test_two_indexes_that_agree(tmp_path, sharded, index):
    index({"a": B, "b": A, "c": B, "d": A}, shards.MS_MAP)
    assert len(open_catalog(tmp_path)) == 4


def test_mindspores_samples_by_directory(samples):
    assert len(open_catalog(samples / "dist4" / "full" / "rank_0")) > 1


@pytest.mark.slow
def test_a_model_that_huggingface_hub_wrote(tmp_path):
    torch = pytest.importorskip("torch")
    hub = pytest.importorskip("huggingface_hub")
    tensors = {f"layer.{i}": torch.full((4, i + 1), float(i)) for i in range(6)}
    hub.save_torch_state_dict(tensors, tmp_path, max_shard_size=100)
    catalog = open_catalog(tmp_path)
    assert len(catalog.files) > 1
    assert {name: ref.shape for name, ref in catalog.items()} == {n: tuple(t.shape) for n, t in tensors.items()}


# Contradictions


def test_tensors_that_a_shard_lacks(tmp_path, sharded, index):
    index(dict.fromkeys("abcdefg", A))
    refused(tmp_path, "5 tensors of the index not found in the shards: ", "a (model-00001", "and 2 more")


def test_tensors_in_another_shard_than_named(tmp_path, sharded, index):
    index({"a": A, "b": A, "c": B, "d": A})
    refused(tmp_path, f"1 tensor of the index not found in the shards: a ({A})")


def test_tensors_that_the_index_lacks(tmp_path, sharded, index):
    index({"a": B, "b": A})
    refused(tmp_path, f"2 tensors of the shards not found in the index: d ({A}), c ({B})")


@pytest.mark.parametrize("with_index", [True, False])
def test_a_tensor_in_two_shards(tmp_path, write, index, with_index):
    write("m1.safetensors", "a", "b")
    write("m2.safetensors", "b", "c")
    if with_index:
        index({"a": "m1.safetensors", "b": "m1.safetensors", "c": "m2.safetensors"})
    catalog = open_catalog(tmp_path)
    ((kept, other),) = catalog.twice
    assert kept is catalog["b"]
    assert [ref.extents[0].file.path.name for ref in (kept, other)] == ["m1.safetensors", "m2.safetensors"]
    assert catalog.ignored == {"m2.safetensors: b": "in m1.safetensors too"}
    assert list(catalog) == ["a", "b", "c"]


def test_of_a_tensor_in_two_shards_the_index_chooses_one(tmp_path, write, index):
    write("m1.safetensors", "a", "b")
    write("m2.safetensors", "b", "c")
    index({"a": "m1.safetensors", "b": "m2.safetensors", "c": "m2.safetensors"})
    catalog = open_catalog(tmp_path)
    assert catalog["b"].extents[0].file.path.name == "m2.safetensors"
    assert [other.extents[0].file.path.name for _, other in catalog.twice] == ["m1.safetensors"]


@pytest.mark.parametrize(("dtype", "shape"), [(F32, (3,)), (dtypes.BF16, (2,)), (F32, (0,))])
def test_a_tensor_in_two_shards_in_other_shapes_or_dtypes(tmp_path, write, file_bytes, dtype, shape):
    write("m1.safetensors", "a", "b")
    spec = TensorSpec("b", dtype, shape)
    output = safetensors.lay_out("m2.safetensors", [spec], {})
    (tmp_path / "m2.safetensors").write_bytes(file_bytes(output, {"b": bytes(spec.nbytes)}))
    refused(
        tmp_path,
        "1 tensor in two files, in different shapes or dtypes",
        "b (m1.safetensors, m2.safetensors)",
        "ambiguous",
    )


def test_missing_shards_are_named_all_at_once(tmp_path, write, index):
    write(A, "a")
    index({"a": A, **{f"t{i}": f"gone{i}.safetensors" for i in range(5)}})
    refused(tmp_path, "lacks 5 shards: gone0.safetensors", "and 2 more")


def test_missing_shards_by_their_numbers(tmp_path, write):
    write("model-00001-of-00003.safetensors", "a")
    write("model-00003-of-00003.safetensors", "b")
    refused(tmp_path, "lacks 1 shard: model-00002-of-00003.safetensors")


@pytest.mark.parametrize(
    ("pattern", "present"),
    [("model-{:05}-of-000004.safetensors", (1, 2, 4)), ("model-{}-of-4.safetensors", (1, 2, 4))],
)
def test_missing_shards_by_deepseeks_and_kimis_numbers(tmp_path, write, pattern, present):
    for number in present:
        write(pattern.format(number), f"t{number}")
    refused(tmp_path, f"lacks 1 shard: {pattern.format(3)}; download them again")


def test_a_shard_too_many_to_list(tmp_path, write):
    write("model-00001-of-12345.safetensors", "a")
    refused(tmp_path, "lacks 12344 shards: model-00002-of-12345.safetensors", "and 12341 more")


def test_shards_whose_links_lead_nowhere(tmp_path, sharded):
    (tmp_path / B).unlink()
    (tmp_path / B).symlink_to("../blobs/gone")
    refused(tmp_path, f"lacks 1 shard: {B}")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", [B, shards.HF_INDEX])
def test_no_regular_file_in_its_place(tmp_path, sharded, make, name):
    (tmp_path / name).unlink()
    make(tmp_path / name)
    refused(tmp_path, name, "not a regular file")


def test_a_device_in_place_of_a_shard(tmp_path, sharded):
    (tmp_path / B).unlink()
    (tmp_path / B).symlink_to("/dev/zero")
    refused(tmp_path, B, "not a regular file but a device")


def test_a_broken_shard_is_named(tmp_path, sharded):
    with (tmp_path / B).open("r+b") as file:
        file.truncate((tmp_path / B).stat().st_size - 3)
    refused(
        tmp_path, f"{B} is truncated: tensor a ends at byte 136, the file at 133", "copy or download the file again"
    )


HOSTILE_NAMES = [
    "../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "x\0.safetensors",
    "sub/../" + A, "\udc80", "./" + A,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("index_name", [shards.HF_INDEX, shards.MS_MAP])
def test_names_in_an_index_do_not_leave_the_directory(tmp_path, write, index, name, index_name):
    inside = tmp_path / "inside"
    inside.mkdir()
    write("x.safetensors", "a")
    (inside / index_name).write_bytes(shards.index_bytes(0, {"a": name}))
    refused(inside, index_name, "not plain names")


def test_names_with_control_characters_are_escaped(tmp_path, index):
    index({"a": "\x1b[2J"})
    refused(tmp_path, "\\x1b[2J")


def test_a_name_longer_than_any_file(tmp_path, index):
    index({"a": "x" * 5000})
    refused(tmp_path, "lacks 1 shard")


@pytest.mark.parametrize(("content", "expected"), [
    (b"", "not valid JSON"),
    (b"[]", "not an object"),
    (b"{}", "no weight_map"),
    (b'{"weight_map": {}}', "no weight_map"),
    (b'{"weight_map": []}', "no weight_map"),
    (b'{"metadata": {}}', "no weight_map"),
    (b'{"weight_map": {"a": 1}}', "no weight_map"),
    (b'{"weight_map": {"a": "x", "b": null}}', "no weight_map"),
    (b'{"weight_map": {"a": "x", "a": "y"}}', "key a twice"),
    (b"\xff", "not UTF-8"),
    (b"[" * 200_000, "nested too deeply"),
])  # fmt: skip
def test_an_index_that_is_none(tmp_path, content, expected):
    (tmp_path / shards.HF_INDEX).write_bytes(content)
    refused(tmp_path, shards.HF_INDEX, expected)


def test_headers_and_index_beyond_the_budget_are_refused(tmp_path, sharded):
    with pytest.raises(SourceError, match=rf"{shards.HF_INDEX} \(.* bytes, about 5 values\) .* 10 are allowed"):
        open_catalog(tmp_path, lambda: HeaderRoom(10))
    (tmp_path / shards.HF_INDEX).unlink()
    used = safetensors.read(tmp_path / A, HeaderRoom(10_000))[0].size - 16
    open_catalog(tmp_path, lambda: HeaderRoom(2 * used))
    with pytest.raises(SourceError, match=f"the header of {B} .* {used - 9} are allowed"):
        open_catalog(tmp_path, map(HeaderRoom, [2 * used, 2 * used, used - 9]).__next__)


def test_two_indexes_that_contradict_each_other(tmp_path, sharded, index):
    index({"a": A}, shards.MS_MAP)
    refused(tmp_path, shards.HF_INDEX, shards.MS_MAP)


def test_several_ckpts(tmp_path, write):
    for name in ("a.ckpt", "b.ckpt"):
        write(name, "x")
    refused(tmp_path, "2 .ckpt files (a.ckpt, b.ckpt)")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.pth"])
def test_torch_files_that_are_none(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    refused(tmp_path / name, name)
    refused(tmp_path, name)


@pytest.mark.parametrize("name", ["x.gguf", "config.json", "blob"])
def test_files_of_other_formats(tmp_path, name):
    (tmp_path / name).touch()
    refused(tmp_path / name, name, error=UnsupportedError)


def test_nothing_to_read(tmp_path, write):
    refused(tmp_path, "holds no file to read that ends in .safetensors, .ckpt, .bin")
    write("consolidated.safetensors", "a")
    refused(tmp_path, "ignored: consolidated.safetensors: the publisher's own")


def test_an_adapter_is_read_where_there_is_nothing_else(tmp_path, write):
    write("adapter_model.safetensors", "a")
    assert list(open_catalog(tmp_path)) == ["a"]
    write("model.safetensors", "b")
    assert list(open_catalog(tmp_path)) == ["b"]
    assert open_catalog(tmp_path).ignored["adapter_model.safetensors"].startswith("an adapter, not a model")


@pytest.mark.parametrize("name", ["gone", "gone.safetensors", "a\0b", "x" * 300])
def test_a_path_that_does_not_exist(tmp_path, name):
    with pytest.raises(SourceError) as caught:
        open_catalog(tmp_path / name)
    assert text_of(caught.value)
    if "\0" not in name:
        assert caught.value.message.startswith(f"cannot open {quote(tmp_path / name)}: ")
        assert caught.value.hint


def test_a_fifo_given_directly(tmp_path):
    os.mkfifo(tmp_path / "x.ckpt")
    refused(tmp_path / "x.ckpt", "x.ckpt is not a regular file but a FIFO")


# Names, indexes, splits


def test_shard_names():
    assert shards.hf_shard_name(1, 1) == "model.safetensors"
    assert shards.hf_shard_name(3, 163) == "model-00003-of-00163.safetensors"
    assert shards.ms_shard_name(1, 1) == "ms-model-00001-of-00001.safetensors"
    assert shards.ms_shard_name(2, 12) == "ms-model-00002-of-00012.safetensors"


def test_index_to_the_byte():
    expected = b"""{
  "metadata": {
    "total_size": 7
  },
  "weight_map": {
    "b": "y",
    "\\u00e9": "x"
  }
}
"""
    assert shards.index_bytes(7, {"b": "y", "é": "x"}) == expected


@given(st.lists(st.integers(0, 30)), st.integers(1, 40))
def test_split_is_huggingface_hubs(sizes, limit):
    hub = pytest.importorskip("huggingface_hub")
    specs = {f"t{i}": TensorSpec(f"t{i}", dtypes.from_safetensors("U8", ""), (n,)) for i, n in enumerate(sizes)}
    expected = hub.split_state_dict_into_shards_factory(
        specs, get_storage_size=lambda s: s.nbytes, filename_pattern="m{suffix}", max_shard_size=limit
    )
    found = shards.split(list(specs.values()), limit)
    assert [[s.name for s in shard] for shard in found] == list(expected.filename_to_tensors.values())


# Variants -------------------------------------------------------------------------------------------------------------

WHISPER = ("model.safetensors", "model.fp32-00001-of-00002.safetensors", "model.fp32-00002-of-00002.safetensors")


def test_variants_beside_a_checkpoint_are_left_alone(tmp_path, write):
    """As openai/whisper-large-v3 is published: in float16, and again in float32."""
    for name, tensors in zip(WHISPER, (("a", "b"), ("a",), ("b",)), strict=True):
        write(name, *tensors)
    (tmp_path / "model.safetensors.index.fp32.json").write_text("{}")
    catalog = open_catalog(tmp_path)
    assert [file.path.name for file in catalog.files] == ["model.safetensors"]
    assert catalog.ignored == dict.fromkeys(WHISPER[1:], "a variant of the same weights")


def test_a_variant_alone_is_the_checkpoint(tmp_path, write):
    for name, tensor in zip(WHISPER[1:], "ab", strict=True):
        write(name, tensor)
    assert list(open_catalog(tmp_path)) == ["a", "b"]
