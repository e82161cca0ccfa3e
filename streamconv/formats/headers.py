"""What every reader checks before it believes a file: that it is a regular file, and that its numbers make sense.

Nothing here trusts a byte: a FIFO or a device in place of a shard must not hang or be read (opened without
blocking, then checked), JSON may repeat keys or nest until the parser gives up, and a shape may multiply past
any integer.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ..errors import SourceError, source_error
from ..storage import disk, whole_files
from ..tensors.dtypes import DType
from ..tensors.extents import SourceFile
from ..text import counted, quote
from ..units import CHUNK
from .header_room import HeaderRoom

#: NumPy 1's limit; no checkpoint comes near it.
MAX_RANK = 32
#: What to do about a damaged file.
DOWNLOAD_AGAIN = "copy or download the file again"
_LIMIT = 1 << 63
# JSON of a checkpoint nests less; `json` reads deeper objects than it can write.
_DEEPEST = 100
# What a comma costs in memory besides its byte, in bytes of header: it may separate objects of few bytes.
_COMMA_COST = 6
#: Small texts that a clone leaves in place of large files: how they begin, whose they are, and what fetches the file.
_POINTERS = (
    (b"version https://git-lfs", "git-lfs", "git lfs pull"),
    (b"/annex/objects/", "git-annex", "git annex get"),
)
# In longer JSON commas are not counted: every byte may be one.
_MOST_COUNTED = 1 << 30


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, SourceFile]]:
    """Open the regular file `path` (links are followed); give its descriptor, and the file with its size in bytes.

    Raises:
        SourceError: it does not exist, is not readable or not a regular file; also for any `OSError` in the block.
    """
    descriptor = _open(path)
    try:
        status = disk.fstat(descriptor)
        _refuse_special(path, status)
        yield descriptor, SourceFile(path, status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)
    except OSError as error:
        raise source_error(error, "cannot read", path) from error
    finally:
        disk.close_quietly(descriptor)


def _open(path: Path) -> int:
    try:
        # Opening some devices has side effects, so check before opening; a second check after it closes the race.
        _refuse_special(path, disk.stat(path))
        # Without O_NONBLOCK the open of a FIFO waits for a writer, forever.
        return disk.open_file(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        if disk.is_link(path):
            raise SourceError(
                f"cannot open {quote(path)}: it is a link to a file that does not exist",
                "download the checkpoint again",
            ) from error
        raise source_error(error, "cannot open", path) from error
    except OSError as error:
        raise source_error(error, "cannot open", path) from error
    except ValueError as error:
        raise SourceError(f"cannot open {quote(path)}: not a path that a file can have: {error}") from error


def _refuse_special(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{quote(path)} is not a regular file but {_kind(status.st_mode)}")


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"))
    return next((name for test, name in kinds if test(mode)), "a device or socket")


def read_at(descriptor: int, offset: int, length: int, file: SourceFile) -> bytes:
    """Return exactly `length` bytes at `offset`.

    Raises:
        SourceError: the file was truncated since it was opened.
    """
    data = whole_files.read_up_to(descriptor, length, offset)
    if len(data) < length:
        raise SourceError(
            f"{quote(file.path)} was truncated while its header was read: it had {file.size} bytes",
            "let the program that writes it finish, then run again",
        )
    return data


def read_head(descriptor: int, file: SourceFile, length: int) -> bytes:
    """Return the first `length` bytes of a file, or all of a shorter one.

    Raises:
        SourceError: the file is empty, or a pointer, as `refuse_pointer`.
    """
    name = quote(file.path.name)
    if not file.size:
        raise SourceError(f"{name} is an empty file", DOWNLOAD_AGAIN)
    head = read_at(descriptor, 0, min(file.size, length), file)
    refuse_pointer(head, name)
    return head


def refuse_pointer(head: bytes, name: str) -> None:
    """Refuse a pointer of git-lfs or git-annex, which a clone leaves in place of a file that was not fetched.

    Args:
        head: the first bytes of the file, or all of them.
        name: the file's name, quoted.

    Raises:
        SourceError: it is one.
    """
    for begins, whose, command in _POINTERS:
        if head.startswith(begins):
            raise SourceError(f"{name} is a {whose} pointer, not the file itself", f"fetch the file with `{command}`")


def read_json(descriptor: int, file: SourceFile, offset: int, length: int, what: str, header_room: HeaderRoom) -> bytes:
    """Return `length` bytes of JSON at `offset`. What needs more room is refused without being held in memory.

    Args:
        descriptor, file: the file.
        offset, length: where in it the JSON is, in bytes.
        what: the subject of error messages.
        header_room: bytes that the JSON may have, counting what its values take as objects.

    Raises:
        BudgetError, SourceError: as `HeaderRoom.check`; also if the file became shorter.
    """
    if length > header_room.nbytes:
        _check_values(length, _count_commas(descriptor, offset, length), what, header_room)
    text = read_at(descriptor, offset, length, file)
    check_json(text, what, header_room)
    return text


def check_json(text: bytes, what: str, header_room: HeaderRoom) -> None:
    """Refuse JSON that takes more memory as objects than there is room for.

    Raises:
        BudgetError, SourceError: as `HeaderRoom.check`.
    """
    _check_values(len(text), text.count(b","), what, header_room)


def json_cost(length: int, commas: int) -> int:
    """Return what JSON of this length counts as, in bytes of header, if it has so many commas."""
    return length + commas * _COMMA_COST


def _check_values(length: int, commas: int, what: str, header_room: HeaderRoom) -> None:
    values = counted(commas + 1, "value")
    header_room.check(json_cost(length, commas), f"{what} ({counted(length, 'byte')}, about {values})")


def _count_commas(descriptor: int, offset: int, length: int) -> int:
    if length > _MOST_COUNTED:
        return length
    chunks = (
        whole_files.read_up_to(descriptor, min(CHUNK, length - at), offset + at) for at in range(0, length, CHUNK)
    )
    return sum(chunk.count(b",") for chunk in chunks)


def parse_json_object(text: bytes, where: str) -> dict[str, object]:
    """Return the JSON object in `text`; `where` begins the error messages.

    Raises:
        SourceError: not UTF-8, not JSON, nested too deeply, not an object, or one with a repeated key.
    """
    written_by_a_program = _canonical(text)
    if written_by_a_program is not None:
        return written_by_a_program

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise SourceError(f"{where} has the key {quote(twice)} twice: it is ambiguous which value is meant")
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise SourceError(f"{where} is not UTF-8: byte {error.start} is 0x{text[error.start]:02x}") from error
    except RecursionError as error:
        raise SourceError(f"{where} is JSON nested too deeply for a checkpoint") from error
    except ValueError as error:
        raise SourceError(f"{where} is not valid JSON: {quote(error)}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{where} is JSON, but not an object")
    return value


def _canonical(text: bytes) -> dict[str, object] | None:
    """Return the object in JSON that is the same text, but for white space, when encoded again: so no key is twice.

    Nearly all headers and indices are such text, and the check that looks at every key takes several times as long.
    """
    try:
        value = msgspec.json.decode(text)
        if not isinstance(value, dict):
            return None
        again = msgspec.json.encode(value)
        return value if again == text.rstrip(b" ") or again == msgspec.json.format(text, indent=-1) else None
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def is_deep(value: object) -> bool:
    """Return whether JSON is nested deeper than any checkpoint's."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [one for some in level for one in _inside(some)]
    return bool(level)


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def is_unicode(text: str) -> bool:
    """Return whether text can be encoded as UTF-8; lone surrogates, which JSON can contain, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_plain_name(name: str, portable: bool = False) -> bool:
    """Return whether a file of this name lies in the directory where it is looked up, not elsewhere.

    Args:
        name: text from a file.
        portable: refuse also what only some systems take for a plain name: backslashes, and text that is not Unicode.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        return False
    try:
        name.encode() if portable else os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return not (portable and "\\" in name)


def is_name_inside(name: str) -> bool:
    """Return whether a file of this name lies in the directory where it is looked up, or in a folder of that."""
    folder, slash, rest = name.rpartition("/")
    return all(is_plain_name(part, portable=bool(slash)) for part in ([folder, rest] if slash else [rest]))


def shape_nbytes(shape: Sequence[int], dtype: DType, where: str) -> int:
    """Return the bytes of a tensor of this shape and dtype; `where` begins the error messages.

    Raises:
        SourceError: more than `MAX_RANK` dimensions, a negative one, or more than 2^63 - 1 bytes.
    """
    if len(shape) > MAX_RANK:
        raise SourceError(f"{where} has {len(shape)} dimensions, but NumPy allows {MAX_RANK}")
    count, limit_check = dtype.itemsize, dtype.itemsize
    for size in shape:
        if size < 0:
            raise SourceError(f"{where} has the negative dimension {size}")
        # Checked without the zeros: other readers multiply from the left and overflow before they reach one.
        count, limit_check = count * size, limit_check * max(size, 1)
        if limit_check >= _LIMIT:
            raise SourceError(f"{where} has a shape of more than 2^63 bytes: the header is damaged", DOWNLOAD_AGAIN)
    return count
