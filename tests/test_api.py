"""The recipe: what lies at the destination, for every kind of source and destination, through the public API."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import streamconv
from streamconv.engine import stretches
from streamconv.errors import DestinationError, SourceError, UnsupportedError, UsageError
from streamconv.formats.catalog import open_catalog
from streamconv.text import in_shell
from support import FIXTURES, golden, running
from support.running import call

# -- names of files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "count"), [("5GB", 1), ("5000", 3), (1, 21)])
def test_forward_files(limit: str | int, count: int, tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    streamconv.convert(source, dest, max_shard_size=limit)
    names = {f"ms-model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)}
    assert {p.name for p in dest.iterdir()} == {*names, "param_name_map.json", "config.json", "streamconv.json"}
    index = json.loads((dest / "param_name_map.json").read_text())
    assert set(index["weight_map"].values()) == names
    assert index["metadata"]["total_size"] == open_catalog(dest).nbytes
    for name in names:
        with safe_open(dest / name, "np") as file:
            assert all(index["weight_map"][tensor] == name for tensor in file.keys())  # noqa: SIM118


@pytest.mark.parametrize(("limit", "count"), [("5GB", 1), ("5000", 3)])
def test_reverse_files(limit: str, count: int, tmp_path: Path) -> None:
    source, back = running.tiny(tmp_path / "source"), tmp_path / "back"
    streamconv.convert(source, tmp_path / "ms")
    streamconv.convert(tmp_path / "ms", back, reverse=True, max_shard_size=limit)
    names = {f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)}
    if count == 1:
        names = {"model.safetensors"}
    else:
        index = json.loads((back / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == names
        names |= {"model.safetensors.index.json"}
    assert {p.name for p in back.iterdir()} == {*names, "config.json", "streamconv.json"}
    for path in back.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            assert file.metadata() == {"format": "pt"}
    assert golden.found(back) == golden.found(source)


def test_a_ckpt_is_one_file_with_its_manifest_beside_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    streamconv.convert(running.llama(tmp_path / "source"), tmp_path / "out" / "dest.ckpt")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"dest.ckpt", "dest.ckpt.streamconv.json"}


def test_raw_as_hf(tmp_path: Path) -> None:
    source = running.llama(tmp_path / "source")
    streamconv.convert(source, tmp_path / "dest", model="raw", format="hf", max_shard_size=50_000)
    assert golden.found(tmp_path / "dest") == golden.found(source)
    names = sorted(p.name for p in (tmp_path / "dest").glob("*.safetensors*"))
    assert names[0].startswith("model-00001-of-0000")
    assert names[-1] == "model.safetensors.index.json"


# -- what goes along ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [False, True])
def test_companions_go_along_both_ways(back: bool, tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    streamconv.convert(source, dest, dtype="bf16")
    if back:
        streamconv.convert(dest, tmp_path / "back", reverse=True, dtype="fp16")
        dest = tmp_path / "back"
    assert {p.name for p in dest.iterdir() if p.name in running.COMPANIONS} == running.KEPT
    for name in running.KEPT:
        assert (dest / name).read_text() == running.COMPANIONS[name]
    config = json.loads((source / "config.json").read_text())
    mended = json.loads((dest / "config.json").read_text())
    keys = [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]
    assert [mended[key] for key in keys] == ["float16" if back else "bfloat16"] * len(keys)
    assert {**config, **dict.fromkeys(keys, 0)} == {**mended, **dict.fromkeys(keys, 0)}


def test_without_a_dtype_the_config_says_what_it_said(tmp_path: Path) -> None:
    source = running.llama(tmp_path / "source")
    (source / "config.json").write_text((source / "config.json").read_text()[:-1] + ', "note": "\\ud800 café"}')
    streamconv.convert(source, tmp_path / "dest")
    for key in ("note", "torch_dtype"):
        values = [json.loads((folder / "config.json").read_text()).get(key) for folder in (source, tmp_path / "dest")]
        assert values[0] == values[1]


def test_a_config_elsewhere_brings_its_companions(tmp_path: Path) -> None:
    source = running.llama(tmp_path / "source")
    (tmp_path / "model").mkdir()
    for name in ("config.json", *running.COMPANIONS):
        (source / name).rename(tmp_path / "model" / name)
    with pytest.raises(UsageError, match='config="FILE"'):
        streamconv.plan(source, tmp_path / "dest")
    streamconv.convert(source, tmp_path / "dest", config=tmp_path / "model" / "config.json")
    assert {p.name for p in (tmp_path / "dest").iterdir()} >= {"config.json", *running.KEPT}


def test_a_snapshot_of_the_cache(tmp_path: Path) -> None:
    """All files are links into ../../blobs, and the snapshot itself is reached through a link too."""
    plain = running.llama(tmp_path / "plain")
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(plain.iterdir())):
        (blobs / f"{number:040x}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    (tmp_path / "link").symlink_to(snapshot)
    streamconv.convert(plain, tmp_path / "first")
    before = running.tree(tmp_path / "hub")
    for source in (snapshot, tmp_path / "link"):
        dest = tmp_path / f"of-{source.name}"
        streamconv.convert(source, dest)
        assert running.tree(dest) == running.tree(tmp_path / "first")
        assert not any(p.is_symlink() for p in dest.iterdir())
    assert running.tree(tmp_path / "hub") == before


# -- the source is only read -------------------------------------------------------------------------------------------


def test_the_source_is_never_written(tmp_path: Path) -> None:
    source = running.llama(tmp_path / "source")
    before = [(p.name, p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(source.iterdir())]
    streamconv.convert(source, tmp_path / "dest", dtype="fp16")
    assert [(p.name, p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(source.iterdir())] == before


@pytest.mark.parametrize("io", ["read", "direct"])
@pytest.mark.parametrize("change", ["shorter", "longer", "gone"])
def test_a_source_that_changes_after_planning(io: str, change: str, tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    planned = streamconv.plan(source, dest, io=io)
    shard = sorted(source.glob("*.safetensors"))[1]
    size = shard.stat().st_size
    if change == "gone":
        shard.unlink()
    else:
        os.truncate(shard, size - 64 if change == "shorter" else size + 64)
    with pytest.raises(SourceError, match=shard.name) as caught:
        planned.run()
    assert "run again" in str(caught.value)
    assert not dest.exists()
    if change != "gone":
        assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_a_source_that_is_gone_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was converted before is not done again when the source is back."""
    monkeypatch.setattr(stretches, "BLOCK", 1 << 12)
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    shard, mount = sorted(source.glob("*.safetensors"))[-1], tmp_path / "mount"
    mount.mkdir()
    shard.rename(mount / shard.name)
    shard.symlink_to(mount / shard.name)
    planned = streamconv.plan(source, dest, workers=1)
    mount.rename(tmp_path / "away")
    with pytest.raises(SourceError, match=r"saved in .*; run the same conversion again to resume"):
        planned.run()
    (tmp_path / "away").rename(mount)
    assert streamconv.convert(source, dest).tally.resumed > 0
    assert streamconv.verify(dest, source=source)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_source_that_is_written_to(when: str, tmp_path: Path) -> None:
    """Its size stays, and its header too: only the time of its last change tells."""
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    shard = sorted(source.glob("*.safetensors"))[0]

    def change(progress: streamconv.Progress | None = None) -> None:
        if progress is None or progress.done == progress.total:
            running.flip(shard, shard.stat().st_size - 1)
            os.utime(shard)

    if when == "during":
        with pytest.raises(
            SourceError, match=rf"{shard.name} changed during the run: its modification time is different"
        ):
            streamconv.convert(source, dest, progress=change)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
        return
    with pytest.raises(ZeroDivisionError):
        streamconv.convert(source, dest, progress=lambda progress: 1 // (progress.total - progress.done))
    change()
    with pytest.raises(
        DestinationError, match=rf"(?s)the source's {shard.name} was last modified at 20.*, now at 20.*restart=True"
    ):
        streamconv.convert(source, dest)
    streamconv.convert(source, dest, restart=True)
    assert streamconv.verify(dest, source=source)


@pytest.mark.slow
def test_a_source_that_shrinks_during_the_run(tmp_path: Path, capsys) -> None:
    source = running.llama(tmp_path / "source")
    process = running.start("convert", source, tmp_path / "dest", "--workers", 1, "--quiet")
    running.wait_until(lambda: any((tmp_path / "dest.partial").glob("*.safetensors")), process)
    for shard in source.glob("*.safetensors"):
        os.truncate(shard, shard.stat().st_size // 2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert b"changed during the run" in err
    assert b"run again once nothing writes to it" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


# -- formats through raw -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["many_dtypes", "many_dtypes_crc", "sliced_1KiB", "sliced_async_uneven_1KiB"])
def test_ckpt_to_safetensors_and_back(name: str, tmp_path: Path) -> None:
    """All bytes come back; the first turn only brings the tensors into the order that streamconv writes."""
    crc = name.endswith("crc")
    source = FIXTURES / f"{name}.ckpt"
    streamconv.convert(source, tmp_path / "first.ckpt", model="raw", crc=crc)
    streamconv.convert(tmp_path / "first.ckpt", tmp_path / "dir", model="raw", max_shard_size=700)
    streamconv.convert(tmp_path / "dir", tmp_path / "second.ckpt", model="raw", crc=crc)
    streamconv.convert(tmp_path / "second.ckpt", tmp_path / "hf", model="raw", format="hf")
    streamconv.convert(tmp_path / "hf", tmp_path / "third.ckpt", crc=crc)
    first = (tmp_path / "first.ckpt").read_bytes()
    assert first == (tmp_path / "second.ckpt").read_bytes() == (tmp_path / "third.ckpt").read_bytes()
    if "sliced" not in name:
        assert len(first) == source.stat().st_size
    for made in ("first.ckpt", "dir", "hf"):
        assert golden.found(tmp_path / made) == golden.found(source)


def test_mindspores_own_file_comes_back_byte_for_byte(tmp_path: Path) -> None:
    """A file whose tensors lie in the order of their names is written as MindSpore wrote it."""
    source = FIXTURES / "dist4" / "full" / "rank_0" / "full0.ckpt"
    names = list(open_catalog(source))
    streamconv.convert(source, tmp_path / "dest.ckpt", model="raw")
    same = (tmp_path / "dest.ckpt").read_bytes() == source.read_bytes()
    assert same == (names == list(open_catalog(tmp_path / "dest.ckpt")))
    assert golden.found(tmp_path / "dest.ckpt") == golden.found(source)


def test_what_a_format_cannot_hold(tmp_path: Path) -> None:
    for source, dest, message in (
        (
            "append_dict.ckpt",
            "dest",
            "which safetensors cannot hold\nhint: write a .ckpt|of a dtype that MindSpore cannot",
        ),
        ("empty_async.ckpt", "dest.ckpt", "empty 1-D tensor|holds no tensors|has 0 bytes"),
        ("int4.ckpt", "dest", "Int4, which safetensors cannot hold\nhint: write a .ckpt"),
        ("float8_written_not_loadable.ckpt", "dest", "MindSpore itself refuses to load"),
        ("enc_gcm_key_0123456789abcdef.ckpt", "dest", "is encrypted"),
    ):
        try:
            streamconv.convert(FIXTURES / source, tmp_path / dest, model="raw", overwrite=True)
        except (UnsupportedError, SourceError) as error:
            assert any(part in str(error) for part in message.split("|")), error
        else:
            assert golden.found(tmp_path / dest) == golden.found(FIXTURES / source)
    assert not list(tmp_path.glob("*.partial"))


def test_float8_only_goes_where_it_can_be_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 5).to(torch.float8_e4m3fn)}, tmp_path / "source.safetensors")
    for dest in ("dest", "dest.ckpt"):
        with pytest.raises(UnsupportedError, match="F8_E4M3"):
            streamconv.plan(tmp_path / "source.safetensors", tmp_path / dest, model="raw")
    with pytest.raises(UnsupportedError, match="a: F8_E4M3 cannot be cast to BF16"):
        streamconv.plan(tmp_path / "source.safetensors", tmp_path / "dest", model="raw", dtype="bf16", format="hf")
    streamconv.convert(tmp_path / "source.safetensors", tmp_path / "dest", model="raw", format="hf")
    assert golden.found(tmp_path / "dest") == golden.found(tmp_path / "source.safetensors")


