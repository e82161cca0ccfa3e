"""The destination: where a result may go, and what it may replace."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Set
from pathlib import Path

from ..configs.companion_files import goes_along
from ..errors import DestinationError, StorageError, UsageError, storing
from ..storage import disk, mounts, whole_files
from ..tensors.refs import Catalog
from ..text import format_size, quote, setting
from . import manifest
from .paths import ResultPaths

_ANOTHER = "choose another destination"
#: How a manifest begins.
_STARTS = re.compile(rb'\s*\{\s*"streamconv":')
_RANK = re.compile(r"rank_\d+")
_WEIGHTS = (".safetensors", ".ckpt", ".bin")
_OF_GIT = (".gitattributes", ".gitignore")


class Destination:
    """A directory of files, or a single file (`.ckpt`, or torch's), to be written.

    Args:
        path: its final name.
        is_file: it is one file, with its manifest next to it.

    Attributes:
        paths: its names, final and while it is built.

    Raises:
        UsageError: the root cannot be a destination.
        StorageError: the system cannot tell where a link leads.
    """

    def __init__(self, path: Path, is_file: bool) -> None:
        self.paths = ResultPaths(path if is_file else _nameable(path), is_file)

    @property
    def path(self) -> Path:
        """Its final name."""
        return self.paths.path

    def check(self, source: Catalog, overwrite: bool) -> None:
        """Refuse a destination that is the source, that holds it, or that may not be replaced.

        Raises:
            UsageError: it has no parent directory.
            DestinationError: it exists and may not be replaced.
            StorageError: the system cannot stat it.
        """
        with storing(self.path, "cannot stat"):
            self._check(source, overwrite)

    def _check(self, source: Catalog, overwrite: bool) -> None:
        if not disk.is_directory(self.path.parent):
            raise UsageError(f"{quote(self.path.parent)} is not a directory", "create it first")
        self._check_apart(source)
        if self.paths.is_file:
            self._check_manifest(overwrite)
        if not disk.exists(self.path):
            return
        self._check_kind()
        is_empty = not self.paths.is_file and not disk.listdir(self.path)
        if not is_empty and not overwrite:
            raise DestinationError(
                f"{quote(self.path)} exists", f"{_ANOTHER}, or replace this one with {setting('overwrite', True)}"
            )
        self._check_owner()
        if not self.paths.is_file and not is_empty:
            self._check_replaceable()

    def _check_kind(self) -> None:
        if self.paths.is_file and not disk.is_file(self.path):
            raise DestinationError(f"{quote(self.path)} exists and is not a regular file", _ANOTHER)
        if not self.paths.is_file and not disk.is_directory(self.path):
            raise DestinationError(f"{quote(self.path)} exists and is not a directory", _ANOTHER)
        self._check_mount(self.path, "choose a directory inside it")

    @staticmethod
    def _check_mount(path: Path, hint: str) -> None:
        if mounts.is_mount(path):
            raise DestinationError(f"{quote(path)} is a mount point, which cannot be replaced by a rename", hint)

    def _check_manifest(self, overwrite: bool) -> None:
        """Refuse what has the manifest's name and cannot be replaced, or is none, and stands next to no checkpoint."""
        manifest = self.paths.manifest
        if not disk.exists(manifest):
            return
        if disk.is_link(manifest) or not disk.is_file(manifest):
            raise DestinationError(f"{quote(manifest)}, where the manifest goes, is not a regular file", _ANOTHER)
        self._check_mount(manifest, _ANOTHER)
        self._check_owner()
        if not overwrite and not disk.exists(self.path) and not _STARTS.match(whole_files.read_file(manifest, 64)):
            raise DestinationError(
                f"{quote(manifest)}, where the manifest goes, exists and is none of streamconv",
                f"{_ANOTHER}, or replace it with {setting('overwrite', True)}",
            )

    def _check_owner(self) -> None:
        """Refuse what belongs to others in a sticky folder, such as /tmp: a rename would be refused at the end."""
        folder, user = disk.stat(self.path.parent), os.geteuid()
        for path in (self.path, *([self.paths.manifest] if self.paths.is_file else [])):
            owner = disk.stat(path, follow=False).st_uid if disk.exists(path) else user
            if folder.st_mode & stat.S_ISVTX and user not in (0, folder.st_uid, owner):
                raise DestinationError(
                    f"{quote(path)} belongs to another user, and {quote(self.path.parent)} is sticky: "
                    "only the owner can replace it",
                    _ANOTHER,
                )

    def _check_apart(self, source: Catalog) -> None:
        """By inode: a name says nothing about what lies behind links and mounts."""
        inside = {disk.device_and_inode(p) for p in (self.path, *self.path.absolute().parents) if disk.mode(p)}
        entries = _entries(self.path) if disk.is_directory(self.path) else []
        held = {disk.device_and_inode(p) for p in (self.path, self.paths.partial, *entries) if disk.mode(p)}
        if disk.is_directory(source.path) and disk.device_and_inode(source.path) in inside:
            raise DestinationError(
                f"{quote(self.path)} lies in the source's directory, which is never written to", _ANOTHER
            )
        for file in source.files:
            # A source that is gone by now is the reader's to report.
            if disk.mode(file.path) and disk.device_and_inode(file.path) in held:
                raise DestinationError(f"{quote(self.path)} holds the source {quote(file.path.name)}", _ANOTHER)

    def _check_replaceable(self) -> None:
        if not disk.may_write(self.path):
            raise DestinationError(f"{quote(self.path)} holds files that you may not remove", _ANOTHER)
        names = disk.listdir(self.path)
        written = manifest.companions_in(self.path)
        foreign = [name for name in names if not _is_of_checkpoint(self.path, name, written)]
        if foreign or not any(name.endswith(_WEIGHTS) for name in (*names, *written)):
            what = f"files that belong to no checkpoint ({quote(foreign[0])})" if foreign else "no weights"
            raise DestinationError(
                f"{quote(self.path)} holds {what}; {setting('overwrite', True)} replaces only checkpoints",
                "choose another destination, or remove this one yourself",
            )

    def check_free_space(self, size: int) -> None:
        """Refuse a result that the file system has no space for.

        Raises:
            StorageError: fewer than `size` bytes are free.
        """
        with storing(self.path.parent, "cannot stat"):
            free = disk.free_bytes(self.path.parent)
        if free is not None and free < size:
            raise StorageError(
                f"{quote(self.path.parent)} has {format_size(free)} free, but the result needs {format_size(size)}; "
                "nothing was written",
                "free some space, or choose another destination",
            )


def _nameable(path: Path) -> Path:
    """Return the directory by a name that a rename can replace: for a link, and for `.`, what they lead to.

    Raises:
        UsageError: it is the root.
    """
    with storing(path, "cannot stat"):
        if path.name in ("", "..") or disk.is_link(path):
            path = Path(disk.resolve(path))
    if not path.name:
        raise UsageError(f"{quote(path)} is the root of the file system", "choose a directory in it")
    return path


def _entries(path: Path) -> list[Path]:
    """Return what is in a directory, and in the folders of ranks there."""
    names = disk.listdir(path)
    folders = [path / name for name in names if _RANK.fullmatch(name) and disk.is_directory(path / name)]
    return [*(path / name for name in names), *(folder / name for folder in folders for name in disk.listdir(folder))]


def _is_of_checkpoint(root: Path, name: str, written: Set[str]) -> bool:
    """Whether an entry is a checkpoint's: a subfolder only if streamconv wrote all that is in it."""
    path = root / name
    if disk.is_link(path) and disk.is_directory(path):
        return False
    if disk.is_directory(path):
        inside = disk.listdir(path)
        return name.endswith("__pycache__") or all(_is_of_checkpoint(root, f"{name}/{one}", written) for one in inside)
    return name in written or ("/" not in name and (name.endswith(_WEIGHTS) or goes_along(name) or name in _OF_GIT))
