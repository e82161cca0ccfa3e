"""I2: complete or absent; the source is never touched, and nothing that is not ours is replaced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import streamconv
from streamconv.errors import DestinationError, StorageError, UsageError
from streamconv.output import journal
from streamconv.storage import disk
from support import golden, running, strategies
from support.running import tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return running.tiny(tmp_path / "source")


def refused(source: Path, dest: Path, message: str, root: Path, overwrite: bool = True) -> None:
    """The conversion is refused, in these words, and changes nothing below `root`."""
    before = tree(root)
    with pytest.raises(DestinationError, match=message):
        streamconv.convert(source, dest, overwrite=overwrite)
    assert tree(root) == before


# -- what may be replaced ----------------------------------------------------------------------------------------------


def test_an_empty_directory_is_filled_without_asking(source: Path, tmp_path: Path) -> None:
    (tmp_path / "dest").mkdir()
    streamconv.convert(source, tmp_path / "dest")
    assert golden.found(tmp_path / "dest")


@pytest.mark.parametrize("name", ["dest", "dest.ckpt"])
def test_overwrite_replaces_ours_wholly(name: str, source: Path, tmp_path: Path) -> None:
    streamconv.convert(source, tmp_path / name, dtype="fp32")
    if name == "dest":
        (tmp_path / name / "ms-model-00009-of-00009.safetensors").write_bytes(b"old")
    streamconv.convert(source, tmp_path / name, overwrite=True)
    streamconv.convert(source, tmp_path / ("other" + Path(name).suffix))
    if name == "dest":
        assert tree(tmp_path / "dest") == tree(tmp_path / "other")
    else:
        assert (tmp_path / name).read_bytes() == (tmp_path / "other.ckpt").read_bytes()
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


def test_overwrite_replaces_a_checkpoint_that_others_wrote(source: Path, tmp_path: Path) -> None:
    dest = running.llama(tmp_path / "dest")
    (dest / "notes.xyz").unlink()
    (dest / "README.md").write_text("model card")
    (dest / "tokenizer.model.v3").write_text("tokenizer")
    refused(
        source,
        dest,
        "exists\nhint: choose another destination, or replace this one with overwrite=True",
        tmp_path,
        False,
    )
    streamconv.convert(source, dest, overwrite=True)
    assert set(tree(dest)) == {
        "config.json",
        "ms-model-00001-of-00001.safetensors",
        "param_name_map.json",
        "streamconv.json",
    }


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("foreign", ["thesis.pdf", ".git/config", "sub/model.safetensors", "data.json/x"])
def test_overwrite_refuses_what_holds_foreign_files(foreign: str, ours: bool, source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    if ours:
        streamconv.convert(source, dest)
    else:
        running.tiny(dest)
    (dest / foreign).parent.mkdir(exist_ok=True)
    (dest / foreign).write_text("precious")
    refused(source, dest, f"belong to no checkpoint \\({foreign.split('/', maxsplit=1)[0]}\\)", tmp_path)


def test_overwrite_refuses_a_directory_without_weights(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    dest.mkdir()
    for name in ("script.py", "settings.json", "notes.txt", "README.md"):
        (dest / name).write_text("precious")
    refused(source, dest, "holds no weights", tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("dest", "dest.ckpt") for kind in ("other", "fifo", "loop")),
        ("dest.ckpt", "dangling"),
    ],
)
def test_what_is_neither_file_nor_directory_is_refused(name: str, kind: str, source: Path, tmp_path: Path) -> None:
    dest = tmp_path / name
    if kind == "fifo":
        os.mkfifo(dest)
    elif kind == "loop":
        dest.symlink_to(dest)
    elif kind == "other":
        dest.write_text("x") if name == "dest" else dest.mkdir()
    else:
        dest.symlink_to("nowhere")
    with pytest.raises(DestinationError, match="exists and is not a"):
        streamconv.convert(source, dest, overwrite=True)
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_directory_leads_there(exists: bool, source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    if exists:
        streamconv.convert(source, tmp_path / "real", dtype="fp32")
    streamconv.convert(source, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert golden.found(tmp_path / "real")
    assert streamconv.verify(tmp_path / "link", source=source)
    assert set(os.listdir(tmp_path)) == {"source", "link", "real"}  # noqa: PTH208


def test_a_link_to_a_file_is_replaced_itself(source: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "old.ckpt").write_text("old")
    (tmp_path / "dest.ckpt").symlink_to("other/old.ckpt")
    streamconv.convert(source, tmp_path / "dest.ckpt", overwrite=True)
    assert (tmp_path / "other" / "old.ckpt").read_text() == "old"
    assert streamconv.verify(tmp_path / "dest.ckpt")


def test_the_working_directory_as_destination(source: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    streamconv.convert(source, ".")
    monkeypatch.chdir(tmp_path / "here")
    assert golden.found(Path())
    assert streamconv.verify(".")
    assert streamconv.verify(".", source=source)
    refused(source, Path(), "exists", tmp_path, overwrite=False)
    refused(source, Path(".."), "belong to no checkpoint|lies in|holds", tmp_path)


def test_the_root_has_no_name(source: Path) -> None:
    with pytest.raises(UsageError, match="root of the file system\nhint: choose a directory in it"):
        streamconv.plan(source, "/")


def test_a_mount_point_is_refused(source: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "dest").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "dest")
    refused(
        source,
        tmp_path / "dest",
        "mount point, which cannot be replaced by a rename\nhint: choose a directory in",
        tmp_path,
    )
    streamconv.convert(source, tmp_path / "dest" / "inside")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "x" * 248 + ".ckpt"])
def test_a_name_that_is_too_long(name: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="name too long\nhint: choose a shorter name"):
        streamconv.convert(source, tmp_path / name)
    assert os.listdir(tmp_path) == ["source"]  # noqa: PTH208


# -- the source is not a destination -----------------------------------------------------------------------------------


def hard(link: Path, target: Path) -> None:
    link.hardlink_to(target)


def soft(link: Path, target: Path) -> None:
    link.symlink_to(target)


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    """A source of one file, in a directory of its own."""
    (tmp_path / "one").mkdir()
    streamconv.convert(running.tiny(tmp_path / "hf"), tmp_path / "one" / "model.ckpt")
    (tmp_path / "one" / "model.ckpt.streamconv.json").unlink()
    return tmp_path / "one" / "model.ckpt"


def raw_refused(source: Path, dest: Path, message: str, root: Path) -> None:
    before = tree(root)
    with pytest.raises(DestinationError, match=message):
        streamconv.convert(source, dest, model="raw", overwrite=True)
    assert tree(root) == before


def test_the_source_itself(one_file: Path, tmp_path: Path) -> None:
    raw_refused(one_file, one_file, "holds the source model.ckpt", tmp_path)
    raw_refused(one_file, one_file.parent, "holds the source model.ckpt", tmp_path)
    raw_refused(one_file.parent, one_file.parent, "lies in the source's directory", tmp_path)


@pytest.mark.parametrize("link", [hard, soft])
def test_a_link_to_the_source(link, one_file: Path, tmp_path: Path) -> None:
    link(tmp_path / "link.ckpt", one_file)
    raw_refused(one_file, tmp_path / "link.ckpt", "holds the source model.ckpt", tmp_path)
    raw_refused(tmp_path / "link.ckpt", one_file, "holds the source link.ckpt", tmp_path)
    (tmp_path / "dest").mkdir()
    link(tmp_path / "dest" / "x.ckpt", one_file)
    raw_refused(one_file, tmp_path / "dest", "holds the source model.ckpt", tmp_path)


def test_the_place_to_build_in_is_a_link_to_the_source(one_file: Path, tmp_path: Path) -> None:
    for link in (hard, soft):
        link(tmp_path / "dest.ckpt.partial", one_file)
        raw_refused(one_file, tmp_path / "dest.ckpt", "exists, but not its journal", tmp_path)
        (tmp_path / "dest.ckpt.partial.streamconv").write_text("")
        raw_refused(one_file, tmp_path / "dest.ckpt", "says nothing of it", tmp_path)
        (tmp_path / "dest.ckpt.partial.streamconv").write_bytes(journal._line(journal._text(["box", 0, [], 0])))
        words = "holds the source model.ckpt" if link is hard else "dest.ckpt.partial is a link"
        raw_refused(one_file, tmp_path / "dest.ckpt", words, tmp_path)
        for name in ("dest.ckpt.partial", "dest.ckpt.partial.streamconv"):
            (tmp_path / name).unlink()


def test_inside_the_source_directory(source: Path, tmp_path: Path) -> None:
    refused(source, source / "dest", "lies in the source's directory, which is never written to", tmp_path)
    (source / "deep").mkdir()
    refused(source, source / "deep" / "dest.ckpt", "lies in the source's directory", tmp_path)
    (tmp_path / "link").symlink_to(source)
    refused(source, tmp_path / "link", "lies in the source's directory", tmp_path)
    refused(source, tmp_path / "link" / "dest", "lies in the source's directory", tmp_path)
    refused(tmp_path / "link", source / "dest", "lies in the source's directory", tmp_path)


def test_beside_a_source_of_one_file(one_file: Path) -> None:
    streamconv.convert(one_file, one_file.with_name("dest"), model="raw")
    streamconv.convert(one_file, one_file.with_name("dest.ckpt"), model="raw")
    assert golden.found(one_file.with_name("dest")) == golden.found(one_file)


def test_a_directory_above_the_source(source: Path, tmp_path: Path) -> None:
    (tmp_path / "above").mkdir()
    shutil.move(source, tmp_path / "above" / "source")
    refused(tmp_path / "above" / "source", tmp_path / "above", "holds the source source", tmp_path)
    deep = tmp_path / "above" / "a" / "b" / "c"
    deep.mkdir(parents=True)
    shutil.move(tmp_path / "above" / "source", deep)
    (tmp_path / "link").symlink_to(deep / "source")
    for dest in ("above", "above/a", "above/a/b"):
        refused(tmp_path / "link", tmp_path / dest, "holds the source", tmp_path)


def test_inside_the_source_through_a_link_to_a_folder_in_it(source: Path, tmp_path: Path) -> None:
    (source / "deep").mkdir()
    (tmp_path / "link").symlink_to(source / "deep")
    refused(source, tmp_path / "link" / "dest", "lies in the source's directory", tmp_path)


# -- nor is anything else that is read ---------------------------------------------------------------------------------


@pytest.fixture
def output(source: Path, tmp_path: Path) -> Path:
    """What a training left: the files of its ranks, and its strategy."""
    output = tmp_path / "output"
    strategy = strategies.write(output / "strategy", streamconv.plan(source, tmp_path / "no"), (2,))
    streamconv.convert(source, tmp_path / "cut", strategy=strategy)
    for rank in range(2):
        folder = output / "checkpoint_network" / f"rank_{rank}"
        folder.mkdir(parents=True)
        file = tmp_path / "cut" / f"rank_{rank}" / f"checkpoint_{rank}.safetensors"
        shutil.copy(file, folder / f"net_rank_{rank}-1_10-network.safetensors")
    shutil.rmtree(tmp_path / "cut")
    return output


def refused_with(words: str, root: Path, source: Path, dest: Path, **options: object) -> None:
    before = tree(root)
    with pytest.raises(DestinationError, match=words):
        streamconv.convert(source, dest, overwrite=True, **options)
    assert tree(root) == before


STRATEGY = "strategy/ckpt_strategy_rank_0.ckpt"


def test_the_strategy_that_is_given(source: Path, output: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(output / "strategy")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "s.ckpt").symlink_to(output / STRATEGY)
    for given in (output / "strategy", output / STRATEGY, tmp_path / "link", tmp_path / "elsewhere"):
        for dest in ("output/strategy", "output", "link"):
            refused_with("the run reads", tmp_path, source, tmp_path / dest, strategy=given)
    refused_with("lies in", tmp_path, source, output / "strategy" / "new", strategy=output / "strategy")
    refused_with("lies in", tmp_path, source, tmp_path / "link" / "new", strategy=output / "strategy")


def test_the_strategy_that_is_found(source: Path, output: Path, tmp_path: Path) -> None:
    words = {"reverse": True, "config": source / "config.json"}
    ranks = output / "checkpoint_network"
    for dest in (output / "strategy", output / "strategy" / "new", output):
        refused_with("reads|holds the source", tmp_path, ranks, dest, **words)
    (tmp_path / "link").symlink_to(output / "strategy")
    refused_with("reads", tmp_path, ranks, tmp_path / "link", **words)
    streamconv.convert(ranks, output / "hf", **words)


def test_the_directory_of_the_config(source: Path, output: Path, tmp_path: Path) -> None:
    """Not what lies next to it: of a directory with a config, and a result in it, nothing is lost."""
    other = running.tiny(tmp_path / "other")
    words = {"reverse": True, "config": other / "config.json"}
    refused_with("holds .*other/config.json, which the run reads", tmp_path, output, other, **words)
    streamconv.convert(output, other / "hf", **words)


# -- the work of a training is not replaced ----------------------------------------------------------------------------


SAVED = [
    (STRATEGY, ""),
    ("any/name.ckpt", "strategy"),
    ("any/x_rank_0-1_10.ckpt", ""),
    ("rank_0/x_rank_0-1_10.ckpt", ""),
    ("rank_0/checkpoint_0.ckpt", ""),
    ("rank_3/net.safetensors", ""),
    ("iteration_00000010/model-0000000-0000002.safetensors", ""),
    ("any/model-0000000-0000001.safetensors", ""),
    ("any/opt-0000000-0000002.safetensors", ""),
]


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(("name", "holds"), SAVED)
def test_what_a_training_saved(name: str, holds: str, linked: bool, source: Path, tmp_path: Path) -> None:
    place = tmp_path / "saved" / name
    place.parent.mkdir(parents=True)
    place.write_bytes(b"\x08\x00" if holds else b"days")
    (place.parent / "metadata.json").write_text("{}")
    (place.parent / "model.safetensors").write_bytes(b"days")
    if linked:
        (tmp_path / "link").symlink_to(place.parent)
    folder = tmp_path / "link" if linked else place.parent
    refused(source, folder, f"holds {place.name}, a file that a training saved.*overwrite=True does not", tmp_path)
    if place.suffix == ".ckpt":
        refused(source, folder / place.name, "is a file that a training saved", tmp_path)


def test_what_is_named_so_and_is_ours_is_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "rank_0").mkdir()
    for name in ("x_rank_0-1_10.ckpt", "rank_0/checkpoint_0.ckpt"):
        streamconv.convert(source, tmp_path / name)
        streamconv.convert(source, tmp_path / name, dtype="fp32", overwrite=True)
        (tmp_path / f"{name}.streamconv.json").unlink()
        refused(source, tmp_path / name, "a training saved", tmp_path)


def test_an_experiment_with_lora_of_rank_8_is_no_rank(source: Path, tmp_path: Path) -> None:
    dest = running.tiny(tmp_path / "rank_8")
    streamconv.convert(source, dest, overwrite=True)
    streamconv.convert(source, dest, overwrite=True)


def test_a_dangling_link_in_the_destination_is_no_fault(source: Path, tmp_path: Path) -> None:
    dest = running.tiny(tmp_path / "dest")
    (dest / "gone.safetensors").symlink_to("../blobs/gone")
    streamconv.convert(source, dest, overwrite=True)
    assert not os.path.lexists(dest / "gone.safetensors")


def test_room_is_asked_for_first(source: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 4096)
    with pytest.raises(
        StorageError, match=r"4 KiB free, but the result needs .* KiB; nothing was written\nhint: free some space"
    ):
        streamconv.convert(source, tmp_path / "dest")
    assert os.listdir(tmp_path) == ["source"]  # noqa: PTH208


# -- permissions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o027, 0o077, 0o002])
def test_the_umask_holds(mask: int, tmp_path: Path) -> None:
    source = running.llama(tmp_path / "source")
    old = os.umask(mask)
    try:
        streamconv.convert(source, tmp_path / "dest")
        streamconv.convert(source, tmp_path / "dest.ckpt")
    finally:
        os.umask(old)
    made = [tmp_path / "dest", *(tmp_path / "dest").iterdir(), *tmp_path.glob("dest.ckpt*")]
    assert len(made) > 8
    for path in made:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


# -- the manifest of a file --------------------------------------------------------------------------------------------


def test_what_has_the_manifest_s_name_and_is_none_is_not_replaced(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "dest.ckpt.streamconv.json"
    place.write_text('{"mine": 1}')
    refused(source, tmp_path / "dest.ckpt", "exists and is none of streamconv\nhint: .*overwrite=True", tmp_path, False)
    streamconv.convert(source, tmp_path / "dest.ckpt", overwrite=True)
    (tmp_path / "dest.ckpt").unlink()
    streamconv.convert(source, tmp_path / "dest.ckpt")
    assert streamconv.verify(tmp_path / "dest.ckpt")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("elsewhere")])
def test_what_cannot_be_replaced_by_a_manifest(put, old: bool, source: Path, tmp_path: Path) -> None:
    """The last rename of a run would find it out."""
    if old:
        streamconv.convert(source, tmp_path / "dest.ckpt")
        (tmp_path / "dest.ckpt.streamconv.json").unlink()
    put(tmp_path / "dest.ckpt.streamconv.json")
    refused(source, tmp_path / "dest.ckpt", "where the manifest goes, is not a regular file", tmp_path)