# -- planning ----------------------------------------------------------------------------------------------------------


def test_a_plan_writes_nothing_and_says_everything(tmp_path: Path) -> None:
    source = running.llama(tmp_path / "source", "llama2_mha_invfreq_none")
    before = running.tree(tmp_path)
    plan = streamconv.plan(source, tmp_path / "dest", dtype="bf16", max_mem="8G", workers=2)
    text = str(plan)
    assert running.tree(tmp_path) == before
    for part in ("model    llama (from config.json", "qkv_concat=false", "dtype    BF16", "2 workers", "dropped  "):
        assert part in text
    assert "limit 8 GiB: baseline " in text
    report = plan.run()
    assert report.to_json()["total_bytes"] == plan.to_json()["total_bytes"]


def test_a_run_with_less_memory_than_was_planned_takes_fewer_workers(tmp_path: Path, monkeypatch) -> None:
    planned = streamconv.plan(running.tiny(tmp_path / "source"), tmp_path / "dest", max_mem="4G")
    monkeypatch.setattr("streamconv.prepared.resident_bytes", lambda: (4 << 30) - (42 << 20))
    assert planned.run().budget.workers == 1


def test_all_that_does_not_fit_is_listed(tmp_path: Path, capsys) -> None:
    source = running.tiny(tmp_path / "source")
    catalog = open_catalog(source)
    specs = {name: np.zeros(ref.shape, np.float32) for name, ref in catalog.items()}
    from safetensors.numpy import save_file

    specs["model.layers.0.self_attn.q_prj.weight"] = specs.pop("model.layers.0.self_attn.q_proj.weight")
    specs["stranger"] = np.zeros(3, np.float32)
    specs["model.norm.weight"] = np.zeros(7, np.float32)
    (tmp_path / "bad").mkdir()
    save_file(specs, tmp_path / "bad" / "model.safetensors")
    (tmp_path / "bad" / "config.json").write_bytes((source / "config.json").read_bytes())
    ended = call(capsys, "convert", tmp_path / "bad", tmp_path / "dest")
    assert ended.code == 4
    for part in ("q_prj.weight", "q_proj.weight", "stranger", "model.norm.weight", "no rule matches"):
        assert part in ended.err
    assert not (tmp_path / "dest").exists()


