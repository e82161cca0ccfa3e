"""Protobuf's wire format over bytes in memory: strategy files are small, read as a whole, and parsed fast.

`formats.protobuf` reads checkpoints, of any size, by position. Both refuse groups, and accept what every protobuf
reader does: numbers packed or one by one, fields in any order, unknown fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from ..errors import SourceError
from ..formats.headers import DOWNLOAD_AGAIN
from ..formats.protobuf import BYTES, VARINT, encode_varint
from ..text import quote

_FIXED = {1: 8, 5: 4}
_LONGEST_VARINT = 10
_64_BITS = 1 << 64
# A device matrix or a tensor map has few; `param_split_shape` has one for each part of an embedding.
_MOST_NUMBERS = 1 << 16


class Message(NamedTuple):
    """A message, or bytes that hold one.

    Attributes:
        data: its bytes.
        at: where they begin in the file, for errors.
        name: the file's name.
    """

    data: bytes
    at: int
    name: str

    def fields(self) -> Iterator[tuple[int, int, Message]]:
        """Yield the fields: number, value (of varints, else 0), and the bytes of those that have a length.

        Raises:
            SourceError: a number or a length that leaves the message, or an invalid key.
        """
        at, end = 0, len(self.data)
        while at < end:
            begin = at
            key, at = self._varint(at)
            number, wire_type, value, inner = key >> 3, key & 7, 0, b""
            if wire_type == VARINT:
                value, at = self._varint(at)
            elif wire_type == BYTES:
                length, at = self._varint(at)
                inner = self.data[at : at + length]
                at += length
            elif wire_type in _FIXED:
                at += _FIXED[wire_type]
            else:
                raise self.broken(begin, f"a field has the wire type {wire_type}")
            if at > end:
                raise self.broken(begin, f"a field reaches {at - end} bytes past the end of what holds it")
            if not number:
                raise self.broken(begin, "a field has the number 0")
            if wire_type in (VARINT, BYTES):
                yield number << 3 | wire_type, value, Message(inner, self.at + at - len(inner), self.name)

    def numbers(self) -> tuple[int, ...]:
        """Return the signed numbers of field 1, packed or one by one."""
        found: list[int] = []
        for key, value, inner in self.fields():
            if key == FIRST_NUMBER:
                found.append(signed(value))
            elif key == FIRST_BYTES:
                found.extend(islice(inner.packed(), _MOST_NUMBERS + 1))
            if len(found) > _MOST_NUMBERS:
                raise self.broken(0, f"a list has more than {_MOST_NUMBERS} numbers")
        return tuple(found)

    def packed(self) -> Iterator[int]:
        """Yield signed numbers that follow each other without keys."""
        at = 0
        while at < len(self.data):
            value, at = self._varint(at)
            yield signed(value)

    def text(self) -> str:
        """Return the bytes as text.

        Raises:
            SourceError: they are not UTF-8.
        """
        try:
            return self.data.decode()
        except UnicodeDecodeError as error:
            raise self.broken(error.start, "a name is not UTF-8") from error

    def broken(self, at: int, what: str) -> SourceError:
        """Return the error for bytes, at this place of the message, that protobuf does not write."""
        where = f"{quote(self.name)}, byte {self.at + at}"
        return SourceError(f"{where}: {what}: the file is damaged, or not a strategy file of MindSpore", DOWNLOAD_AGAIN)

    def _varint(self, at: int) -> tuple[int, int]:
        data, value = self.data, 0
        if at < len(data) and data[at] < 0x80:
            return data[at], at + 1
        for count, byte in enumerate(data[at : at + _LONGEST_VARINT]):
            value |= (byte & 0x7F) << (7 * count)
            if byte < 0x80:
                return value % _64_BITS, at + count + 1
        raise self.broken(at, "a number is cut off, or longer than 10 bytes")


FIRST_NUMBER, FIRST_BYTES = 1 << 3 | VARINT, 1 << 3 | BYTES


def number_field(number: int, value: int) -> bytes:
    """Return a field with a number, negative ones as protobuf has them: as 64 bits."""
    return encode_varint(number << 3 | VARINT) + encode_varint(value % _64_BITS)


def bytes_field(number: int, value: bytes) -> bytes:
    """Return a field with bytes: text, or a message."""
    return encode_varint(number << 3 | BYTES) + encode_varint(len(value)) + value


def numbers_message(numbers: Iterable[int]) -> bytes:
    """Return the message of numbers in field 1, one by one, as MindSpore writes them."""
    return b"".join(number_field(1, value) for value in numbers)


def signed(value: int) -> int:
    """Return the number that 64 bits stand for."""
    return value - _64_BITS if value >> 63 else value
