"""Torch files to be written: laid out to the byte as torch.save does (torch 2.13), except for its random id.

Every entry's bytes begin at a multiple of 64 and are followed by a data descriptor, if there are any; torch computes
the places of storages from that (`torch.utils.serialization.config.load.calculate_storage_offsets`). Each tensor has
a storage of its own. The CRCs are not known in advance: they are checksum slots of the file.
"""

from __future__ import annotations

import itertools
import pickle
import struct
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import UnsupportedError
from ..tensors.refs import ChecksumSlot, OutputFile, TensorSpec
from . import zip_records, zip_writer
from .headers import is_unicode
from .pickle_machine import ORDERED_DICT
from .specs import checked, place
from .torch_reader import REBUILD, REBUILD_UNTYPED, TYPED, UNTYPED, UNTYPED_STORAGE

_FOLDER = "archive"
_ALIGNMENT = 64
_STORAGE_OF = {dtype: name for name, dtype in TYPED.items()}
_DTYPE_OF = {dtype: name for name, dtype in UNTYPED.items()}


def lay_out(name: str, tensors: Sequence[TensorSpec], root: str | None = None) -> OutputFile:
    """Return the torch file `name`: an OrderedDict of these tensors in this order, alone or under the key `root`.

    Args:
        name: the file's name.
        tensors: its tensors.
        root: the key of the top-level dictionary that holds them; `None` for the top level itself.

    Raises:
        UnsupportedError: no tensors, or one that torch has no dtype for.
        InternalError: two tensors of the same name.
    """
    _check_specs(name, tensors)
    archive = _Archive()
    archive.add("data.pkl", _pickle(tensors, root))
    archive.add(".format_version", b"1")
    archive.add(".storage_alignment", str(_ALIGNMENT).encode())
    archive.add("byteorder", b"little")
    extents = {
        spec.name: ((archive.leave(f"data/{key}", spec.nbytes), spec.nbytes),) for key, spec in enumerate(tensors)
    }
    archive.add("version", b"3\n")
    size, literals, slots = archive.end()
    return OutputFile(name, size, literals, extents, slots)


def _check_specs(name: str, tensors: Sequence[TensorSpec]) -> None:
    for spec in checked(name, tensors):
        if spec.dtype.name not in _STORAGE_OF and spec.dtype.name not in _DTYPE_OF:
            raise UnsupportedError(
                f"{place(name, spec)} has type {spec.dtype}, which torch has no dtype for", "write a .ckpt"
            )
        if not is_unicode(spec.name):
            raise UnsupportedError(f"{place(name, spec)} has a name that is not Unicode text (a lone surrogate)")


class _Placed(NamedTuple):
    """An entry: its name, where its header and its bytes begin, and how many there are."""

    name: bytes
    header: int
    begin: int
    size: int


class _Archive:
    """An archive that grows entry by entry. The bytes between two tensors are one literal."""

    def __init__(self) -> None:
        self._literals: list[tuple[int, bytes]] = []
        self._placed: list[_Placed] = []
        self._begin = 0
        self._pending = b""

    def add(self, name: str, content: bytes) -> None:
        """Add an entry of known bytes."""
        self._head(name, len(content))
        self._pending += content
        self._tail()

    def leave(self, name: str, size: int) -> int:
        """Add an entry for a tensor; return the offset of its bytes."""
        begin = self._head(name, size)
        if size:
            self._literals.append((self._begin, self._pending))
            self._begin, self._pending = begin + size, b""
            self._tail()
        return begin

    def end(self) -> tuple[int, tuple[tuple[int, bytes], ...], tuple[ChecksumSlot, ...]]:
        """Add the directory; return the file's size, literals and checksum slots."""
        at = self._begin + len(self._pending)
        directory, places = zip_writer.directory(((one.name, one.header, one.size) for one in self._placed), at)
        self._literals.append((self._begin, self._pending + directory))
        slots = tuple(
            _crc_slot(one.begin, one.begin + one.size, place)
            for one, place in zip(self._placed, places, strict=True)
            if one.size
        )
        return at + len(directory), tuple(self._literals), slots

    def _head(self, name: str, size: int) -> int:
        encoded, at = f"{_FOLDER}/{name}".encode(), self._begin + len(self._pending)
        self._pending += zip_writer.local_header(encoded, at, size, _ALIGNMENT)
        begin = self._begin + len(self._pending)
        self._placed.append(_Placed(encoded, at, begin, size))
        return begin

    def _tail(self) -> None:
        last = self._placed[-1]
        self._pending += zip_writer.data_descriptor(last.size, max(last.size, last.header) >= zip_records.IN_ZIP64)


