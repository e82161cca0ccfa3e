"""Zip archives as far as torch uses them: entries are stored, not compressed, so that they can be read in place.

    entries: local header | name | extra | bytes | data descriptor      … one after the other
    directory: one record an entry | zip64 end record | zip64 locator | end record

Sources: PKWARE's APPNOTE 6.3 (numbers in section 4.3), and what torch 2.13 writes (measured). Readers disagree about
archives that contradict themselves, so those are refused: the end record stands at the very end, both end records
agree, a local header names what the directory states, no two entries overlap, and names are unique. An entry's size is
that of its bytes in the file, so an archive cannot grow by being read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..errors import SourceError, UnsupportedError
from ..tensors.refs import SourceFile
from ..text import quote
from .headers import DOWNLOAD_AGAIN, HeaderRoom, read_at

MAGIC = b"PK\x03\x04"
_DESCRIPTOR_MAGIC = b"PK\x07\x08"
#: Offset of the CRC-32 in a data descriptor.
CRC_IN_DESCRIPTOR = 4
CRC_BYTES = 4
#: In place of a 32-bit number: the true one is in a zip64 field.
IN_ZIP64 = 0xFFFFFFFF
# Names are UTF-8; the CRC comes after the bytes, in a data descriptor, where there are bytes. So does torch.
_UTF8, _DESCRIBED = 0x0800, 0x0008

_ENCRYPTED = 0x1
_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
#: Bytes of the directory that each entry takes, besides its name.
DIRECTORY_COST = _ENTRY.size
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_NARROW, _WIDE = struct.Struct("<4s3I"), struct.Struct("<4sI2Q")
_ZIP64_FIELD = 1
_IN_ZIP64_COUNT = 0xFFFF


class Entry(NamedTuple):
    """One entry: its name, its CRC-32 (0 where the writer left it out), and where header and bytes lie in the file."""

    name: str
    crc: int
    header: int
    begin: int
    size: int


class _Directory(NamedTuple):
    entries: int
    size: int
    begin: int


def entries(descriptor: int, file: SourceFile, header_room: HeaderRoom) -> dict[str, Entry]:
    """Return the entries of an archive by name, in the order of their bytes.

    Args:
        descriptor: the file, open.
        file: the file.
        header_room: bytes that the directory may have; a longer one is refused unread.

    Raises:
        SourceError: no archive, truncated, damaged, or contradicting itself.
        BudgetError: the directory is longer than `header_room` allows.
        UnsupportedError: a compressed or encrypted entry.
    """
    directory = _directory(descriptor, file)
    header_room.check(directory.size, f"the zip directory of {quote(file.path.name)}")
    found: dict[str, Entry] = {}
    filled = 0
    listed = _listed(read_at(descriptor, directory.begin, directory.size, file), directory, file)
    for entry in sorted(listed, key=lambda one: one.header):
        if entry.name in found:
            raise _broken(file, entry.header, f"entry {quote(entry.name)} is listed twice")
        if entry.header < filled:
            raise _broken(file, entry.header, f"entry {quote(entry.name)} overlaps the entry before it")
        found[entry.name] = placed = _placed(descriptor, file, entry)
        filled = placed.begin + placed.size
        if filled > directory.begin:
            raise _broken(file, entry.header, f"entry {quote(entry.name)} reaches into the directory")
    return found


def content(descriptor: int, file: SourceFile, entry: Entry) -> bytes:
    """Return the bytes of a small entry, checked against its CRC where it has one (torch can be set to write 0).

    Raises:
        SourceError: the CRC differs.
    """
    data = read_at(descriptor, entry.begin, entry.size, file)
    if entry.crc not in (0, zlib.crc32(data)):
        raise _broken(file, entry.begin, f"the bytes of entry {quote(entry.name)} do not have the CRC that it states")
    return data


def _directory(descriptor: int, file: SourceFile) -> _Directory:
    """Return where the directory lies: it fills all between the last entry and the end records."""
    end = file.size - _END.size
    if end < 0:
        raise _cut_off(file)
    magic, *disks, count_here, count, size, begin, comment = _END.unpack(read_at(descriptor, end, _END.size, file))
    if magic != b"PK\x05\x06" or comment:
        raise _cut_off(file)
    found, stated = _Directory(count, size, begin), end
    if end >= _LOCATOR.size:
        magic, disk, end64, disk_count = _LOCATOR.unpack(read_at(descriptor, end - _LOCATOR.size, _LOCATOR.size, file))
        if magic == b"PK\x06\x07":
            found, stated = _zip64(descriptor, file, end - _LOCATOR.size, end64, found), end64
            disks += [disk, disk_count - 1]
    if any(disks) or count_here != count or found.begin + found.size != stated or found.entries > found.size:
        raise _broken(file, end, "the end record does not fit the file")
    return found


def _zip64(descriptor: int, file: SourceFile, locator: int, at: int, small: _Directory) -> _Directory:
    if at != locator - _END64.size:
        raise _broken(file, locator, "the zip64 end record is not where the locator says")
    magic, size, _, _, disk, first, here, *numbers = _END64.unpack(read_at(descriptor, at, _END64.size, file))
    found = _Directory(*numbers)
    hidden = (_IN_ZIP64_COUNT, IN_ZIP64, IN_ZIP64)
    agree = all(a in (b, c) for a, b, c in zip(small, found, hidden, strict=True))
    if magic != b"PK\x06\x06" or size != _END64.size - 12 or disk or first or here != found.entries or not agree:
        raise _broken(file, at, "the zip64 end record contradicts the end record")
    return found


def _listed(data: bytes, directory: _Directory, file: SourceFile) -> Iterator[Entry]:
    """Yield the entries as the directory lists them, which does not say where their bytes begin."""
    at = 0
    for _ in range(directory.entries):
        where = directory.begin + at
        if at + _ENTRY.size > len(data) or not data.startswith(b"PK\x01\x02", at):
            raise _broken(file, where, "the directory is truncated")
        record = _ENTRY.unpack_from(data, at)
        flags, method = record[3:5]
        crc, stored, size, name_length, extra_length, comment_length, disk = record[7:14]
        at += _ENTRY.size
        name = _name(data[at : at + name_length], file, where)
        extra = data[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        if at > len(data):
            raise _broken(file, where, "the directory is truncated")
        _check_stored(file, name, flags, method)
        size, stored, header = _widened(extra, (size, stored, record[16]), file, where)
        if stored != size or disk:
            raise _broken(file, where, f"entry {quote(name)} states sizes that do not fit it")
        yield Entry(name, crc, header, 0, size)
    if at != len(data):
        raise _broken(file, directory.begin + at, "the directory holds more than its entries")


def _name(raw: bytes, file: SourceFile, where: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _broken(file, where, "the name of an entry is not UTF-8") from error


def _check_stored(file: SourceFile, name: str, flags: int, method: int) -> None:
    if flags & _ENCRYPTED or method:
        how = "encrypted" if flags & _ENCRYPTED else "compressed"
        raise UnsupportedError(
            f"{quote(file.path.name)}: entry {quote(name)} is {how}, and torch.save does neither",
            "load the file with torch (a TorchScript program with torch.jit.load) and torch.save its state_dict()",
        )


def _widened(extra: bytes, numbers: tuple[int, ...], file: SourceFile, where: int) -> Iterator[int]:
    """Yield size, stored size and offset, from the zip64 field where they do not fit 32 bits (4.5.3)."""
    wide = _fields(extra).get(_ZIP64_FIELD, b"")
    for number in numbers:
        if number != IN_ZIP64:
            yield number
            continue
        if len(wide) < 8:
            raise _broken(file, where, "an entry lacks its zip64 field")
        yield int.from_bytes(wide[:8], "little")
        wide = wide[8:]


def _fields(extra: bytes) -> dict[int, bytes]:
    """Return the extra fields by kind, and trailing bytes under -1."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if at + 4 + length > len(extra):
            break
        found.setdefault(kind, extra[at + 4 : at + 4 + length])
        at += 4 + length
    return {**found, -1: extra[at:]} if at < len(extra) else found