def test_a_missing_tensor_is_the_sources_fault(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source", shard=1 << 30)
    (source / "config.json").write_text((source / "config.json").read_text().replace('rs": 2', 'rs": 3'))
    with pytest.raises(SourceError, match=r"model\.layers\.2"):
        streamconv.plan(source, tmp_path / "dest")


def test_the_model_comes_from_the_manifest(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source", model_type="mixtral", num_local_experts=3)
    streamconv.convert(source, tmp_path / "ms.ckpt", options={"use_gmm": True})
    plan = streamconv.plan(tmp_path / "ms.ckpt", tmp_path / "back", reverse=True)
    assert (plan.family.name, plan.family_source) == ("mixtral", "ms.ckpt.streamconv.json")
    assert plan.mapping.options["use_gmm"] is True
    plan.run()
    assert golden.found(tmp_path / "back") == golden.found(source)


def test_sizes_and_paths_in_every_spelling(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    for number, (mem, shard) in enumerate((("8G", "5GB"), (8 << 30, 5_000_000_000), ("8192MiB", "5000MB"))):
        plan = streamconv.plan(str(source), str(tmp_path / f"d{number}"), max_mem=mem, max_shard_size=shard)
        assert (plan.budget.memory_limit, plan.settings.max_shard_size) == (8 << 30, 5_000_000_000)


def test_progress_is_monotonic_and_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[streamconv.Progress] = []
    report = streamconv.convert(running.llama(tmp_path / "source"), tmp_path / "dest", progress=seen.append, workers=2)
    done = [p.done for p in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total == sum(o.spec.nbytes for o in report.prepared.mapping.outputs)
    assert all(p.limit == report.budget.memory_limit and p.resident > 0 for p in seen)
    assert [p.seconds for p in seen] == sorted(p.seconds for p in seen)
    assert seen[-1].file.startswith("ms-model-")


def test_tied_tensors_that_differ(tmp_path: Path, capsys) -> None:
    source = running.tiny(tmp_path / "source", shard=1 << 30, tie_word_embeddings=True)
    from safetensors.numpy import save_file

    tensors = {name: streamconv.open(source)[name].numpy() for name in streamconv.open(source)}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    as_floats = {name: t.astype(np.float32) for name, t in tensors.items()}
    save_file(as_floats, source / "model.safetensors")
    assert call(capsys, "convert", source, tmp_path / "same").code == 0
    as_floats["lm_head.weight"][3, 3] += 1
    save_file(as_floats, source / "model.safetensors")
    ended = call(capsys, "convert", source, tmp_path / "dest")
    assert ended.code == 4
    assert "lm_head.weight differs from model.embed_tokens.weight" in ended.err
    assert not (tmp_path / "dest").exists()


def test_a_tensor_in_two_files_has_to_be_the_same_in_both(tmp_path: Path, capsys) -> None:
    """MindFormers' converter of DeepSeek-V3 writes the embedding twice."""
    from safetensors.numpy import load_file, save_file

    source = running.tiny(tmp_path / "source", shard=1 << 30)
    whole = load_file(source / "model.safetensors")
    save_file({name: whole[name] for name in whole if "layers" not in name}, source / "m1.safetensors")
    again = {name: whole[name] for name in whole if "layers" in name or "embed" in name}
    save_file(again, source / "m2.safetensors")
    (source / "model.safetensors").unlink()
    assert call(capsys, "convert", source, tmp_path / "same").code == 0
    again["model.embed_tokens.weight"] = again["model.embed_tokens.weight"][::-1].copy()
    save_file(again, source / "m2.safetensors")
    ended = call(capsys, "convert", source, tmp_path / "dest")
    assert ended.code == 3
    assert "model.embed_tokens.weight is in m1.safetensors and m2.safetensors, and the two differ" in ended.err
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize("apart", [False, True])
def test_a_head_that_training_untied_is_one_in_the_config_too(tmp_path: Path, apart: bool) -> None:
    source = running.tiny(tmp_path / "source", tie_word_embeddings=True)
    streamconv.convert(source, tmp_path / "ms", max_mem="8G")
    (tmp_path / "ms" / "streamconv.json").unlink()
    (shard,) = (tmp_path / "ms").glob("*.safetensors")
    if apart:
        head = open_catalog(shard)["lm_head.weight"].extents[0]
        with shard.open("r+b") as file:
            file.seek(head.offset)
            file.write(b"\x01\x02")
    streamconv.convert(tmp_path / "ms", tmp_path / "back", model="llama", reverse=True, max_mem="8G")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["tie_word_embeddings"] is not apart
    assert ("lm_head.weight" in streamconv.open(tmp_path / "back")) is apart


# -- wrong calls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("model", 5), ("options", 5), ("options", [("use_gmm", True)]), ("workers", "2"), ("max_shard_size", None)),
        *(("max_mem", 1.5e9), ("reverse", "false"), ("overwrite", "no"), ("format", b"ckpt"), ("io", None)),
    ],
)
def test_arguments_of_another_type(name: str, value: object, tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    with pytest.raises(UsageError, match=f"^{name} must be .*, not {type(value).__name__}$"):
        streamconv.plan(source, tmp_path / "dest", **{name: value})  # type: ignore[arg-type]


NO_PATHS = [5, 5.0, b"x", ["a"], bytearray(b"x"), object()]


@pytest.mark.parametrize("value", [*NO_PATHS, None])
def test_paths_of_another_type(value: object, tmp_path: Path) -> None:
    """Each argument of each function is refused by its name, not by what Python says of it further down."""
    there: Any = running.tiny(tmp_path / "source")
    wrong: Any = value
    calls: dict[str, list[Callable[[], object]]] = {
        "source": [lambda: streamconv.plan(wrong, "d"), lambda: streamconv.check("llama", wrong)],
        "dest": [lambda: streamconv.plan(there, wrong), lambda: streamconv.verify(wrong)],
        "path": [lambda: streamconv.open(wrong), lambda: streamconv.inspect(wrong)],
        "a": [lambda: streamconv.diff(wrong, there)],
        "b": [lambda: streamconv.diff(there, wrong)],
        "family": [lambda: streamconv.check(wrong, there)],
    }
    if value is not None:
        calls["family"].append(lambda: streamconv.plan(there, "d", family=wrong))
        calls["source"].append(lambda: streamconv.verify(tmp_path / "source", source=wrong))
        calls["config"] = [
            lambda: streamconv.plan(there, "d", config=wrong),
            lambda: streamconv.check("llama", there, config=wrong),
        ]
    for name, several in calls.items():
        for calling in several:
            with pytest.raises(UsageError, match=f"^{name} must be a path .*, not {type(value).__name__}$"):
                calling()


@pytest.mark.parametrize("value", [5, b"x", [5], [b"x"], ["a", None], {"a": 1}, object()])
def test_strategies_of_another_type(value: Any, tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    for calling in (
        lambda: streamconv.plan(source, "d", strategy=value),
        lambda: streamconv.plan(source, "d", model="raw", dest_strategy=value),
        lambda: streamconv.open(source, strategy=value),
        lambda: streamconv.inspect(source, strategy=value),
        lambda: streamconv.diff(source, source, strategy=value),
    ):
        with pytest.raises(UsageError, match=r"^(dest_)?strategy must be a path"):
            calling()


@pytest.mark.parametrize("model", [None, "raw"])
def test_no_links_without_ranks_has_no_effect(model: str | None, tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    with pytest.raises(UsageError, match=r"links=False has no effect.*\nhint: omit links=False") as caught:
        streamconv.plan(source, tmp_path / "dest", model=model, links=False)
    assert "--no-links has no effect" in in_shell(caught.value.marked[0])


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    source, size = running.tiny(tmp_path / "source"), np.int64(8 << 30)
    assert streamconv.plan(source, tmp_path / "dest", max_mem=size).budget.memory_limit == 8 << 30


def test_an_empty_path_is_not_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = running.tiny(tmp_path / "source")
    monkeypatch.chdir(source)
    for opened in (
        lambda: streamconv.open(""),
        lambda: streamconv.inspect(""),
        lambda: streamconv.diff(source, ""),
        lambda: streamconv.plan("", tmp_path / "dest"),
        lambda: streamconv.plan(source, ""),
        lambda: streamconv.plan(source, tmp_path / "dest", config=""),
        lambda: streamconv.verify(""),
    ):
        with pytest.raises(UsageError, match="is empty"):
            opened()


def test_verify_refuses_what_only_a_run_reads(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    streamconv.convert(source, tmp_path / "dest", max_mem="8G")
    with pytest.raises(UsageError, match="overwrite has no effect: verify writes nothing"):
        streamconv.verify(tmp_path / "dest", source=source, overwrite=True)


def test_what_is_shown_of_a_value_is_one_line(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    planned = streamconv.plan(source, tmp_path / "dest", max_mem="8G")
    for value in (planned, planned.run(), streamconv.diff(source, source)):
        assert len(repr(value)) < 300 + 2 * len(str(tmp_path))
        assert "\n" not in repr(value)
