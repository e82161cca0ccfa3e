"""What every format needs before it may believe a file: that it is one, that its numbers make sense.

Nothing here trusts a byte: a FIFO or a device in place of a shard must not hang or be read (opened without
blocking, then checked), JSON may repeat keys or nest until the parser gives up, and a shape may multiply past
any integer.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import SourceError, source_error
from ..storage import disk
from ..tensors.dtypes import DType
from ..tensors.refs import SourceFile
from ..text import quote

#: NumPy 1's limit; no checkpoint comes near it.
MAX_RANK = 32
_LIMIT = 1 << 63
#: Objects in JSON that nest deeper are no checkpoint's; `json` would read them and not write them again.
_DEEPEST = 100
# What a comma costs in memory beside its byte, in bytes of header: what it parts may be an object of few bytes.
_COMMA_COST = 6
_LFS_POINTER = b"version https://git-lfs"


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, SourceFile]]:
    """A descriptor of the regular file `path` (links are followed), and the file with its size in bytes.

    Raises:
        SourceError: not there, not readable, or not a regular file; also for any `OSError` inside the block.
    """
    descriptor = _open(path)
    try:
        status = disk.fstat(descriptor)
        _refuse_special(path, status)
        yield descriptor, SourceFile(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise source_error(error, "cannot read", path) from error
    finally:
        disk.close_quietly(descriptor)


def _open(path: Path) -> int:
    try:
        # Some devices take being opened for an order. What becomes one meanwhile is refused after that.
        _refuse_special(path, disk.stat(path))
        # Without O_NONBLOCK the open of a FIFO waits for a writer, forever.
        return disk.open_file(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        if disk.is_link(path):
            raise SourceError(
                f"{quote(path)} is a link to a file that is not there; download the checkpoint again"
            ) from error
        raise source_error(error, "cannot open", path) from error
    except OSError as error:
        raise source_error(error, "cannot open", path) from error
    except ValueError as error:
        raise SourceError(f"{quote(path)} is no path that a file could have: {error}") from error


def _refuse_special(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{quote(path)} is not a regular file but {_kind(status.st_mode)}; nothing was read")


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"))
    return next((name for test, name in kinds if test(mode)), "a device or socket")


def read_at(descriptor: int, offset: int, length: int, file: SourceFile) -> bytes:
    """Exactly `length` bytes at `offset`.

    Raises:
        SourceError: the file became shorter since it was opened.
    """
    data = disk.read_up_to(descriptor, length, offset)
    if len(data) < length:
        raise SourceError(
            f"{quote(file.path)} became shorter than {file.size} bytes while its header was read; "
            "let the other program finish and run again"
        )
    return data


def refuse_lfs_pointer(head: bytes, file: SourceFile) -> None:
    """Raises `SourceError` if the file begins as a git-lfs pointer, which a plain clone leaves behind."""
    if head.startswith(_LFS_POINTER):
        raise SourceError(
            f"{quote(file.path.name)} is only git-lfs's pointer to the real file; fetch that with `git lfs pull`"
        )


def parse_json_object(raw: bytes, where: str, limit: int) -> dict[str, object]:
    """The JSON object in `raw`; `where` begins the error messages.

    Raises:
        SourceError: not UTF-8, not JSON, nested too deeply, not an object, one with a repeated key, or one of more
            values than `limit` bytes of header stand for.
    """
    refuse_costly(raw, where, limit)

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in pairs:
            if name in found:
                raise SourceError(f"{where} has the key {quote(name)} twice, so its meaning is not certain")
            found[name] = value
        return found

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise SourceError(f"{where} is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from error
    except RecursionError as error:
        raise SourceError(f"{where} is JSON nested too deeply to be a checkpoint's") from error
    except ValueError as error:
        raise SourceError(f"{where} is not valid JSON: {quote(error)}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{where} is JSON, but not an object")
    return value


def refuse_costly(raw: bytes, where: str, limit: int) -> None:
    """Raises `SourceError` if this JSON would take more memory as objects than `limit` bytes of header stand for."""
    values = raw.count(b",")
    if len(raw) + values * _COMMA_COST > limit:
        raise SourceError(
            f"{where} has more than {values} values in {len(raw)} bytes, and these alone need more than the memory "
            f"budget allows ({limit} bytes of header); raise the budget"
        )


def is_deep(value: object) -> bool:
    """Whether JSON is nested deeper than any checkpoint's."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [one for some in level for one in _inside(some)]
    return bool(level)


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; JSON can smuggle in lone surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shape_nbytes(shape: Sequence[int], dtype: DType, where: str) -> int:
    """Bytes of a tensor of this shape (elements) and dtype; `where` begins the error messages.

    Raises:
        SourceError: more than `MAX_RANK` dimensions, a negative one, or more than 2^63 - 1 bytes.
    """
    if len(shape) > MAX_RANK:
        raise SourceError(f"{where} has {len(shape)} dimensions; at most {MAX_RANK} make sense")
    count, limit_check = dtype.itemsize, dtype.itemsize
    for size in shape:
        if size < 0:
            raise SourceError(f"{where} has the negative dimension {size}")
        # Without the zeros: other readers multiply from the left and overflow before they meet one.
        count, limit_check = count * size, limit_check * max(size, 1)
        if limit_check >= _LIMIT:
            raise SourceError(f"{where} has a shape of more than 2^63 bytes; its header is damaged")
    return count