def _placed(descriptor: int, file: SourceFile, entry: Entry) -> Entry:
    """Return the entry with the offset of its bytes, which only the local header tells."""
    name = entry.name.encode()
    length = _LOCAL.size + len(name)
    head = _ranged(descriptor, file, entry.header, length)
    magic, _, flags, method, _, _, crc, stored, size, name_length, extra_length = _LOCAL.unpack(head[: _LOCAL.size])
    if magic != MAGIC or name_length != len(name) or head[_LOCAL.size :] != name:
        raise _broken(file, entry.header, f"the directory lists {quote(entry.name)} here, and something else is there")
    _check_stored(file, entry.name, flags, method)
    extra = _ranged(descriptor, file, entry.header + length, extra_length)
    placed = entry._replace(begin=entry.header + length + extra_length)
    # Nothing else reveals a damaged length of the extra fields, which would shift all bytes of a tensor.
    described = _described(descriptor, file, placed) if flags & _DESCRIBED else (crc, stored, size)
    fields = _fields(extra)
    wide = _ZIP64_FIELD in fields
    agree = described[0] == entry.crc and all(one == entry.size or (one == IN_ZIP64 and wide) for one in described[1:])
    if not agree or -1 in fields:
        raise _broken(file, entry.header, f"the header of entry {quote(entry.name)} contradicts the directory")
    return placed


