"""Each node has to see the driver's files: two directories stand for two hosts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from streamconv.cluster import sight
from streamconv.cluster.sight import Sight
from streamconv.errors import StorageError
from support.clusters import check_plain


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "rank_0").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(100))
    (folder / "rank_0" / "checkpoint_0.ckpt").write_bytes(bytes(50))
    return folder


def elsewhere(request: Any, path: Path, other: Path) -> Any:
    """What a node is asked where it has another directory at the same path."""
    check_plain(request)
    moved = {str(other): names for given, names in request["listed"].items() if given == str(path)}
    token = request["token"] and str(other / Path(request["token"]).name)
    return {**request, "listed": moved or request["listed"], "token": token}


def answered(request: Any, path: Path, other: Path) -> Any:
    answer = sight.look(elsewhere(request, path, other))
    check_plain(answer)
    return {**answer, "differ": [[str(path), name, size] for _, name, size in answer["differ"]]}


def test_the_same_file_system(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    seen = Sight([source, source / "model.safetensors"], dest)
    request = seen.request("w")
    token = Path(request["token"])
    assert token.name.startswith("dest.partial.token-")
    assert token.is_file()
    seen.check("w", "host-7", sight.look(request))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda copy: (copy / "model.safetensors").unlink(), "host-7 does not see {}/model.safetensors"),
        (shutil.rmtree, "host-7 does not see {}/model.safetensors"),
        (lambda copy: shutil.rmtree(copy / "rank_0"), "host-7 does not see {}/rank_0/checkpoint_0.ckpt"),
        (
            lambda copy: (copy / "model.safetensors").write_bytes(bytes(99)),
            "host-7 sees {}/model.safetensors with 99 bytes, the driver with 100",
        ),
    ],
)
def test_another_source(source: Path, tmp_path: Path, change: Any, message: str) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    change(copy)
    seen = Sight([source])
    answer = answered(seen.request("w"), source, copy)
    with pytest.raises(StorageError) as caught:
        seen.check("w", "host-7", answer)
    assert caught.value.message == message.format(source)
    assert caught.value.hint == "mount the same file system at the same path on every node"


def test_what_changes_for_both_is_no_difference(source: Path) -> None:
    seen = Sight([source])
    (source / "model.safetensors").write_bytes(bytes(120))
    (source / "new.json").write_text("{}")
    seen.check("w", "host-7", sight.look(seen.request("w")))


def test_another_directory_for_the_result(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    seen = Sight([], ours / "dest")
    answer = answered(seen.request("w"), ours, theirs)
    with pytest.raises(StorageError, match=rf"host-7 does not share {ours} with the driver: No such file or directory"):
        seen.check("w", "host-7", answer)
    assert not [*ours.iterdir(), *theirs.iterdir()]


def test_an_answer_that_the_driver_does_not_see(tmp_path: Path) -> None:
    """Such as a node that has a copy of the directory, or a file system that shows new files late."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    seen = Sight([], ours / "dest")
    request = seen.request("w")
    shutil.copytree(ours, theirs)
    with pytest.raises(StorageError, match=rf"the driver does not see what host-7 writes into {ours}"):
        seen.check("w", "host-7", answered(request, ours, theirs))
    assert not [*ours.iterdir()]


def test_a_token_of_another_run_is_not_enough(tmp_path: Path) -> None:
    seen = Sight([], tmp_path / "dest")
    request = seen.request("w")
    answer = {**sight.look(request), "token": "0" * 32}
    with pytest.raises(StorageError, match="does not share"):
        seen.check("w", "host-7", answer)


def test_a_worker_that_died_leaves_no_token(tmp_path: Path) -> None:
    seen = Sight([], tmp_path / "dest")
    sight.look(seen.request("w"))
    seen.forget("w")
    seen.request("x")
    seen.request("x")
    seen.forget("x")
    assert not [*tmp_path.iterdir()]


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        Sight([], tmp_path / "missing" / "dest").request("w")


def test_a_source_that_is_not_there_is_no_matter_of_sight(tmp_path: Path) -> None:
    """Whoever opens it says so."""
    seen = Sight([tmp_path / "nothing"])
    seen.check("w", "host-7", sight.look(seen.request("w")))
