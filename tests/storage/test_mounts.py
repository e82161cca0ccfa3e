"""The mount table, read once for whoever asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamconv.storage import mounts
from streamconv.storage.mounts import Mount, mount_of


def test_the_mount_of_a_path_is_found(tmp_path: Path) -> None:
    assert mount_of("/proc/self") == mount_of(Path("/proc"))
    assert (mount_of("/proc") or Mount("", "", "")).kind == "proc"
    assert mount_of(tmp_path / "nothing" / "here") == mount_of(tmp_path)
    assert mount_of(tmp_path, tmp_path / "no table") is None


def test_the_deepest_and_last_mount_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a b"
    inner.mkdir()
    table = tmp_path / "mountinfo"
    lines = [
        "21 1 8:1 / / rw - ext4 /dev/sda1 rw",
        f"22 21 0:30 / {tmp_path} rw shared:2 - nfs4 server:/export\\040one rw",
        f"23 21 0:31 / {tmp_path} rw - tmpfs tmpfs rw,size=1k",
        f"24 22 8:2 /sub {tmp_path}/a\\040b rw - xfs /dev/sdb rw",
    ]
    table.write_text("\n".join(lines) + "\n")
    assert mount_of("/", table) == Mount("ext4", "/dev/sda1", "8:1")
    assert mount_of(tmp_path, table) == Mount("tmpfs", "tmpfs", "0:31")
    assert mount_of(inner, table) == Mount("xfs", "/dev/sdb", "8:2")
    link = tmp_path / "link"
    link.symlink_to(inner)
    assert mount_of(link / "file", table) == mount_of(inner, table)
    table.write_text("\n".join(lines[:2]))
    assert mount_of(tmp_path, table) == Mount("nfs4", "server:/export one", "0:30")


@pytest.mark.parametrize(
    ("kind", "keeps"),
    [
        *(("ext4", True), ("xfs", True), ("nfs4", True), ("tmpfs", True), ("overlay", True), ("virtiofs", True)),
        *(("fuse.sshfs", False), ("fuseblk", False), ("cifs", False), ("smb3", False), ("vfat", False), ("", False)),
    ],
)
def test_where_inodes_last(kind: str, keeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / kind).mkdir(exist_ok=True)
    monkeypatch.setattr(mounts, "mount_of", lambda folder: Mount(kind, "disk", "8:1") if kind else None)
    (tmp_path / "link").symlink_to(tmp_path / kind / "file")
    mounts._keeps_inodes.cache_clear()
    assert mounts.keeps_inodes(tmp_path / "link") is keeps
    mounts._keeps_inodes.cache_clear()


@pytest.mark.parametrize(("kind", "far"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("tmpfs", False)])
def test_what_lies_far(kind: str, far: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "mount_of", lambda path: mounts.Mount(kind, "somewhere", "0:1"))
    assert mounts.lies_far(tmp_path) == far
    monkeypatch.setattr(mounts, "mount_of", lambda path: None)
    assert not mounts.lies_far(tmp_path)


def test_what_is_bound_to_another_name_is_a_mount(tmp_path: Path) -> None:
    """The device is the same, so that nothing but the table tells."""
    bound, table = tmp_path / "a b", tmp_path / "mountinfo"
    bound.touch()
    table.write_text(f"24 22 8:1 /sub {tmp_path}/a\\040b rw - ext4 /dev/sda1 rw\n")
    assert mounts.is_mount(bound, table)
    assert not mounts.is_mount(tmp_path, table)
    assert not mounts.is_mount(bound, tmp_path / "no table")
    assert mounts.is_mount("/proc", tmp_path / "no table")
