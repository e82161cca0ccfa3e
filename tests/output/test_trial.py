"""Places that cannot do what a run needs at its end: found out before the first byte, with what they lack."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv.errors import DestinationError, StorageError
from streamconv.output.paths import ResultPaths
from streamconv.storage import disk, libc
from support import running
from support.running import stopped, tree

NAMES = pytest.mark.parametrize("name", ["dest", "dest.ckpt"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return running.tiny(tmp_path / "source")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def refusing(patch: pytest.MonkeyPatch, call: str, number: int, where: Callable[..., bool]) -> None:
    """Have the system refuse a call for some arguments."""
    real = getattr(os, call)

    def refused(*arguments: Any, **more: Any) -> Any:
        if where(*arguments):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **more)

    patch.setattr(os, call, refused)


def of_file(descriptor: int, *_: object) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def of_new_file(descriptor: int, *_: object) -> bool:
    """Not of the journal."""
    return not Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith(".streamconv")


LACKS: dict[str, tuple[str, int, Callable[..., bool], str, str]] = {
    "no size": ("ftruncate", errno.ENOTSUP, of_file, "both", "set the size of a file in"),
    "no sync": ("fsync", errno.EINVAL, of_file, "both", "make a file durable in"),
    "no writing at an offset": ("pwrite", errno.ENOTSUP, of_new_file, "both", "write into the middle of a file in"),
    "no directories": ("mkdir", errno.ENOSYS, lambda *_: True, "dest", "create a directory in"),
    "no rename": ("replace", errno.ENOSYS, lambda *_: True, "both", "rename a"),
    "no rename of directories": (
        "replace",
        errno.EPERM,
        lambda a, b: Path(a).is_dir(),
        "dest",
        "rename a directory in",
    ),
    "no rename over another": ("replace", errno.EEXIST, lambda a, b: Path(b).exists(), "old", "by a rename in"),
}


@NAMES
@pytest.mark.parametrize("lack", LACKS)
def test_what_a_place_lacks_is_found_first(lack: str, name: str, source: Path, place: Path, monkeypatch: Any) -> None:
    call, number, where, which, words = LACKS[lack]
    if (which, name) == ("dest", "dest.ckpt"):
        pytest.skip("a file needs no directory")
    if which == "old" and name == "dest":
        (place / name).mkdir()
    elif which == "old":
        streamconv.convert(source, place / name, dtype="fp32")
    before = tree(place)
    with monkeypatch.context() as patch:
        refusing(patch, call, number, where)
        with pytest.raises(StorageError) as caught:
            streamconv.convert(source, place / name, overwrite=True)
    assert f"{words} " in f"{caught.value.message} " and str(place) in caught.value.message
    assert f"which every result needs: {os.strerror(number)}; nothing was written" in caught.value.message
    assert "choose a destination on another file system" in caught.value.hint
    assert tree(place) == before
    streamconv.convert(source, place / name, overwrite=True)
    assert streamconv.verify(place / name, source=source)


def test_a_place_that_can_neither_swap_nor_replace_will_do_for_directories(
    source: Path, place: Path, monkeypatch: Any
) -> None:
    streamconv.convert(source, place / "dest", dtype="fp32")
    monkeypatch.setattr(libc, "swap_names", running.failing(OSError(errno.EINVAL, "no swap")))
    refusing(monkeypatch, "replace", errno.EEXIST, lambda one, other: os.path.lexists(other))
    streamconv.convert(source, place / "dest", overwrite=True)
    assert streamconv.verify(place / "dest", source=source)
    assert not list(place.glob("*partial*"))


@NAMES
@pytest.mark.parametrize(
    "number",
    [
        *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES, errno.ENOMEM, errno.ENFILE, errno.EINTR),
        *(errno.EAGAIN, errno.ENAMETOOLONG),
    ],
)
def test_what_is_wrong_for_the_moment_is_said_as_everywhere(
    number: int, name: str, source: Path, place: Path, monkeypatch: Any
) -> None:
    refusing(monkeypatch, "ftruncate", number, of_file)
    with pytest.raises(StorageError, match=f"cannot set the size of a file in .*place: {os.strerror(number)}\nhint: "):
        streamconv.convert(source, place / name)
    assert tree(place) == {}


@NAMES
def test_work_that_was_saved_survives_a_failing_trial(name: str, source: Path, place: Path, monkeypatch: Any) -> None:
    stopped(source, place / name)
    before = tree(place)
    with monkeypatch.context() as patch:
        refusing(patch, "replace", errno.ENOSYS, lambda *_: True)
        with pytest.raises(StorageError, match="nothing was written"):
            streamconv.convert(source, place / name)
    after = tree(place)
    journal = f"{name}.partial.streamconv"
    assert bytes(after.pop(journal) or b"").startswith(bytes(before.pop(journal) or b""))
    assert after == before
    assert streamconv.convert(source, place / name).tally.resumed


@NAMES
def test_what_a_killed_trial_left_is_removed(name: str, source: Path, place: Path) -> None:
    paths = ResultPaths(place / name, name != "dest")
    for left in (paths.trial, paths.trial_target):
        left.mkdir()
        (left / "file").touch()
    streamconv.convert(source, place / name)
    assert not list(place.glob("*partial*"))


@pytest.mark.parametrize("length", [231, 232, 236])
def test_the_longest_name_of_a_run_is_tried(length: int, source: Path, place: Path) -> None:
    dest = place / ("d" * (length - 5) + ".ckpt")
    paths = ResultPaths(dest, True)
    assert len(paths.trial_target.name) == len(paths.pending_manifest.name)
    if length > 231:
        with pytest.raises(
            StorageError, match=r"cannot rename a file in .*: File name too long\nhint: choose a shorter"
        ):
            streamconv.convert(source, dest, progress=running.failing(AssertionError()))
        assert tree(place) == {}
    else:
        streamconv.convert(source, dest)
        assert streamconv.verify(dest, source=source)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.ENOTTY])
def test_where_names_cannot_be_swapped_two_renames_do(number: int, source: Path, place: Path, monkeypatch: Any) -> None:
    streamconv.convert(source, place / "dest", dtype="fp32")
    monkeypatch.setattr(libc, "swap_names", running.failing(OSError(number, "no swap")))
    streamconv.convert(source, place / "dest", overwrite=True)
    assert streamconv.verify(place / "dest", source=source)
    assert [path.name for path in place.iterdir()] == ["dest"]


def test_what_an_overlay_cannot_rename_is_to_be_moved_away(source: Path, place: Path, monkeypatch: Any) -> None:
    """Nothing tells before the run; what was built is kept."""
    streamconv.convert(source, place / "dest", dtype="fp32")
    before = tree(place)
    with monkeypatch.context() as patch:
        patch.setattr(libc, "swap_names", running.failing(OSError(errno.EXDEV, "no swap")))
        refusing(patch, "replace", errno.EXDEV, lambda one, _: Path(one).name == "dest")
        with pytest.raises(StorageError, match="hint: move the old destination away, then run the same conversion"):
            streamconv.convert(source, place / "dest", overwrite=True)
    assert {name: what for name, what in tree(place).items() if "partial" not in name} == before
    (place / "dest").rename(place / "away")
    assert streamconv.convert(source, place / "dest").tally.resumed
    assert sorted(path.name for path in place.iterdir()) == ["away", "dest"]


@NAMES
def test_a_plan_tries_nothing(name: str, source: Path, place: Path) -> None:
    place.chmod(0o555)
    before = place.stat().st_mtime_ns
    streamconv.plan(source, place / name).check_destination()
    assert place.stat().st_mtime_ns == before


# -- what belongs to others --------------------------------------------------------------------------------------------


@pytest.fixture
def sticky(place: Path, monkeypatch: Any) -> Path:
    if os.geteuid() != 0:
        pytest.skip("gives files to other users")
    place.chmod(0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    return place


@pytest.mark.parametrize("taken", ["dest", "dest.ckpt", "dest.ckpt.streamconv.json"])
def test_what_others_own_in_a_sticky_folder_is_not_replaced(taken: str, source: Path, sticky: Path) -> None:
    name = "dest" if taken == "dest" else "dest.ckpt"
    streamconv.convert(source, sticky / name)
    before = tree(sticky)
    for path in (sticky, sticky / "dest.ckpt", sticky / "dest.ckpt.streamconv.json", sticky / "dest"):
        if path.exists():
            os.chown(path, 11111 if path == sticky / taken or path == sticky else 54321, -1)
    with pytest.raises(DestinationError, match=f"{taken} belongs to another user, and .* is sticky"):
        streamconv.convert(source, sticky / name, overwrite=True)
    with pytest.raises(DestinationError, match="is sticky"):
        streamconv.plan(source, sticky / name, overwrite=True).check_destination()
    assert tree(sticky) == before
    os.chown(sticky / taken, 54321, -1)
    streamconv.convert(source, sticky / name, overwrite=True)


def test_an_empty_directory_of_another_user_in_a_sticky_folder(source: Path, sticky: Path) -> None:
    (sticky / "dest").mkdir()
    os.chown(sticky, 11111, -1)
    os.chown(sticky / "dest", 11111, -1)
    with pytest.raises(DestinationError, match="is sticky"):
        streamconv.convert(source, sticky / "dest")


def test_files_that_may_not_be_removed(source: Path, place: Path, monkeypatch: Any) -> None:
    streamconv.convert(source, place / "dest")
    monkeypatch.setattr(disk, "may_write", lambda path: False)
    with pytest.raises(DestinationError, match="dest holds files that you may not remove"):
        streamconv.convert(source, place / "dest", overwrite=True)
