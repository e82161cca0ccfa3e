"""The layer for files: what it makes of its primitives, and that nothing goes past it."""

from __future__ import annotations

import ast
import errno
import os
from functools import cache
from os import fsync
from pathlib import Path

import pytest

from streamconv.storage import access, disk, whole_files
from streamconv.storage.mounts import mount_of
from support import ROOT, running

#: Rooms that touch no checkpoint: /proc and cgroups, what the demo makes for itself, standard output.
ELSEWHERE = {"disk.py", "memory.py", "demo.py", "testing.py", "terminal.py", "offers.py"}
#: Calls on files by name, as a method or a function of a module, that `disk` has a word for.
WORDS = {
    *("open", "fdopen", "pread", "preadv", "pwrite", "read_text", "read_bytes", "write_text", "write_bytes"),
    *("fsync", "fdatasync", "ftruncate", "truncate", "stat", "fstat", "lstat", "iterdir", "listdir", "scandir", "glob"),
    *("unlink", "rmdir", "mkdir", "touch", "is_file", "is_dir", "is_symlink", "exists", "lexists", "isfile", "isdir"),
    *("realpath", "ismount", "islink", "samefile"),
    *("rmtree", "copyfile", "copyfileobj", "copy", "move", "statvfs", "flock", "lockf", "renameat2", "replace"),
}


@cache
def classes() -> set[str]:
    """The package's own classes: their methods may have any name."""
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "streamconv").rglob("*.py"))]
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def calls_past_the_layer(path: Path) -> list[str]:
    found = []
    allowed = {"disk", *classes()}
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=value, attr=word)) if word in WORDS:
                home = value.id if isinstance(value, ast.Name) else ""
                if home not in allowed and (word not in {"copy", "replace"} or home in {"os", "shutil"}):
                    found.append(f"{path.name}:{node.lineno} {home}.{word}")
            case ast.Call(func=ast.Name(id="open")):
                found.append(f"{path.name}:{node.lineno} open")
    return found


@pytest.mark.slow
def test_no_operation_on_files_goes_past_the_layer() -> None:
    package = ROOT / "streamconv"
    paths = [path for path in sorted(package.rglob("*.py")) if path.name not in ELSEWHERE]
    assert [call for path in paths for call in calls_past_the_layer(path)] == []


@pytest.mark.slow
def test_that_test_finds_them() -> None:
    assert calls_past_the_layer(Path(__file__))
    assert calls_past_the_layer(ROOT / "streamconv" / "storage" / "disk.py")


def test_short_reads_and_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = disk.write, disk.read
    monkeypatch.setattr(disk, "write", lambda fd, data, offset: write(fd, data[:3], offset))
    monkeypatch.setattr(disk, "read", lambda fd, length, offset: read(fd, min(length, 2), offset))
    whole_files.write_synced(tmp_path / "a", b"0123456789")
    assert whole_files.read_file(tmp_path / "a", 100) == b"0123456789"
    assert whole_files.read_file(tmp_path / "a", 5) == b"01234"
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    whole_files.copy_synced(descriptor, tmp_path / "b")
    os.close(descriptor)
    assert (tmp_path / "b").read_bytes() == b"0123456789"


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    assert disk.is_file(tmp_path / "file") and disk.is_file(tmp_path / "link") and disk.is_directory(tmp_path)
    assert disk.is_link(tmp_path / "link") and not disk.is_link(tmp_path / "file")
    assert disk.exists(tmp_path / "nowhere") and not disk.is_file(tmp_path / "nowhere")
    for name in ("loop", "gone", "file/below", "n" * 300, "nul\0"):
        assert disk.mode(tmp_path / name) == 0
    assert disk.device_and_inode(tmp_path / "link") == disk.device_and_inode(tmp_path / "file")


