"""How files are accessed: what the user says, or what is fastest where they lie."""

from __future__ import annotations

import os
from os import fsync
from pathlib import Path

import pytest

from streamconv.errors import UsageError
from streamconv.storage import access, pages
from streamconv.storage.access import Access
from streamconv.storage.mounts import Mount, mount_of
from streamconv.tensors.extents import SourceFile

FILES = (SourceFile(Path("a"), 1),)
BY_KIND = {
    "tmpfs": Access.READ,
    "ramfs": Access.READ,
    "ext4": Access.DIRECT,
    "xfs": Access.DIRECT,
    "nfs4": Access.FAR,
    "fuse.sshfs": Access.FAR,
    "lustre": Access.FAR,
    "fuseblk": Access.READ,
    "overlay": Access.READ,
    "": Access.READ,
}


@pytest.mark.parametrize(("kind", "expected"), BY_KIND.items())
def test_auto_depends_on_the_file_system(kind: str, expected: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "mount_of", lambda path: Mount(kind, "disk", "8:1") if kind else None)
    monkeypatch.setattr(pages, "PAGE", 4 << 10)
    monkeypatch.setattr(pages, "has_huge_pages", lambda: True)
    assert access.for_reading("auto", FILES).access is expected
    assert access.for_writing("auto", Path("b")).access is expected
    once_only = Access.READ
    assert access.for_reading("auto", FILES, reads_once=False).access is once_only
    monkeypatch.setattr(pages, "has_huge_pages", lambda: False)
    assert access.for_reading("auto", FILES).access is (Access.FAR if expected is Access.FAR else Access.READ)
    assert access.for_reading("auto", ()).access is Access.READ


def test_a_choice_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, huge = "ext4", True
    monkeypatch.setattr(access, "mount_of", lambda path: Mount(kind, "disk", "8:1") if kind else None)
    monkeypatch.setattr(pages, "PAGE", 4 << 10)
    monkeypatch.setattr(pages, "has_huge_pages", lambda: huge)
    assert (
        str(access.for_reading("auto", FILES))
        == str(access.for_writing("auto", Path("b")))
        == "direct (ext4, huge pages)"
    )
    assert str(access.for_reading("auto", FILES, reads_once=False)) == "read (parts may be read again)"
    assert str(access.for_reading("auto", ())) == "read (no files)"
    monkeypatch.setattr(access, "are_mostly_cached", lambda files, at_once: True)
    assert str(access.for_reading("auto", FILES)) == "read (already in the page cache)"
    huge = False
    assert str(access.for_reading("auto", FILES)) == "read (ext4, no huge pages)"
    assert str(access.for_writing("auto", Path("b"))) == "written (ext4, no huge pages)"
    kind = "tmpfs"
    assert str(access.for_reading("auto", FILES)) == "read (tmpfs)"
    assert str(access.for_writing("auto", Path("b"))) == "written (tmpfs)"
    kind = "nfs4"
    monkeypatch.setattr(access, "are_mostly_cached", lambda files, at_once: False)
    assert str(access.for_reading("auto", FILES)) == "far (nfs4, 16 requests at once)"
    assert str(access.for_writing("auto", Path("b"))) == "far (nfs4, 16 requests at once)"
    kind = ""
    assert str(access.for_reading("auto", FILES)) == "read (unknown file system)"
    assert str(access.for_reading("read", FILES)) == "read (requested)"
    assert str(access.for_writing("read", Path("b"))) == "written (requested)"


@pytest.mark.parametrize("asked", Access)
def test_the_user_knows_better(asked: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "mount_of", None)
    assert access.for_reading(asked.value, FILES).access is asked
    assert access.for_reading(asked.value, (), reads_once=False).access is asked
    assert access.for_writing(asked.value, Path("b")).access is asked
    access.check_io(asked.value)


def test_a_word_that_is_none() -> None:
    with pytest.raises(UsageError) as caught:
        access.check_io("fast")
    assert str(caught.value) == "unknown value for io: fast\nhint: choose one of auto, read, direct, far"


def test_pages_of_64_kib_need_not_be_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "mount_of", lambda path: Mount("xfs", "disk", "8:1"))
    monkeypatch.setattr(pages, "has_huge_pages", lambda: False)
    for page, expected in (
        (4 << 10, "written (xfs, no huge pages)"),
        (16 << 10, "written (xfs, no huge pages)"),
        (64 << 10, "direct (xfs, pages of 64 KiB)"),
    ):
        monkeypatch.setattr(pages, "PAGE", page)
        assert str(access.for_writing("auto", Path("b"))) == expected
    monkeypatch.setattr(access, "mount_of", lambda path: Mount("tmpfs", "disk", "8:1"))
    assert access.for_writing("auto", Path("b")).access is Access.READ


def test_what_the_page_cache_has_is_taken_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = mount_of(tmp_path)
    if mount is None or mount.kind not in access.TAKES_DIRECT:
        pytest.skip(f"the page cache of {mount} cannot be emptied")
    monkeypatch.setattr(pages, "has_huge_pages", lambda: True)
    files = []
    for number, size in enumerate((3 << 20, 0, 9 << 20)):
        path = tmp_path / str(number)
        path.write_bytes(os.urandom(size))
        files.append(SourceFile(path, size))
    assert access.for_reading("auto", files).access is Access.READ
    for file in files:
        descriptor = os.open(file.path, os.O_RDONLY)
        fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    assert access.for_reading("auto", files).access is Access.DIRECT
    files[2].path.read_bytes()
    assert access.for_reading("auto", files).access is Access.READ, "three quarters of it"


def test_files_that_cannot_be_opened_are_not_cached(tmp_path: Path) -> None:
    """Why they cannot, the reader is told."""
    assert not access.are_mostly_cached([SourceFile(tmp_path / "missing", 100)])