def _crc_slot(begin: int, end: int, in_directory: int) -> ChecksumSlot:
    """Return the slot of an entry's CRC-32, in its data descriptor and in the directory."""
    return ChecksumSlot(
        begin, end, (end + zip_records.CRC_IN_DESCRIPTOR, in_directory), zip_records.CRC_BYTES, "little"
    )


def _pickle(tensors: Sequence[TensorSpec], root: str | None) -> bytes:
    """Return the pickle that describes the tensors: protocol 2, as torch writes it."""
    writer = _Pickler()
    writer.emit(pickle.PROTO, b"\2")
    if root is not None:
        writer.emit(pickle.EMPTY_DICT, _text(root))
    writer.ordered_dict()
    writer.emit(pickle.MARK)
    for key, spec in enumerate(tensors):
        writer.emit(_text(spec.name))
        writer.tensor(str(key), spec)
    writer.emit(pickle.SETITEMS, pickle.SETITEM if root is not None else b"", pickle.STOP)
    return b"".join(writer.parts)


class _Pickler:
    """The opcodes of a pickle; values that repeat are put into the memo once."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._noted: dict[bytes, int] = {}

    def emit(self, *parts: bytes) -> None:
        self.parts += parts

    def once(self, part: bytes) -> None:
        """Emit a part that stands for one value, from the memo if it was emitted before."""
        number = self._noted.get(part)
        if number is None:
            self._noted[part] = number = len(self._noted)
            self.emit(part, pickle.BINPUT, bytes((number,)))
        else:
            self.emit(pickle.BINGET, bytes((number,)))

    def ordered_dict(self) -> None:
        self.once(_global(ORDERED_DICT))
        self.emit(pickle.EMPTY_TUPLE, pickle.REDUCE)

    def tensor(self, key: str, spec: TensorSpec) -> None:
        """Emit `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`, or `_v3` for an untyped one."""
        typed = _STORAGE_OF.get(spec.dtype.name)
        self.once(_global(REBUILD if typed else REBUILD_UNTYPED))
        self.emit(pickle.MARK, pickle.MARK)
        self.once(_text("storage"))
        self.once(_global(typed or UNTYPED_STORAGE))
        self.emit(_text(key))
        self.once(_text("cpu"))
        self.emit(_whole(spec.nbytes // (spec.dtype.itemsize if typed else 1)), pickle.TUPLE, pickle.BINPERSID)
        self.emit(_whole(0), _wholes(spec.shape), _wholes(_strides(spec.shape)), pickle.NEWFALSE)
        self.ordered_dict()
        if not typed:
            self.once(_global(_DTYPE_OF[spec.dtype.name]))
        self.emit(pickle.TUPLE, pickle.REDUCE)


def _strides(shape: Sequence[int]) -> list[int]:
    """Return strides as torch gives them: an axis of size 0 counts as one of size 1."""
    return list(itertools.accumulate((max(1, size) for size in shape[:0:-1]), int.__mul__, initial=1))[::-1][
        : len(shape)
    ]


def _global(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return pickle.GLOBAL + f"{module}\n{last}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _wholes(numbers: Sequence[int]) -> bytes:
    return b"".join((pickle.MARK, *map(_whole, numbers), pickle.TUPLE)) if numbers else pickle.EMPTY_TUPLE


def _whole(number: int) -> bytes:
    """Return a number from 0 up: in one byte, four, or as many as it takes."""
    if number < 1 << 8:
        return pickle.BININT1 + bytes((number,))
    if number < 1 << 31:
        return pickle.BININT + struct.pack("<i", number)
    length = number.bit_length() // 8 + 1
    return pickle.LONG1 + bytes((length,)) + number.to_bytes(length, "little")
