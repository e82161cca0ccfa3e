"""Downloads that did not finish: what programs leave next to a file, and which file it belongs to.

A program that writes into the file itself (aria2, axel) sets its whole size first, so the file looks complete; what it
leaves next to the file is the only sign. Others write elsewhere and rename: as long as they are at it, the file is
missing, and if it is there, what they left is an older attempt's.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import SourceError
from ..storage import disk
from ..text import counted, quote
from .directory import CONFIG, FORMATS, JOURNAL, Listing
from .header_room import HeaderRoom
from .shards import listing


class Mark(NamedTuple):
    """A name that says that a file is not complete.

    Attributes:
        name: the pattern of the name; `file` is the file that it belongs to.
        what: whose it is.
        is_next_to_it: it lies openly next to the file, so whoever finished the download would have removed it.
    """

    name: re.Pattern[str]
    what: str
    is_next_to_it: bool = True


class Trace(NamedTuple):
    """A mark that was found: its path from the directory, and what a `Mark` says."""

    path: str
    what: str
    is_next_to_it: bool = False


def _ending(text: str, what: str) -> Mark:
    return Mark(re.compile(rf"(?P<file>.+?){text}", re.DOTALL), what)


MARKS = (
    _ending(r"\.aria2", "aria2's control file"),
    _ending(r"\.st", "axel's state file"),
    _ending(r"\.incomplete", "huggingface_hub's partial download"),
    _ending(r"\.crdownload", "Chrome's partial download"),
    _ending(r"\.opdownload", "Opera's partial download"),
    _ending(r"\.download", "Safari's partial download"),
    _ending(r"\.part", "a partial download, such as Firefox's"),
    _ending(r"(?:\.[0-9a-f]{8})?\.partial", "a partial download, such as rclone's"),
    _ending(r"\.filepart", "WinSCP's partial download"),
    _ending(r"\.(?:xltd|td)", "Thunder's partial download"),
    _ending(r"(?:\.baiduyun)?(?:\.p)?\.downloading", "Baidu's partial download"),
    _ending(r"\.!qB", "qBittorrent's partial download"),
    _ending(r"_\.gstmp", "gsutil's partial download"),
    # Only behind a file of weights, and not eight decimal digits: those are a date.
    Mark(
        re.compile(r"(?P<file>.+\.(?:safetensors|ckpt|bin|pt|pth))\.(?!\d{8})[0-9A-Fa-f]{8}", re.DOTALL),
        "the AWS CLI's partial download",
        is_next_to_it=False,
    ),
    Mark(re.compile(r"\.(?P<file>.+)\.[0-9A-Za-z]{6}", re.DOTALL), "a partial copy of rsync", is_next_to_it=False),
)

#: Folders in which a file has its own name until it is complete.
FOLDERS = {
    "._____temp": "ModelScope's partial download",
    ".rsync-partial": "a partial copy of rsync",
    ".~tmp~": "a partial copy of rsync",
}

# huggingface_hub 0.23 to 1: `SHA1.ETAG.incomplete`, where SHA1 is that of `FILE.metadata`, or `FILE.ETAG.incomplete`.
# Locks and metadata stay there after a download that succeeded.
_CACHE = ".cache"
_HUB_FOLDER = f"{_CACHE}/huggingface/download"
_HUB_ENDING = ".incomplete"
_HUB = "huggingface_hub's partial download"
_HUB_AGAIN = "huggingface_hub did not finish the download: start it again"
# In its cache, `models--OWNER--NAME/snapshots/REVISION` holds links to `models--OWNER--NAME/blobs`.
_SNAPSHOTS = "snapshots"
_BLOBS = "blobs"
_MOST_REPOSITORIES = 300

#: What is looked for where nothing else says what should be there.
USUAL = ("model.safetensors", "pytorch_model.bin")


def is_mark(name: str) -> bool:
    """Return whether a name is that of a control file or a partial file of a download, not of a file itself.

    >>> is_mark("tokenizer.json.aria2"), is_mark("tokenizer.json")
    (True, False)
    """
    return any(mark.name.fullmatch(name) for mark in MARKS)


def traces(files: Listing, wanted: Iterable[str]) -> dict[str, Trace]:
    """Return what programs left of the files `wanted`, by file.

    Args:
        files: the directory.
        wanted: names of files, there or not.
    """
    found = dict(reversed([*_marked(files), *_in_folders(files), *_of_hub(files, wanted)]))
    return {file: found[file] for file in wanted if file in found}


def refuse_partial(files: Listing, wanted: Iterable[str], present: Iterable[str]) -> list[str]:
    """Refuse files that are being downloaded; return warnings of what older attempts may have left.

    Args:
        files: the directory.
        wanted: the files of the checkpoint.
        present: those of them that are there.

    Raises:
        SourceError: a file is missing or not complete, and something says why.
    """
    found, there = traces(files, wanted), set(present)
    for file, trace in found.items():
        if file not in there or trace.is_next_to_it:
            raise _incomplete(file, trace, file in there)
    return [
        f"{quote(trace.path)} is there, {trace.what}: of {quote(file)}, unless it is left of an earlier attempt"
        for file, trace in found.items()
    ]


def check_file(path: Path) -> list[str]:
    """Refuse a file that is being downloaded; return warnings of what earlier attempts may have left.

    Raises:
        SourceError: something says that it is not complete.
    """
    # In a directory of a million files, only a few are of interest.
    own = (path.name, CONFIG)
    names = [name for name in _listed(path.parent) if any(map(name.count, own)) or name in (*FOLDERS, _CACHE)]
    wanted = [name for name in own if name in (path.name, *names)]
    return refuse_partial(Listing(path.parent, names, HeaderRoom(), names), wanted, wanted)


def companions_warning(files: Listing, wanted: Iterable[str]) -> list[str]:
    """Return the warning that files next to the weights are being downloaded, such as a tokenizer's.

    Args:
        files: the directory.
        wanted: the files that are no companions.
    """
    others = {file: trace for file, trace in _marked(files) if trace.is_next_to_it and _is_companion(files, file)}
    left = [f"{file} ({trace.path}, {trace.what}, is there)" for file, trace in others.items() if file not in wanted]
    what = f"the download of {counted(len(left), 'file')} next to the weights is not complete: {listing(left)}"
    return [what] if left else []


def _is_companion(files: Listing, file: str) -> bool:
    # Other weights are not read, and names without an ending are seldom those of files.
    suffix = Path(file).suffix
    return suffix not in FORMATS and (suffix != "" or file in files.names)


def partial_model(files: Listing) -> SourceError | None:
    """Return the error for a directory in which nothing but a partial download is."""
    marked = [file for file, _ in (*_marked(files), *_in_folders(files)) if Path(file).suffix in FORMATS]
    found = traces(files, [*marked, *USUAL])
    marked_error = next((_incomplete(file, trace, False) for file, trace in found.items()), None)
    return marked_error or _interrupted(files.directory, _blobs_of_snapshot(files.directory))


def partial_cache(directory: Path) -> SourceError | None:
    """Return the error for a repository in HuggingFace's cache, or a whole cache, that holds only partial downloads."""
    return _interrupted(directory, _blobs_inside(directory))


