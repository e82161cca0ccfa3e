"""The mount table: which file system a path lies on."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import PurePath
from typing import NamedTuple

from ..paths import PathLike
from . import disk, whole_files

_TABLE = "/proc/self/mountinfo"
_LIMIT = 4 << 20
#: File systems that number files as they come to know them, so that a file may have another inode an hour later.
_NUMBERS_ANEW = ("cifs", "exfat", "fuse", "msdos", "smb", "vfat")
#: File systems whose files lie elsewhere, by how their types begin: each request crosses a network, or wakes a process.
_FAR = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "orangefs"),
    *("panfs", "pvfs2", "smb", "virtiofs", "wekafs"),
)
_ESCAPED = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """A mounted file system.

    Attributes:
        kind: its type, such as `ext4`.
        device: what is mounted, such as `/dev/sda1`.
        number: that device as `major:minor`.
    """

    kind: str
    device: str
    number: str


def mount_of(path: PathLike, table: PathLike = _TABLE) -> Mount | None:
    """Return the mount that `path` lies on, `None` if the mount table cannot be read.

    Source: proc_pid_mountinfo(5). White space and backslashes in mount points are escaped as `\\ooo`.
    """
    try:
        place = PurePath(disk.resolve(path))
        lines = _lines(table)
    except OSError:
        return None
    deepest, found = -1, None
    for line in lines:
        mount, _, source = line.partition(b" - ")
        number, point = mount.split()[2], _point(line)
        # Of several mounts at the same place the last is the visible one.
        if place.is_relative_to(point) and len(point.parts) >= deepest:
            kind, device = source.split()[:2]
            deepest, found = len(point.parts), Mount(os.fsdecode(kind), os.fsdecode(_plain(device)), number.decode())
    return found


def is_far(kind: str) -> bool:
    """Return whether the files of a file system of this type lie elsewhere, so that each request takes long."""
    return kind == "fuse" or kind.startswith(_FAR)


def lies_far(path: PathLike) -> bool:
    """Return whether a path lies on a file system whose files lie elsewhere."""
    mount = mount_of(path)
    return mount is not None and is_far(mount.kind)


def is_mount(path: PathLike, table: PathLike = _TABLE) -> bool:
    """Return whether something is mounted at the path, be it a file or a directory of the same file system."""
    if disk.is_mount(path):
        return True
    try:
        place = PurePath(disk.resolve(path))
        return any(_point(line) == place for line in _lines(table))
    except OSError:
        return False


def _lines(table: PathLike) -> list[bytes]:
    return whole_files.read_file(table, _LIMIT).splitlines()


def keeps_inodes(path: PathLike) -> bool:
    """Return whether a file there has the same inode as long as it exists."""
    try:
        return _keeps_inodes(PurePath(disk.resolve(path)).parent)
    except OSError:
        return False


@lru_cache(maxsize=64)
def _keeps_inodes(folder: PurePath) -> bool:
    mount = mount_of(folder)
    return mount is not None and not mount.kind.startswith(_NUMBERS_ANEW)


def _point(line: bytes) -> PurePath:
    return PurePath(os.fsdecode(_plain(line.split()[4])))


def _plain(escaped: bytes) -> bytes:
    return _ESCAPED.sub(lambda match: bytes((int(match[1], 8),)), escaped)
