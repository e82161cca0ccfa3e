"""Verification: every changed byte is found, against the manifest and against the source."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import streamconv
from streamconv.errors import SourceError, StreamconvError, UsageError, VerificationError
from streamconv.formats.catalog import open_catalog
from support import running
from support.running import call, flip

KINDS = {
    "directory": ("dest", {"max_shard_size": 5000}),
    "ckpt": ("dest.ckpt", {}),
    "ckpt with crc": ("dest.ckpt", {"crc": True}),
    "hf": ("dest", {"model": "raw", "format": "hf", "max_shard_size": 5000}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """For each kind of destination: its source, and itself."""
    root = tmp_path_factory.mktemp("made")
    source = running.tiny(root / "source")
    result = {}
    for kind, (name, arguments) in KINDS.items():
        folder = root / kind
        folder.mkdir()
        streamconv.convert(source, folder / name, **arguments)
        result[kind] = source, folder / name
    return result


def proven(dest: Path) -> list[Path]:
    """The files whose bytes the manifest proves."""
    if dest.is_file():
        return [dest]
    return sorted(p for p in dest.iterdir() if p.name not in ("config.json", "streamconv.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_untouched(kind: str, made) -> None:
    source, dest = made[kind]
    files = proven(dest)
    assert len(files) == {"directory": 4, "hf": 4}.get(kind, 1)
    alone, against = streamconv.verify(dest), streamconv.verify(dest, source=source)
    assert alone.files == against.files == len(files)
    assert alone.tensors == against.tensors == 21
    assert alone.bytes_read == sum(p.stat().st_size for p in files)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_byte_is_found(kind: str, made) -> None:
    """Every byte: lengths, headers, records, tensors, index, CRC."""
    _, dest = made[kind]
    for path in proven(dest):
        size = path.stat().st_size
        for position in {*range(0, size, 11), *range(min(size, 64)), *range(size - 20, size)}:
            flip(path, position)
            with pytest.raises(VerificationError, match=f"{path.name} differs from its manifest between byte 0 and"):
                streamconv.verify(dest)
            flip(path, position)
    assert streamconv.verify(dest)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_byte_is_found_by_the_source(kind: str, made) -> None:
    source, dest = made[kind]
    for path in proven(dest):
        size = path.stat().st_size
        for position in {*range(0, size, 509), 0, 9, size - 1, size - 12, size - 17, size - 18}:
            flip(path, position)
            with pytest.raises(VerificationError, match=f"{path.name} differs .* at byte {position} of the file \\("):
                streamconv.verify(dest, source=source)
            flip(path, position)
    assert streamconv.verify(dest, source=source)


@pytest.mark.parametrize("kind", ["directory", "ckpt with crc"])
def test_the_message_names_what_differs(kind: str, made) -> None:
    source, dest = made[kind]
    ref = open_catalog(dest)["model.layers.1.feed_forward.w2.weight"]
    extent = ref.extents[0]
    flip(extent.file.path, extent.offset + 7)
    with pytest.raises(
        VerificationError,
        match=r"tensors there: (model\.[^;]*(; )?){5} and \d+ more\)\nhint: copy it again, or convert again",
    ):
        streamconv.verify(dest)
    with pytest.raises(
        VerificationError, match=rf"at byte {extent.offset + 7} of the file \(byte 7 of tensor {ref.name}\)"
    ):
        streamconv.verify(dest, source=source)
    flip(extent.file.path, extent.offset + 7)
    flip(proven(dest)[0], 3)
    with pytest.raises(VerificationError, match=r"at byte 3 of the file \(in a header\)"):
        streamconv.verify(dest, source=source)
    flip(proven(dest)[0], 3)


def test_the_crc_and_the_index_are_named(made) -> None:
    source, dest = made["ckpt with crc"]
    size = dest.stat().st_size
    flip(dest, size - 1)
    with pytest.raises(
        VerificationError, match=rf"at byte {size - 1} of the file \(in the CRC of bytes 0 to {size - 17}\)"
    ):
        streamconv.verify(dest, source=source)
    flip(dest, size - 1)
    source, dest = made["directory"]
    flip(dest / "param_name_map.json", 30)
    with pytest.raises(
        VerificationError, match=r"param_name_map.json differs .* at byte 30 of the file \(in the index\)"
    ):
        streamconv.verify(dest, source=source)
    flip(dest / "param_name_map.json", 30)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["shorter", "longer", "missing", "empty"])
def test_a_file_of_another_length(kind: str, change: str, made, tmp_path: Path) -> None:
    source, original = made[kind]
    shutil.copytree(original.parent, tmp_path / "copy")
    dest = tmp_path / "copy" / original.name
    for path in proven(dest):
        data = path.read_bytes()
        path.unlink()
        if change != "missing":
            path.write_bytes({"shorter": data[:-1], "longer": data + b"\0", "empty": b""}[change])
        gone = change == "missing" and dest == path
        for words in ([dest], [source, dest]):
            with pytest.raises(SourceError if gone else VerificationError, match=path.name) as caught:
                streamconv.verify(words[-1], source=words[0] if len(words) == 2 else None)
            assert "again" in str(caught.value)
        path.write_bytes(data)
    assert streamconv.verify(dest)


def test_another_source(made, tmp_path: Path) -> None:
    source, dest = made["directory"]
    shutil.copytree(source, tmp_path / "other")
    shard = max((tmp_path / "other").glob("*.safetensors"))
    flip(shard, shard.stat().st_size - 1)
    with pytest.raises(VerificationError, match=r"tensor lm_head\.weight"):
        streamconv.verify(dest, source=tmp_path / "other")


def test_arguments_come_from_the_manifest_and_can_be_given(tmp_path: Path, capsys) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest.ckpt"
    words = ["--dtype", "fp16", "-o", "qkv_concat=true", "--crc"]
    assert call(capsys, "convert", source, dest, *words).code == 0
    assert call(capsys, "verify", source, dest, "--io", "read", "--workers", 2, "--max-mem", "8G").code == 0
    assert streamconv.verify(dest, source=source)
    with pytest.raises(VerificationError, match="but should have"):
        streamconv.verify(dest, source=source, dtype="fp32")
    (tmp_path / "dest.ckpt.streamconv.json").unlink()
    with pytest.raises(VerificationError):
        streamconv.verify(dest, source=source)
    assert streamconv.verify(dest, source=source, dtype="fp16", options={"qkv_concat": True}, crc=True)


def test_the_way_back(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    streamconv.convert(source, tmp_path / "ms", options={"qkv_concat": "blocks"})
    streamconv.convert(tmp_path / "ms", tmp_path / "hf", reverse=True, max_shard_size=5000)
    assert streamconv.verify(tmp_path / "hf", source=tmp_path / "ms").files == 4
    flip(max((tmp_path / "hf").glob("*.safetensors")), 5)
    with pytest.raises(VerificationError):
        streamconv.verify(tmp_path / "hf", source=tmp_path / "ms")


def test_without_a_manifest(made) -> None:
    source, _ = made["directory"]
    with pytest.raises(UsageError, match="has no manifest\nhint: compare it with what it was made from: give source"):
        streamconv.verify(source)


def test_nothing_there(tmp_path: Path, made) -> None:
    for words in ([tmp_path / "nothing"], [made["ckpt"][0], tmp_path / "nothing"], [tmp_path / ("x" * 300)]):
        with pytest.raises(SourceError, match=r"[Nn]o such file"):
            streamconv.verify(words[-1], source=words[0] if len(words) == 2 else None)


def test_nothing_is_written(made) -> None:
    source, dest = made["directory"]
    before = running.tree(source.parent)
    streamconv.verify(dest)
    streamconv.verify(dest, source=source)
    assert running.tree(source.parent) == before


def test_progress_ends_at_the_total(made) -> None:
    for words in (made["directory"][1:], made["directory"]):
        seen: list[streamconv.Progress] = []
        streamconv.verify(words[-1], source=words[0] if len(words) == 2 else None, progress=seen.append)
        done = [p.done for p in seen]
        assert done == sorted(done)
        assert done[-1] == seen[-1].total > 0


BROKEN = {
    "not JSON": lambda m: "{",
    "not an object": lambda m: "[]",
    "too deep": lambda m: "[" * 100_000,
    "not UTF-8": lambda m: b"\xff\xfe\xfd",
    "an older version": lambda m: json.dumps({**m, "manifest": 0}),
    "no version": lambda m: json.dumps({**m, "manifest": None}),
    "no files": lambda m: json.dumps({**m, "files": None}),
    "a path": lambda m: json.dumps({**m, "files": {"../../etc/passwd": {"size": 1, "blocks": []}}}),
    "the directory": lambda m: json.dumps({**m, "files": {"..": {"size": 1, "blocks": []}}}),
    "a path in a folder": lambda m: json.dumps({**m, "files": {"rank_0/../../a": {"size": 1, "blocks": []}}}),
    "a folder above": lambda m: json.dumps({**m, "files": {"../a": {"size": 1, "blocks": []}}}),
    "an absolute path": lambda m: json.dumps({**m, "files": {"/a": {"size": 1, "blocks": []}}}),
    "a backslash in a folder": lambda m: json.dumps({**m, "files": {"..\\a/a": {"size": 1, "blocks": []}}}),
    "two folders": lambda m: json.dumps({**m, "files": {"a/b/c": {"size": 1, "blocks": []}}}),
    "the same as nothing": lambda m: json.dumps({**m, "files": {"a": {"same": "b"}}}),
    "the same as a link": lambda m: json.dumps(
        {**m, "files": {"a": {"size": 1, "blocks": []}, "b": {"same": "a"}, "c": {"same": "b"}}}
    ),
    "no size": lambda m: json.dumps({**m, "files": {"a": {"blocks": []}}}),
    "numbers as digests": lambda m: json.dumps({**m, "files": {"a": {"size": 1, "blocks": [1]}}}),
    "no tensors": lambda m: json.dumps({**m, "tensors": []}),
    "broken extents": lambda m: json.dumps({**m, "tensors": {"a": {"file": "a", "extents": [[1], "x", None]}}}),
}


def test_a_manifest_of_a_newer_version_says_what_to_do(made, tmp_path: Path) -> None:
    shutil.copytree(made["directory"][1], tmp_path / "dest")
    place = tmp_path / "dest" / "streamconv.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "manifest": 99}))
    with pytest.raises(
        SourceError,
        match=r"json was written by a newer streamconv \(manifest version 99\)\nhint: upgrade streamconv",
    ):
        streamconv.verify(tmp_path / "dest")


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_manifest_is_said_to_be_broken(what: str, made, tmp_path: Path, capsys) -> None:
    shutil.copytree(made["directory"][1], tmp_path / "dest")
    place = tmp_path / "dest" / "streamconv.json"
    text = BROKEN[what](json.loads(place.read_text()))
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    for flipped in (False, True):
        if flipped:
            flip(min((tmp_path / "dest").glob("*.safetensors")), 0)
        ended = call(capsys, "verify", tmp_path / "dest")
        assert ended.code in ((3, 7) if flipped else (3,)), ended.err
        if ended.code == 3:
            assert "streamconv.json" in ended.err
            assert "convert again" in ended.err


@pytest.mark.parametrize("key", ["model", "direction", "options", "dtype", "format", "max_shard_size", "crc", "plan"])
@pytest.mark.parametrize("value", [None, [], {"a": []}, 7, "zzz"])
def test_a_manifest_of_nonsense_is_no_fault_of_ours(key: str, value: object, made, tmp_path: Path) -> None:
    source, dest = made["directory"]
    shutil.copytree(dest, tmp_path / "dest")
    place = tmp_path / "dest" / "streamconv.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), key: value}))
    for act in (
        lambda: streamconv.verify(tmp_path / "dest", source=source),
        lambda: streamconv.plan(tmp_path / "dest", tmp_path / "back", reverse=True),
    ):
        try:
            act()
        except StreamconvError as error:
            assert error.exit_code in (2, 3, 4, 7)


def test_a_manifest_that_is_too_large(tmp_path: Path, made) -> None:
    shutil.copytree(made["directory"][1], tmp_path / "dest")
    os.truncate(tmp_path / "dest" / "streamconv.json", 1 << 30)
    with pytest.raises(SourceError, match="has 1073741824 bytes, but a manifest has at most"):
        streamconv.verify(tmp_path / "dest")
