"""The names of a result, and of all that lies next to it while it is built."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from ..formats.directory import JOURNAL
from ..storage import disk

MANIFEST = "streamconv.json"


class ResultPaths(Struct, frozen=True):
    """The names of one result.

    Attributes:
        path: its final name.
        is_file: whether it is one file, with its manifest next to it; else it is a directory of files.
    """

    path: Path
    is_file: bool

    @classmethod
    def of_existing(cls, path: Path) -> ResultPaths:
        """Return the names of a result that is there.

        Raises:
            OSError: the system cannot tell whether it is a directory.
        """
        return cls(path, not disk.is_directory(path))

    def file(self, name: str) -> Path:
        """Return where the file of this name lies; of a result that is one file, that file itself."""
        return self.path if self.is_file else self.path / name

    @property
    def directory(self) -> Path:
        """The directory that holds the result's files."""
        return self.path.parent if self.is_file else self.path

    @property
    def manifest(self) -> Path:
        """Where the manifest lies."""
        return self._beside(MANIFEST) if self.is_file else self.path / MANIFEST

    @property
    def partial(self) -> Path:
        """Where the result is built."""
        return self._beside("partial")

    @property
    def built(self) -> ResultPaths:
        """The names of what is built at `partial`."""
        return ResultPaths(self.partial, self.is_file)

    def partial_file(self, name: str) -> Path:
        """Return where the file of this name is built."""
        return self.built.file(name)

    @property
    def pending_manifest(self) -> Path:
        """Where the manifest waits until the result has its name."""
        return self._beside(f"{MANIFEST}.partial") if self.is_file else self.partial / MANIFEST

    @property
    def journal(self) -> Path:
        """Where the journal of an unfinished run lies."""
        return self.partial.with_name(f"{self.partial.name}{JOURNAL}")

    @property
    def parts(self) -> Path:
        """Where the journals of parts of an unfinished run lie, which several processes write."""
        return self._beside("partial.parts")

    @property
    def replaced(self) -> Path:
        """Where the old result lies for a moment, on a file system that cannot swap two names."""
        return self._beside("partial.old")

    @property
    def trial(self) -> Path:
        """What is built for a moment to try out the place."""
        return self._beside("partial.trial")

    @property
    def trial_target(self) -> Path:
        """The name that it is given: as long as the longest that the run will use, for that is tried too."""
        return self._beside("partial.trial.to.rename" if self.is_file else "partial.trial.to")

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")
