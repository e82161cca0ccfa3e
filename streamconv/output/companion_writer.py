"""Write what stands next to the weights: indices, config, and copies of the tokenizer and other small files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import storing
from ..formats.headers import opened
from ..storage import disk, whole_files


def write_companions(
    place: Path, texts: Mapping[str, bytes], copies: Mapping[str, Path], in_folders: Iterable[str]
) -> None:
    """Write small files into a directory, durable when this returns.

    Args:
        place: the directory.
        texts: name -> content.
        copies: name -> the file that it is a copy of.
        in_folders: the names of other files that lie in folders of the directory: these folders are synced too.

    Raises:
        SourceError: a file cannot be read.
        StorageError: one cannot be written.
    """
    with storing(place, "cannot write into"):
        for name in (*texts, *copies):
            whole_files.make_directories(place, Path(name).parent)
        for name, data in texts.items():
            whole_files.write_synced(place / name, data)
    for name, path in copies.items():
        with opened(path) as (descriptor, _), storing(place, "cannot write into"):
            whole_files.copy_synced(descriptor, place / name)
    with storing(place, "cannot write into"):
        for folder in {Path(name).parent for name in (*in_folders, *copies)}:
            disk.sync_directory(place / folder)
