"""Protobuf's wire format, as far as a checkpoint needs it, read by position from a file of any size.

A message is a run of fields: a varint key (number * 8 + wire type), then a varint (0), eight bytes (1), a
length and as many bytes (2), or four bytes (5). Numbers and lengths need not be minimal. Groups (3, 4) are refused:
they were deprecated before MindSpore was written. A field's bytes are skipped, not read, until the caller takes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..errors import SourceError
from ..storage import disk
from ..tensors.extents import SourceFile
from ..text import quote
from .headers import DOWNLOAD_AGAIN, read_at

VARINT, BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
_LONGEST_VARINT = 10
_BUFFER_BYTES = 4096


class Field(NamedTuple):
    """One field: where its key stands, and its value (a varint) or the range of its bytes in the file."""

    at: int
    number: int
    wire_type: int
    value: int
    begin: int
    end: int

    @property
    def key(self) -> tuple[int, int]:
        """Number and wire type: a known number with the wrong type is an unknown field."""
        return self.number, self.wire_type


class Buffer:
    """The first `end` bytes of a file, through one small buffer; `near` says in errors what is being read."""

    def __init__(self, descriptor: int, file: SourceFile, end: int) -> None:
        self.file, self.end, self.near = file, end, "at its start"
        self._descriptor, self._at, self._buffer = descriptor, 0, b""

    def take(self, begin: int, end: int) -> bytes:
        """Return the bytes of a range before `end`."""
        if begin < self._at or end > self._at + len(self._buffer):
            if end - begin > _BUFFER_BYTES:
                return read_at(self._descriptor, begin, end - begin, self.file)
            self._at, self._buffer = begin, disk.read(self._descriptor, min(_BUFFER_BYTES, self.end - begin), begin)
            if len(self._buffer) < end - begin:
                self._buffer = read_at(self._descriptor, begin, end - begin, self.file)
        return self._buffer[begin - self._at : end - self._at]

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """Return the unsigned 64-bit number at `at` in a message that ends at `end`, and where the next byte is."""
        value = 0
        for count, byte in enumerate(self.take(at, min(end, at + _LONGEST_VARINT))):
            value |= (byte & 0x7F) << (7 * count)
            if byte < 0x80:
                return value & (1 << 64) - 1, at + count + 1
        if end - at >= _LONGEST_VARINT:
            raise self.broken(at, f"a number is longer than {_LONGEST_VARINT} bytes")
        raise self.cut_off(at, end, "a number")

    def fields(self, at: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message in this range.

        Raises:
            SourceError: a number or a length that leaves the range, or an invalid key.
        """
        while at < end:
            key_at = at
            key, at = self.varint(at, end)
            number, wire_type = key >> 3, key & 7
            value = 0
            if number == 0:
                raise self.broken(key_at, "a field has the number 0")
            if at - key_at > 1 and key < 1 << 7 * (at - key_at - 1):
                # Valid by the specification; upb, the protobuf of MindSpore 2.10, skips such a field (measured).
                raise self.broken(key_at, "a field's key is padded, which readers interpret differently")
            if wire_type == VARINT:
                value, at = self.varint(at, end)
                begin = at
            elif wire_type == BYTES:
                length, begin = self.varint(at, end)
                at = begin + length
            elif wire_type in _FIXED:
                begin, at = at, at + _FIXED[wire_type]
            else:
                raise self.broken(key_at, f"a field has the wire type {wire_type}")
            if at > end:
                raise self.cut_off(key_at, end, f"a field of {at - begin} bytes", at - end)
            yield Field(key_at, number, wire_type, value, begin, at)

    def broken(self, at: int, what: str) -> SourceError:
        """Return the error for bytes that protobuf does not write."""
        return SourceError(
            f"{self._place(at)}: {what}: the file is damaged, or not a MindSpore checkpoint", DOWNLOAD_AGAIN
        )

    def cut_off(self, at: int, end: int, what: str, excess: int = 1) -> SourceError:
        """Return the error for something at `at` that needs `excess` bytes or more beyond `end`."""
        whole = "the file" if end == self.end else "the record that holds it"
        return SourceError(
            f"{self._place(at)}: {what} reaches at least {excess} bytes past the end of {whole}, {end}: "
            "the file is truncated or damaged",
            DOWNLOAD_AGAIN,
        )

    def _place(self, at: int) -> str:
        return f"{quote(self.file.path.name)}, byte {at} ({self.near})"


def encode_varint(number: int) -> bytes:
    """Return an unsigned number as protobuf writes it: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))