def test_a_tree_is_removed_and_links_in_it_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"")
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "below" / "file").write_bytes(b"")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    whole_files.remove_tree(tmp_path / "tree")
    assert running.tree(tmp_path) == {"kept": None, "kept/file": b""}


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    one, two = (disk.open_file(tmp_path / "file", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert disk.lock(one) is True
    assert disk.lock(two) is False
    disk.close(one)
    assert disk.lock(two) is True
    disk.close(two)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_where_there_are_no_locks(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", fail)
    assert disk.lock(0) is None


def test_names_are_swapped_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"")
    assert disk.exchange(tmp_path / "one", tmp_path / "other") is True
    assert sorted(running.tree(tmp_path)) == ["one", "one/other", "other", "other/one"]
    with pytest.raises(FileNotFoundError):
        disk.exchange(tmp_path / "one", tmp_path / "gone")


def test_what_cannot_be_asked_is_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a" * 100)
    assert access.are_cached(path, [0, 50, 99, 100]) == [True, True, True, True]
    assert access.are_cached(path, [1 << 20]) == [False], "the file was longer"
    for owned, number in ((True, errno.ENODEV), (False, None)):
        with pytest.MonkeyPatch.context() as patch:
            if number:
                patch.setattr("mmap.mmap", running.failing(OSError(number, "no mmap")))
            else:
                patch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
                patch.setattr(os, "access", lambda *_: False)
            assert access.are_cached(path, [0, 50]) == [False, False], owned


def test_asking_what_is_cached_reads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    mount = mount_of(tmp_path)
    if mount is None or mount.kind not in access.TAKES_DIRECT:
        pytest.skip(f"the page cache of {mount} cannot be emptied")
    path.write_bytes(os.urandom(8 << 20))
    descriptor = os.open(path, os.O_RDONLY)
    fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    for _ in range(3):
        assert not any(disk.is_cached(descriptor, offset) for offset in range(0, 8 << 20, 1 << 20))
    os.pread(descriptor, 1, 3 << 20)
    assert disk.is_cached(descriptor, 3 << 20)
    os.close(descriptor)


def test_holes_of_a_file(tmp_path: Path) -> None:
    """Begin and end of each, within the range that is asked for."""
    block = 1 << 20
    with (tmp_path / "f").open("wb+") as file:
        file.truncate(4 * block)
        os.pwrite(file.fileno(), b"x" * block, block)
        if whole_files.next_hole(file.fileno(), 0, 4 * block) != (0, block):
            pytest.skip("this file system keeps no holes")
        assert whole_files.next_hole(file.fileno(), block // 2, 4 * block) == (block // 2, block)
        assert whole_files.next_hole(file.fileno(), block, 4 * block) == (2 * block, 4 * block)
        assert whole_files.next_hole(file.fileno(), block, 3 * block) == (2 * block, 3 * block)
        assert whole_files.next_hole(file.fileno(), block, 2 * block) is None
        assert whole_files.next_hole(file.fileno(), 4 * block, 4 * block) is None
    reader, writer = os.pipe()
    assert whole_files.next_hole(reader, 0, 10) is None, "nobody knows"
    os.close(reader)
    os.close(writer)


def test_whole_files_are_not_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"x")
    (tmp_path / "link").symlink_to("precious")
    for write in (whole_files.write_synced, lambda link, _: whole_files.copy_synced(0, link)):
        with pytest.raises(OSError, match="symbolic links"):
            write(tmp_path / "link", b"other")
    assert (tmp_path / "precious").read_bytes() == b"x"


@pytest.mark.parametrize("error", ["EPERM", "EACCES", "EXDEV", "EMLINK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_without_links_says_so_in_many_ways(error: str, tmp_path: Path, monkeypatch) -> None:
    def refusing(*_: object) -> None:
        raise OSError(getattr(errno, error), error)

    (tmp_path / "a").touch()
    assert disk.hard_link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    monkeypatch.setattr(os, "link", refusing)
    assert not disk.hard_link(tmp_path / "a", tmp_path / "c")
