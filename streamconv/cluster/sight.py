"""The proof that a node sees what the driver sees: the files of the sources, and the directory of the result.

Of sources, names and sizes are compared. Next to a result, the driver writes a token that nobody can guess; the node
reads it and writes an answer there, which the driver has to see. Both are removed again.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from ..errors import StorageError, reading, storing
from ..storage import disk, whole_files
from ..text import counted, quote

_TOKEN = "partial.token-"
_ANSWER = ".answer"
_LIMIT = 1 << 10
# Folders of ranks and iterations are in the directory that is given, or in one folder of it.
_DEPTH = 3
_MISSING = -1
_SHOWN = 100
_HINT = "mount the same file system at the same path on every node"


def listed(path: Path) -> dict[str, int]:
    """Return the files of a checkpoint, in folders too, with their sizes; of a file, just itself."""
    with reading(path, "cannot list"):
        if not disk.is_directory(path):
            return {"": _size(path)}
        return {str(file.relative_to(path)): _size(file) for file in _files(path, _DEPTH)}


def look(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a driver asks to prove that its files are seen from here.

    Args:
        request: `listed`, path → names and sizes as the driver sees them; `token`, a path or `None`.

    Returns:
        `differ`, for files that are otherwise here: path, name and size, -1 for one that is missing; `token`, what was
        read of it, or `None`; `why`, what the system said about it.
    """
    differ = [
        [path, name, here]
        for path, names in request["listed"].items()
        for name, size in names.items()
        if (here := _size(Path(path, name))) != size
    ]
    token, why = _answered(Path(request["token"])) if request["token"] else (None, "")
    return {"differ": differ[:_SHOWN], "token": token, "why": why}


def _answered(token: Path) -> tuple[str | None, str]:
    try:
        text = whole_files.read_file(token, _LIMIT).decode()
        whole_files.write_synced(_answer(token), text.encode())
    except OSError as error:
        return None, error.strerror or str(error)
    return text, ""


class Sight:
    """What every node has to see, and the proof of one node after the other.

    Args:
        sources: files or directories that are read.
        dest: where a result is written; `None` where nothing is.
    """

    def __init__(self, sources: Sequence[Path], dest: Path | None = None) -> None:
        self._listed = {str(path.absolute()): listed(path) for path in sources}
        self._dest = dest.absolute() if dest else None
        self._tokens: dict[str, tuple[Path, str]] = {}

    def request(self, worker: str) -> dict[str, Any]:
        """Return what to ask a worker; writes its token.

        Raises:
            StorageError: the token cannot be written.
        """
        return {"listed": self._listed, "token": str(self._written(worker, self._dest)) if self._dest else None}

    def check(self, worker: str, host: str, answer: Mapping[str, Any]) -> None:
        """Check a worker's answer, and remove its token.

        Raises:
            StorageError: it does not see what the driver sees; the message names the node and the path.
        """
        for path, name, size in answer["differ"]:
            self._compare(host, Path(path), name, size)
        if self._dest:
            self._check_token(worker, host, self._dest.parent, answer)

    def forget(self, worker: str) -> None:
        """Remove a worker's token and its answer, if it has one."""
        token, _ = self._tokens.pop(worker, (None, ""))
        if token:
            for path in (token, _answer(token)):
                with suppress(OSError):
                    disk.remove(path)

    def _written(self, worker: str, dest: Path) -> Path:
        self.forget(worker)
        token, text = dest.with_name(f"{dest.name}.{_TOKEN}{token_hex(8)}"), token_hex(16)
        self._tokens[worker] = token, text
        with storing(token):
            whole_files.write_synced(token, text.encode())
        return token

    def _check_token(self, worker: str, host: str, folder: Path, answer: Mapping[str, Any]) -> None:
        token, text = self._tokens[worker]
        try:
            if answer["token"] != text:
                why = f": {answer['why']}" if answer["why"] else ""
                raise StorageError(f"{quote(host)} does not share {quote(folder)} with the driver{why}", _HINT)
            if _read(_answer(token)) != text:
                raise StorageError(f"the driver does not see what {quote(host)} writes into {quote(folder)}", _HINT)
        finally:
            self.forget(worker)

    def _compare(self, host: str, path: Path, name: str, there: int) -> None:
        """Refuse a node that sees a file otherwise, unless it has changed for the driver as well."""
        file = path / name
        if _size(file) == there:
            return
        names = self._listed[str(path)]
        if there == _MISSING:
            what = f"{quote(host)} does not see {quote(file)}"
        else:
            what = f"{quote(host)} sees {quote(file)} with {counted(there, 'byte')}, the driver with {names[name]}"
        raise StorageError(what, _HINT)


def _files(folder: Path, depth: int) -> Iterator[Path]:
    for name in whole_files.names_in(folder):
        path = folder / name
        if disk.is_directory(path):
            yield from _files(path, depth - 1) if depth > 1 else ()
        else:
            yield path


def _size(path: Path) -> int:
    """The bytes of a file; -1 where there is none, or none that can be looked at."""
    with suppress(OSError):
        found = disk.stat(path)
        return 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return _MISSING


def _answer(token: Path) -> Path:
    return token.with_name(token.name + _ANSWER)


def _read(path: Path) -> str:
    with suppress(OSError):
        return whole_files.read_file(path, _LIMIT).decode()
    return ""
