"""How files are accessed: what the user says, or what is fastest where they lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamconv.errors import UsageError
from streamconv.storage import access
from streamconv.storage.access import Access
from streamconv.tensors.refs import SourceFile

FILES = (SourceFile(Path("a"), 1),)
BY_KIND = {
    "tmpfs": Access.MAP,
    "ramfs": Access.MAP,
    "ext4": Access.DIRECT,
    "xfs": Access.DIRECT,
    "nfs4": Access.READ,
    "overlay": Access.READ,
    "": Access.READ,
}


@pytest.mark.parametrize(("kind", "way"), BY_KIND.items())
def test_auto_depends_on_the_file_system(kind: str, way: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_file_system", lambda path: kind)
    monkeypatch.setattr(access, "_has_huge_pages", lambda: True)
    assert access.of_source("auto", FILES) is way
    assert access.of_destination("auto", Path("b")) is way
    once_only = Access.READ if way is Access.DIRECT else way
    assert access.of_source("auto", FILES, once=False) is once_only
    monkeypatch.setattr(access, "_has_huge_pages", lambda: False)
    assert access.of_source("auto", FILES) is once_only
    assert access.of_source("auto", ()) is Access.READ


@pytest.mark.parametrize("way", Access)
def test_the_user_knows_better(way: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_file_system", None)
    assert access.of_source(way.value, FILES) is way
    assert access.of_source(way.value, (), once=False) is way
    assert access.of_destination(way.value, Path("b")) is way
    access.check_io(way.value)


def test_a_word_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"--io fast: not one of auto, map, read, direct"):
        access.check_io("fast")


def test_the_file_system_is_found(tmp_path: Path) -> None:
    assert access._file_system(Path("/proc")) == "proc"
    assert access._file_system(tmp_path / "nothing") == ""


def test_huge_pages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, has in (
        ("always [madvise] never\n", True),
        ("[always] madvise never\n", True),
        ("always [never]\n", False),
    ):
        (tmp_path / "enabled").write_text(text)
        monkeypatch.setattr(access, "_HUGE_PAGES", tmp_path / "enabled")
        assert access._has_huge_pages() is has
    monkeypatch.setattr(access, "_HUGE_PAGES", tmp_path / "missing")
    assert not access._has_huge_pages()


def test_what_the_page_cache_has_is_taken_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = access._file_system(tmp_path)
    if kind not in access._TAKES_DIRECT:
        pytest.skip(f"the page cache of {kind} cannot be emptied")
    monkeypatch.setattr(access, "_has_huge_pages", lambda: True)
    files = []
    for number, size in enumerate((3 << 20, 0, 9 << 20)):
        path = tmp_path / str(number)
        path.write_bytes(os.urandom(size))
        files.append(SourceFile(path, size))
    assert access.of_source("auto", files) is Access.READ
    for file in files:
        descriptor = os.open(file.path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    assert access.of_source("auto", files) is Access.DIRECT
    files[2].path.read_bytes()
    assert access.of_source("auto", files) is Access.READ, "three quarters of it"


def test_files_that_cannot_be_opened_are_not_cached(tmp_path: Path) -> None:
    """Why they cannot, the reader is told."""
    assert not access._are_cached([SourceFile(tmp_path / "missing", 100)])
