"""What a file is by its first bytes, whatever its name ends in: asked when its reader refuses it.

PyTorch Lightning calls its torch files `.ckpt`, and people rename files. A download may also have left a web page, a
file of zeros, or the format of another program.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..errors import SourceError, StreamconvError, UnsupportedError
from ..tensors.extents import SourceFile
from ..text import quote
from .header_room import MAX_HEADER
from .headers import DOWNLOAD_AGAIN, opened, read_at
from .torch_archive import is_legacy
from .zip_records import LOCAL_MAGIC

_HEAD = 512
_TAIL = 4096
_JSON = b"{"
# Of MindSpore's protobuf: the first field of a message, and those of a tensor and of a map (see `ckpt`).
_RECORD = b"\x0a"
_VALUES = (b"\x12", b"\x1a")


class Foreign(NamedTuple):
    """A file that is no checkpoint: how it begins, what it is, the error that says so, and what to do."""

    begins: tuple[bytes, ...]
    what: str
    error: type[StreamconvError]
    hint: str


FOREIGN = (
    Foreign((b"GGUF",), "a GGUF file", UnsupportedError, "give the safetensors or torch files that it was made from"),
    Foreign((b"\x89HDF\r\n",), "an HDF5 file", UnsupportedError, "give safetensors or torch files of the model"),
    Foreign((b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd"), "compressed", UnsupportedError, "unpack it first"),
    Foreign((b"<!doctype", b"<html", b"<?xml"), "a web page", SourceError, DOWNLOAD_AGAIN),
)


def format_of(path: Path) -> str | None:
    """Return the format that a file is in by its first bytes, `None` if they are of none.

    Raises:
        SourceError: it cannot be read, or holds zeros or a web page in place of a checkpoint.
        UnsupportedError: it is of a format that streamconv does not read.
    """
    with opened(path) as (descriptor, file):
        head = read_at(descriptor, 0, min(file.size, _HEAD), file)
        _refuse_zeros(descriptor, file, head)
    lowered = head.lstrip().lower()
    for foreign in FOREIGN:
        if head.startswith(foreign.begins) or lowered.startswith(foreign.begins):
            raise foreign.error(f"{quote(path.name)} is {foreign.what}, not a checkpoint", foreign.hint)
    return format_by(head, file.size)


def format_by(head: bytes, size: int) -> str | None:
    """Return the format of a file of `size` bytes that begins with `head`, `None` if it begins like none."""
    return next((name for name, test in _TESTS if test(head, size)), None)


def _refuse_zeros(descriptor: int, file: SourceFile, head: bytes) -> None:
    if not head or any(head):
        return
    begin = max(0, file.size - _TAIL)
    is_all = not any(read_at(descriptor, begin, file.size - begin, file))
    where = "holds nothing but zeros" if is_all else f"begins with {len(head)} zeros"
    raise SourceError(f"{quote(file.path.name)} {where}: it was not downloaded or copied completely", DOWNLOAD_AGAIN)


def _is_torch(head: bytes, _size: int) -> bool:
    return head.startswith(LOCAL_MAGIC) or is_legacy(head)


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == _JSON and 2 <= length <= min(MAX_HEADER, size - 8)


def _is_ckpt(head: bytes, _size: int) -> bool:
    """Return whether a record begins the file: in it a name, and behind that a tensor."""
    length, at = _varint(head, 1)
    tag, inside = _varint(head, at + 1)
    begins = head[:1] == head[at : at + 1] == _RECORD and 0 < tag < length
    return begins and head[inside + tag : inside + tag + 1] in _VALUES


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a protobuf number of at most ten bytes, and where it ends."""
    value = 0
    for number, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return value, at + number + 1
    return 0, len(data)


_TESTS = (("torch", _is_torch), ("safetensors", _is_safetensors), ("ckpt", _is_ckpt))
