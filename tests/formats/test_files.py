"""Several files of a checkpoint, read one after the other or, where each request takes long, several at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from threading import get_ident

import numpy as np
import pytest
from safetensors.numpy import save_file

from streamconv.errors import BudgetError, SourceError
from streamconv.formats import files
from streamconv.formats.header_room import HeaderRoom
from streamconv.formats.safetensors import Known
from streamconv.storage import mounts

MANY = 40


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "is_far", lambda kind: True)


def written(folder: Path, tensors: Sequence[int]) -> list[tuple[Path, str]]:
    """Files with so many tensors each."""
    for number, count in enumerate(tensors):
        arrays = {f"{number}.{name}": np.full(3, name, np.float32) for name in range(count)}
        save_file(arrays, folder / f"{number:02}.safetensors")
    return [(path, "safetensors") for path in sorted(folder.iterdir())]


def rooms(threads: set[int], nbytes: int = 100_000) -> HeaderRoom:
    threads.add(get_ident())
    return HeaderRoom(nbytes, memory_limit=1 << 30)


def test_far_files_are_the_same_in_the_same_order(tmp_path: Path, far: None) -> None:
    paths, threads = written(tmp_path, [1 + number % 5 for number in range(MANY)]), set[int]()
    found = list(files.read_all(paths, lambda: rooms(threads)))
    assert found == [files.read(*file, HeaderRoom()) for file in paths]
    assert threads - {get_ident()}


def test_files_that_are_near_are_read_in_this_thread(tmp_path: Path) -> None:
    threads = set[int]()
    assert len(list(files.read_all(written(tmp_path, [1] * MANY), lambda: rooms(threads)))) == MANY
    assert threads == {get_ident()}


def test_headers_that_say_the_same_are_checked_once(tmp_path: Path, far: None) -> None:
    paths = written(tmp_path, [3])
    paths += [(Path(tmp_path / f"copy {number}.safetensors"), "safetensors") for number in range(MANY)]
    for path, _ in paths[1:]:
        path.write_bytes(paths[0][0].read_bytes())
    found = list(files.read_all(paths, HeaderRoom, Known()))
    assert [shard.file.path for shard in found] == [path for path, _ in paths]
    assert all(shard.tensors is found[0].tensors for shard in found)


def test_the_first_broken_file_is_named(tmp_path: Path, far: None) -> None:
    paths = written(tmp_path, [1] * MANY)
    for number in (MANY // 2, MANY - 1):
        paths[number][0].write_bytes(b"")
    shards = files.read_all(paths, HeaderRoom)
    assert [next(shards).file.path for _ in range(MANY // 2)] == [path for path, _ in paths[: MANY // 2]]
    with pytest.raises(SourceError, match=re.escape(paths[MANY // 2][0].name)):
        next(shards)


def test_a_header_that_needs_more_than_a_share_of_the_room_is_read_alone(tmp_path: Path, far: None) -> None:
    paths, threads = written(tmp_path, [1, 1, 300, 1, 1]), set[int]()
    shards = files.read_all(paths, lambda: rooms(threads))
    assert [len(shard.tensors) for shard in shards] == [1, 1, 300, 1, 1]
    assert list(files.read_all(paths, HeaderRoom)) == [files.read(*file, HeaderRoom()) for file in paths]
    with pytest.raises(BudgetError, match=r"02\.safetensors"):
        list(files.read_all(paths, lambda: HeaderRoom(10_000, memory_limit=1 << 20)))