def _described(descriptor: int, file: SourceFile, entry: Entry) -> tuple[int, int, int]:
    """Return CRC and sizes as the data descriptor behind an entry's bytes states them, be it narrow or wide."""
    found = _ranged(descriptor, file, entry.begin + entry.size, _WIDE.size)
    for form in (_WIDE, _NARROW):
        magic, crc, stored, size = form.unpack_from(found)
        if magic == _DESCRIPTOR_MAGIC and stored == size == entry.size:
            break
    return (crc, stored, size) if magic == _DESCRIPTOR_MAGIC else (-1, -1, -1)


def _ranged(descriptor: int, file: SourceFile, begin: int, length: int) -> bytes:
    if begin + length > file.size:
        raise _broken(file, begin, "an entry lies beyond the end of the file")
    return read_at(descriptor, begin, length, file)


def _broken(file: SourceFile, at: int, what: str) -> SourceError:
    return SourceError(f"{quote(file.path.name)}, byte {at}: {what}: the file is damaged or forged", DOWNLOAD_AGAIN)


def _cut_off(file: SourceFile) -> SourceError:
    return SourceError(
        f"{quote(file.path.name)} is truncated: it does not end as a zip archive of torch does", DOWNLOAD_AGAIN
    )


# -- writing -----------------------------------------------------------------------------------------------------------


def local_header(name: bytes, at: int, size: int, alignment: int) -> bytes:
    """Return the header, at byte `at`, of an entry of `size` bytes, padded so that these are aligned.

    The padding is a field «FB» of Zs, and the zip64 field holds a large offset too, as torch writes them.
    """
    wide = _zip64_field([size, size] * (size >= IN_ZIP64) + [at] * (at >= IN_ZIP64))
    padding = -(at + _LOCAL.size + len(name) + len(wide) + 4) % alignment
    extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    shown = IN_ZIP64 if size >= IN_ZIP64 else 0
    return _LOCAL.pack(MAGIC, 0, _flags(size), 0, 0, 0, 0, shown, shown, len(name), len(extra)) + name + extra


def data_descriptor(size: int, wide: bool) -> bytes:
    """Return what follows an entry's bytes: its CRC-32 (0, to be filled in), and its size twice (8 bytes if wide)."""
    return (_WIDE if wide else _NARROW).pack(_DESCRIPTOR_MAGIC, 0, size, size)


def directory(listed: Iterable[tuple[bytes, int, int]], begin: int) -> tuple[bytes, list[int]]:
    """Return the directory and end records, and the offset in the file of each entry's CRC (0 here).

    Args:
        listed: name, offset of the local header and size of each entry.
        begin: the offset of the directory.
    """
    data, places, count = bytearray(), [], 0
    for name, at, size in listed:
        places.append(begin + len(data) + 16)
        extra = _zip64_field([size, size] * (size >= IN_ZIP64) + [at] * (at >= IN_ZIP64))
        shown, place = min(size, IN_ZIP64), min(at, IN_ZIP64)
        lengths = len(name), len(extra), 0
        data += _ENTRY.pack(b"PK\x01\x02", 0, 0, _flags(size), 0, 0, 0, 0, shown, shown, *lengths, 0, 0, 0, place)
        data += name + extra
        count += 1
    length = len(data)
    data += _END64.pack(b"PK\x06\x06", _END64.size - 12, 45, 45, 0, 0, count, count, length, begin)
    data += _LOCATOR.pack(b"PK\x06\x07", 0, begin + length, 1)
    few, small = min(count, _IN_ZIP64_COUNT), (min(length, IN_ZIP64), min(begin, IN_ZIP64))
    return bytes(data + _END.pack(b"PK\x05\x06", 0, 0, few, few, *small, 0)), places


def _flags(size: int) -> int:
    return _UTF8 | (_DESCRIBED if size else 0)


def _zip64_field(numbers: list[int]) -> bytes:
    return struct.pack(f"<2H{len(numbers)}Q", _ZIP64_FIELD, 8 * len(numbers), *numbers) if numbers else b""
