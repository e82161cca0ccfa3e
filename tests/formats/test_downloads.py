"""streamconv.formats.downloads: what programs leave next to a file that is not complete, and next to one that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streamconv.errors import SourceError
from streamconv.formats import downloads, safetensors, shards
from streamconv.formats.catalog import open_catalog
from streamconv.formats.downloads import MARKS
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support.helpers import text_of

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
HASH = downloads.hub_hash(B)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path, file_bytes) -> Write:
    def run(name: str, tensor: str) -> Path:
        path = tmp_path / name
        output = safetensors.lay_out(name, [TensorSpec(tensor, dtypes.F32, (2,))], {})
        path.write_bytes(file_bytes(output, {tensor: bytes(8)}))
        return path

    return run


@pytest.fixture
def sharded(write) -> None:
    write(A, "a")
    write(B, "b")


def mark(directory: Path, name: str) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\1")


def refused(path: Path, *expected: str) -> str:
    with pytest.raises(SourceError) as caught:
        open_catalog(path)
    said = text_of(caught.value)
    assert [text for text in expected if text not in said] == [], said
    return said


OPEN = {
    f"{B}.aria2": "aria2's control file",
    f"{B}.st": "axel's state file",
    f"{B}.incomplete": "huggingface_hub's partial download",
    f"{B}.part": "a partial download, such as Firefox's",
    f"{B}.crdownload": "Chrome's partial download",
    f"{B}.opdownload": "Opera's partial download",
    f"{B}.download": "Safari's partial download",
    f"{B}.0a1b2c3d.partial": "a partial download, such as rclone's",
    f"{B}.partial": "a partial download, such as rclone's",
    f"{B}.filepart": "WinSCP's partial download",
    f"{B}.xltd": "Thunder's partial download",
    f"{B}.baiduyun.p.downloading": "Baidu's partial download",
    f"{B}.!qB": "qBittorrent's partial download",
    f"{B}_.gstmp": "gsutil's partial download",
}
APART = {
    f"{B}.6eF0a1b2": "the AWS CLI's partial download",
    f".{B}.Xa09Zz": "a partial copy of rsync",
    f".rsync-partial/{B}": "a partial copy of rsync",
    f"._____temp/{B}": "ModelScope's partial download",
    f".cache/huggingface/download/{HASH}.0123456789abcdef.incomplete": "huggingface_hub's partial download",
    f".cache/huggingface/download/{HASH}.0123456789abcdef.9f8e7d6c.incomplete": "huggingface_hub's partial download",
    f".cache/huggingface/download/{B}.0123456789abcdef.incomplete": "huggingface_hub's partial download",
}


def test_the_menu_has_every_mark() -> None:
    texts = {mark.what for mark in MARKS} | set(downloads.FOLDERS.values())
    assert texts <= {*OPEN.values(), *APART.values()}


@pytest.mark.parametrize("name", [*OPEN, *APART])
def test_a_mark_is_known_by_its_name(name: str) -> None:
    assert downloads.is_mark(name) == ("/" not in name or name.endswith(".incomplete"))
    assert not downloads.is_mark(B)
    assert not any(map(downloads.is_mark, ["model.safetensors", "net.ckpt", ".pytorch_model.bin", "a.pt", ".a.pth"]))


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("name", [*OPEN, *APART])
def test_a_missing_shard_that_is_being_downloaded(write, tmp_path, name: str, with_index: bool) -> None:
    write(A, "a")
    mark(tmp_path, name)
    if with_index:
        (tmp_path / shards.HF_INDEX).write_bytes(shards.index_bytes(0, {"a": A, "b": B}))
    refused(tmp_path, f"{B} is not complete: {name}, {(OPEN | APART)[name]}, is there", "let the download finish")


@pytest.mark.parametrize("name", OPEN)
def test_a_shard_that_looks_complete(sharded, tmp_path, name: str) -> None:
    """Aria2 sets the whole size first: header and size are those of the complete file."""
    mark(tmp_path, name)
    said = refused(tmp_path, f"{B} is not complete: {name}, {OPEN[name]}", f"if it has finished, remove {name}")
    assert refused(tmp_path / B, "is not complete") == said
    assert open_catalog(tmp_path / A).warnings == (
        f"{A} is shard 1 of 2; for the whole checkpoint, give its directory",
    )


@pytest.mark.parametrize("name", APART)
def test_a_complete_shard_with_a_left_over_elsewhere(sharded, tmp_path, name: str) -> None:
    mark(tmp_path, name)
    said = f"{name} is there, {APART[name]}: of {B}, unless it is left of an earlier attempt"
    assert open_catalog(tmp_path).warnings == (said,)
    assert said in open_catalog(tmp_path / B).warnings


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin.aria2",
        "tokenizer.st",
        ".tokenizer.json.Xa09Zz",
        ".cache/huggingface/download/" + f"{B}.metadata",
        ".cache/huggingface/download/" + f"{B}.lock",
        ".cache/huggingface/download/" + "0" * 28 + ".0123.incomplete",
        "._____temp/tokenizer.json",
        f"{B}.bak",
        f"{B}.20260131",
        f"{B}.sha256",
        f"{B}.md5sum01",
        f".{B}.swp",
        ".model-00002-of-00002.Xa09Zz",
    ],
)
def test_marks_of_other_files_and_of_none(sharded, tmp_path, name: str) -> None:
    mark(tmp_path, name)
    assert open_catalog(tmp_path).warnings == ()


SMALL = ["config.json", shards.HF_INDEX]


@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("ending", ["aria2", "part"])
def test_a_small_file_that_is_read(sharded, tmp_path, small: str, ending: str) -> None:
    (tmp_path / shards.HF_INDEX).write_bytes(shards.index_bytes(0, {"a": A, "b": B}))
    (tmp_path / "config.json").write_text("{}")
    mark(tmp_path, f"{small}.{ending}")
    refused(tmp_path, f"{small} is not complete: {small}.{ending}, a", f"if it has finished, remove {small}.{ending}")


def test_half_an_index(sharded, tmp_path) -> None:
    (tmp_path / shards.HF_INDEX).write_text('{"weight_map"')
    mark(tmp_path, f"{shards.HF_INDEX}.aria2")
    refused(tmp_path, f"{shards.HF_INDEX} is not complete: ", "let the download finish")


def test_a_config_that_is_not_there_yet(sharded, tmp_path) -> None:
    mark(tmp_path, "config.json.part")
    refused(tmp_path, "config.json is not complete: ", "let the download finish")


def test_the_config_next_to_a_single_file(sharded, tmp_path) -> None:
    mark(tmp_path, "config.json.aria2")
    assert len(open_catalog(tmp_path / A).warnings) == 1
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path / A, "config.json is not complete: config.json.aria2")


def test_an_index_that_is_not_read(sharded, tmp_path) -> None:
    mark(tmp_path, f"{shards.TORCH_INDEX}.aria2")
    said = f"{shards.TORCH_INDEX} ({shards.TORCH_INDEX}.aria2, aria2's control file, is there)"
    assert open_catalog(tmp_path).warnings == (f"the download of 1 file next to the weights is not complete: {said}",)


def test_companions_that_are_being_downloaded(sharded, tmp_path) -> None:
    mark(tmp_path, "tokenizer.json.aria2")
    mark(tmp_path, "vocab.txt.part")
    (said,) = open_catalog(tmp_path).warnings
    assert said == (
        "the download of 2 files next to the weights is not complete: "
        "tokenizer.json (tokenizer.json.aria2, aria2's control file, is there), "
        "vocab.txt (vocab.txt.part, a partial download, such as Firefox's, is there)"
    )


def test_a_result_of_ours_that_is_built_again(write, tmp_path) -> None:
    """With overwrite, the old result stays complete next to the new one."""
    write("model.safetensors", "a")
    mark(tmp_path, "model.safetensors.partial")
    mark(tmp_path, "model.safetensors.partial.streamconv")
    assert open_catalog(tmp_path).warnings == ()


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors.crdownload",
        "net.ckpt.part",
        "pytorch_model.bin.aria2",
        "._____temp/model.safetensors",
        f".cache/huggingface/download/{downloads.hub_hash('model.safetensors')}.01.incomplete",
    ],
)
def test_nothing_but_a_partial_download(tmp_path, name: str) -> None:
    mark(tmp_path, name)
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "is not complete", "let the download finish")


def test_nothing_but_the_tokenizers_partial_download(tmp_path) -> None:
    mark(tmp_path, "tokenizer.json.part")
    refused(tmp_path, "holds no file to read")


def test_a_snapshot_whose_blobs_are_not_complete(tmp_path, file_bytes) -> None:
    snapshot = tmp_path / "models--o--m" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / shards.HF_INDEX).write_bytes(shards.index_bytes(0, {"a": A}))
    refused(snapshot, f"lacks 1 shard: {A}; download them again")
    mark(tmp_path, "models--o--m/blobs/0123.incomplete")
    refused(snapshot, f"lacks 1 shard: {A}; huggingface_hub did not finish the download: start it again")


@pytest.mark.parametrize(
    "given", ["hub", "hub/models--o--m", "hub/models--o--m/snapshots", ".", "hub/models--o--m/snapshots/abc"]
)
def test_a_cache_in_which_only_the_weights_are_not_complete(tmp_path, monkeypatch, given: str) -> None:
    """What an interrupted download of a model in a single file leaves."""
    mark(tmp_path, "hub/models--o--m/snapshots/abc/config.json")
    refused(tmp_path / given, "holds no file to read")
    mark(tmp_path, "hub/models--o--m/blobs/0123.incomplete")
    said = (
        "models--o--m/blobs/0123.incomplete, huggingface_hub's partial download, is there",
        "; huggingface_hub did not finish the download: start it again",
    )
    refused(tmp_path / given, f"{tmp_path / given} holds no weights: ", *said)
    monkeypatch.chdir(tmp_path / given)
    refused(Path(), *said)


def test_a_cache_with_another_model_that_is_complete(write, tmp_path) -> None:
    mark(tmp_path, "models--o--m/snapshots/abc/config.json")
    mark(tmp_path, "models--o--m/blobs/0123.incomplete")
    (tmp_path / "models--o--n/snapshots/def").mkdir(parents=True)
    write("models--o--n/snapshots/def/model.safetensors", "a")
    refused(tmp_path, "they are in models--o--n/snapshots/def")


def test_the_hash_is_huggingface_hubs(tmp_path) -> None:
    folder = pytest.importorskip("huggingface_hub._local_folder")
    paths = folder.get_local_download_paths(tmp_path, B)
    assert paths.incomplete_path("etag").name.startswith(f"{HASH}.etag")