def _interrupted(directory: Path, blobs: Iterable[Path]) -> SourceError | None:
    for folder in blobs:
        if name := _partial_blob(folder):
            return SourceError(
                f"{quote(directory)} holds no weights: {quote(folder / name)}, {_HUB}, is there", _HUB_AGAIN
            )
    return None


def _blobs_of_snapshot(directory: Path) -> list[Path]:
    """Return the folder of blobs behind a snapshot in HuggingFace's cache; none for other directories."""
    above = Path(disk.resolve(directory)).parent
    return [above.parent / _BLOBS] if above.name == _SNAPSHOTS else []


def _blobs_inside(directory: Path) -> Iterator[Path]:
    whole = Path(disk.resolve(directory))
    yield (whole.parent if whole.name == _SNAPSHOTS else whole) / _BLOBS
    for cache in (whole, whole / "hub"):
        repositories = [name for name in sorted(_listed(cache)) if name.startswith("models--")]
        yield from (cache / name / _BLOBS for name in repositories[:_MOST_REPOSITORIES])


def _partial_blob(blobs: Path) -> str | None:
    return next((name for name in sorted(_listed(blobs)) if name.endswith(_HUB_ENDING)), None)


def what_to_do(files: Listing) -> str:
    """Return what to do about files that are missing without a trace."""
    return _HUB_AGAIN if any(map(_partial_blob, _blobs_of_snapshot(files.directory))) else "download them again"


def _incomplete(file: str, trace: Trace, is_there: bool) -> SourceError:
    otherwise = f"; if it has finished, remove {quote(trace.path)}" if is_there else ""
    return SourceError(
        f"{quote(file)} is not complete: {quote(trace.path)}, {trace.what}, is there",
        f"let the download finish, or start it again, then run again{otherwise}",
    )


def _marked(files: Listing) -> Iterator[tuple[str, Trace]]:
    names = {*files.names, *files.hidden}
    # No mark ends like weights, and a directory may hold many thousands of these.
    for name in sorted(name for name in names if not name.endswith(tuple(FORMATS))):
        for mark in MARKS:
            match = mark.name.fullmatch(name)
            # A result of ours that is being built is called so, too: the file next to it is the older, complete one.
            if match and f"{name}{JOURNAL}" not in names:
                yield match["file"], Trace(name, mark.what, mark.is_next_to_it)


def _in_folders(files: Listing) -> Iterator[tuple[str, Trace]]:
    for folder in (folder for folder in FOLDERS if folder in files.hidden):
        yield from ((name, Trace(f"{folder}/{name}", FOLDERS[folder])) for name in _listed(files.directory / folder))


def _of_hub(files: Listing, wanted: Iterable[str]) -> Iterator[tuple[str, Trace]]:
    names = _listed(files.directory / _HUB_FOLDER) if _CACHE in files.hidden else []
    hashes = {hub_hash(file): file for file in wanted} if names else {}
    for name in (name for name in names if name.endswith(_HUB_ENDING)):
        yield from ((file, Trace(f"{_HUB_FOLDER}/{name}", _HUB)) for file in _hub_files(name, hashes))


def _hub_files(name: str, hashes: Mapping[str, str]) -> Iterator[str]:
    """Yield the files that a partial download of huggingface_hub may belong to."""
    if (first := name.partition(".")[0]) in hashes:
        yield hashes[first]
    yield name.removesuffix(_HUB_ENDING).rpartition(".")[0]


def hub_hash(file: str) -> str:
    """Return what huggingface_hub names the partial download of a file after."""
    metadata = f"{file}.metadata".encode(errors="surrogateescape")
    return base64.urlsafe_b64encode(hashlib.sha1(metadata, usedforsecurity=False).digest()).decode()


def _listed(folder: Path) -> list[str]:
    # What cannot be listed says nothing.
    with suppress(OSError):
        return disk.listdir(folder)
    return []
