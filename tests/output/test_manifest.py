"""I3: the same plan gives the same bytes; and the manifest holds neither path nor time."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import xxhash

import streamconv
from streamconv.formats.catalog import open_catalog
from streamconv.output import manifest
from streamconv.units import BLOCK
from support import golden, running
from support.running import run, tree

FORWARD = [case for case in golden.cases("llama", "mixtral") if not case.arguments["reverse"]]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory) -> dict[str, Path]:
    """A model whose stacks are larger than a box, in one shard and in seven."""
    root = tmp_path_factory.mktemp("mixtral")
    one = running.mixtral(root / "one")
    return {"one": one, "seven": running.dealt_again(one, root / "seven", 7)}


def run_of(source: Path, dest: Path, *words: object) -> dict[str, bytes | str | None]:
    """Convert in a process of its own, whose memory is not ours, and give the files."""
    ended = run("convert", source, dest, "--quiet", "--json", *words)
    assert ended.code == 0, ended.err
    files = tree(dest) if dest.is_dir() else {p.name: p.read_bytes() for p in dest.parent.glob(dest.name + "*")}
    shutil.rmtree(dest) if dest.is_dir() else [p.unlink() for p in dest.parent.glob(dest.name + "*")]
    return files


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dest", "dest.ckpt"])
def test_workers_budget_io_and_shards_change_no_byte(name: str, mixtral: dict[str, Path], tmp_path: Path) -> None:
    options = ["-o", "use_gmm=true", *(["--crc"] if name != "dest" else ["--max-shard-size", "30MB"])]
    first = run_of(mixtral["one"], tmp_path / name, *options)
    assert len(first) == (2 if name != "dest" else 7)
    for source, workers, budget, io in (
        ("one", 1, "96M", "read"),
        ("seven", 2, "140M", "read"),
        ("seven", 1, "4G", "direct"),
    ):
        words = ["--workers", workers, "--max-mem", budget, "--io", io]
        assert run_of(mixtral[source], tmp_path / name, *options, *words) == first


@pytest.mark.slow
def test_an_interruption_changes_no_byte(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    streamconv.convert(source, tmp_path / "first")
    process = running.start("convert", source, tmp_path / "dest", "--workers", 1)
    running.wait_until(lambda: any((tmp_path / "dest.partial").glob("*.safetensors")), process)
    process.terminate()
    assert process.wait(timeout=60) == 143
    process.communicate()
    streamconv.convert(source, tmp_path / "dest")
    assert tree(tmp_path / "dest") == tree(tmp_path / "first")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dest", "dest.ckpt"])
@pytest.mark.parametrize("case", FORWARD[::4], ids=lambda case: case.name)
def test_cases_dealt_again(case: golden.Case, kind: str, tmp_path: Path) -> None:
    seen = []
    for count, workers in itertools.product((None, 2, 5), (1, 3)):
        folder = tmp_path / f"{count}-{workers}"
        folder.mkdir()
        source = case.write_source(folder / "source", count)
        streamconv.convert(source, folder / kind, workers=workers, **case.arguments)
        shutil.rmtree(source)
        seen.append(tree(folder))
    assert all(one == seen[0] for one in seen)


def test_no_path_and_no_time(tmp_path: Path) -> None:
    source = running.llama(tmp_path / "a-peculiar-source-name")
    streamconv.convert(source, tmp_path / "dest", dtype="bf16")
    text = (tmp_path / "dest" / "streamconv.json").read_text()
    assert "peculiar" not in text
    assert str(tmp_path) not in text
    assert not {"time", "date", "created", "seconds", "host"} & set(json.loads(text))


def test_it_says_how_the_checkpoint_was_made(tmp_path: Path) -> None:
    source = running.llama(tmp_path / "source", "llama2_mha_invfreq_none")
    streamconv.convert(source, tmp_path / "dest", dtype="bf16", options={"qkv_concat": True}, max_shard_size=40_000)
    values = json.loads((tmp_path / "dest" / "streamconv.json").read_text())
    assert values["model"] == "llama"
    assert values["direction"] == "forward"
    assert values["options"]["qkv_concat"] is True
    assert (values["dtype"], values["format"], values["max_shard_size"]) == ("BF16", "safetensors", 40_000)
    assert values["crc"] is False
    assert values["dropped"]
    assert all("rope_theta" in why for why in values["dropped"].values())
    assert values["cast"]
    assert values["overflowed"] == {}
    dest = tmp_path / "dest"
    names = {p.name for p in dest.iterdir()} - {"config.json", "streamconv.json"} - running.KEPT
    assert set(values["files"]) == names
    for name, entry in values["files"].items():
        data = (dest / name).read_bytes()
        assert entry == {"size": len(data), "blocks": [xxhash.xxh3_128_hexdigest(data)]}
    for name, ref in open_catalog(dest).items():
        entry = values["tensors"][name]
        assert entry["file"] == ref.extents[0].file.path.name
        assert entry["extents"] == [[e.offset, e.length] for e in ref.extents]


def test_overflow_is_on_record(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.array([1, 1e6, -1e9, np.inf], np.float32)}, tmp_path / "source.safetensors")
    report = streamconv.convert(tmp_path / "source.safetensors", tmp_path / "dest.ckpt", model="raw", dtype="fp16")
    assert "2 values overflowed to infinity in 1 tensor: a" in str(report)
    assert report.to_json()["overflowed"] == {"a": 2}
    values = json.loads((tmp_path / "dest.ckpt.streamconv.json").read_text())
    assert (values["overflowed"], values["cast"]) == ({"a": 2}, {"a": ["F32"]})


def test_blocks_of_a_large_file(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    array = np.arange(5 << 20, dtype=np.int64)
    save_file({"a": array}, tmp_path / "source.safetensors")
    streamconv.convert(tmp_path / "source.safetensors", tmp_path / "dest.ckpt", model="raw", crc=True)
    data = (tmp_path / "dest.ckpt").read_bytes()
    entry = json.loads((tmp_path / "dest.ckpt.streamconv.json").read_text())["files"]["dest.ckpt"]
    assert entry["blocks"] == [xxhash.xxh3_128_hexdigest(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]
    assert len(entry["blocks"]) == 3
    assert streamconv.verify(tmp_path / "dest.ckpt", source=tmp_path / "source.safetensors")
    running.flip(tmp_path / "dest.ckpt", BLOCK + 1)
    with pytest.raises(streamconv.StreamconvError, match=f"between byte {BLOCK} and byte {2 * BLOCK} \\(tensors"):
        streamconv.verify(tmp_path / "dest.ckpt")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, set()),
        ("", set()),
        ("not JSON", set()),
        (
            '{\n "streamconv": "1",\n "companions": [\n  "a.py",\n  "b/c.json"\n ],\n "files": {}\n}',
            {"a.py", "b/c.json"},
        ),
        ('{\n "companions": [\n  "a.py", 3, null\n ]}', {"a.py"}),
        ('{\n "companions": [\n  "a.py",\n  "b', set()),
        ('{\n "companions": {"a.py": 1}}', set()),
        ('{\n "companions": ' + "[" * 200_000, set()),
    ],
)
def test_the_companions_are_read_from_the_beginning_alone(tmp_path: Path, text, found) -> None:
    if text is not None:
        (tmp_path / "streamconv.json").write_text(text)
    assert manifest.companions_in(tmp_path) == found


def test_a_whole_manifest_is_not_read_to_see_what_may_be_replaced(tmp_path: Path, monkeypatch) -> None:
    """As objects, that of a large model takes more than the memory limit."""
    source = running.llama(tmp_path / "hf")
    (source / "inner").mkdir()
    (source / "inner" / "x.py").write_text("")
    arguments = {"max_mem": "8G", "overwrite": True}
    streamconv.convert(source, tmp_path / "ms", **arguments)
    assert "inner/x.py" in manifest.companions_in(tmp_path / "ms")
    monkeypatch.setattr(manifest, "find", lambda place, room=None: None if place == source else pytest.fail(str(place)))
    streamconv.convert(source, tmp_path / "ms", **arguments)
