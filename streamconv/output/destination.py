"""The destination: where a result may go, and what it may replace."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from pathlib import Path

from ..configs.companion_files import goes_along
from ..errors import DestinationError, StorageError, UsageError, storing
from ..formats import rank_slices
from ..storage import disk, mounts, whole_files
from ..tensors.refs import Catalog
from ..text import format_size, quote, setting
from . import manifest
from .apart import check_apart
from .paths import ResultPaths

_ANOTHER = "choose another destination"
#: How a manifest begins.
_STARTS = re.compile(rb'\s*\{\s*"streamconv":')
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

    def check(self, source: Catalog, overwrite: bool, others: Sequence[Path] = ()) -> None:
        """Refuse a destination that is or holds what the run reads, or that may not be replaced.

        Args:
            source: the source.
            overwrite: a checkpoint there is replaced.
            others: further files and directories that the run reads.

        Raises:
            UsageError: it has no parent directory.
            DestinationError: it exists and may not be replaced.
            StorageError: the system cannot stat it.
        """
        with storing(self.path, "cannot stat"):
            self._check(source, overwrite, others)

    def _check(self, source: Catalog, overwrite: bool, others: Sequence[Path]) -> None:
        if not disk.is_directory(self.path.parent):
            raise UsageError(f"{quote(self.path.parent)} is not a directory", "create it first")
        check_apart(self.paths, source, others)
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
        if self.paths.is_file:
            self._check_not_saved([self.path.name], {self.path.name} if self._is_ours() else set())
        elif not is_empty:
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
        if not overwrite and not disk.exists(self.path) and not self._is_ours():
            raise DestinationError(
                f"{quote(manifest)}, where the manifest goes, exists and is none of streamconv",
                f"{_ANOTHER}, or replace it with {setting('overwrite', True)}",
            )

    def _is_ours(self) -> bool:
        """Whether a manifest of streamconv stands next to a file."""
        manifest = self.paths.manifest
        return disk.is_file(manifest) and _STARTS.match(whole_files.read_file(manifest, 64)) is not None

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
        self._check_not_saved(names, written)

    def _check_not_saved(self, names: Iterable[str], written: Set[str]) -> None:
        """Refuse what a training saved, unless streamconv wrote it: it may be the work of days."""
        folder = Path(disk.resolve(self.paths.directory))
        others = sorted(name for name in names if name not in written)
        saved = rank_slices.saved_by_training(folder.name, others) or next(
            (name for name in others if _begins_like_strategy(folder / name)), None
        )
        if saved:
            what = "is" if self.paths.is_file else f"holds {quote(saved)},"
            raise DestinationError(
                f"{quote(self.path)} {what} a file that a training saved, and no manifest says that streamconv wrote "
                f"it; {setting('overwrite', True)} does not replace the work of a training",
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


def _begins_like_strategy(path: Path) -> bool:
    """Whether a file of any name is a strategy of MindSpore; one that cannot be read is not."""
    with suppress(OSError):
        return path.suffix == ".ckpt" and whole_files.read_file(path, 1) == rank_slices.STRATEGY_BEGINS
    return False


def _is_of_checkpoint(root: Path, name: str, written: Set[str]) -> bool:
    """Whether an entry is a checkpoint's: a subfolder only if streamconv wrote all that is in it."""
    path = root / name
    if disk.is_link(path) and disk.is_directory(path):
        return False
    if disk.is_directory(path):
        inside = disk.listdir(path)
        return name.endswith("__pycache__") or all(_is_of_checkpoint(root, f"{name}/{one}", written) for one in inside)
    return name in written or ("/" not in name and (name.endswith(_WEIGHTS) or goes_along(name) or name in _OF_GIT))
