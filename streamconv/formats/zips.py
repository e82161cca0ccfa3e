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
from collections.abc import Iterator
from typing import NamedTuple

from isal import isal_zlib

from ..errors import SourceError, UnsupportedError
from ..tensors.extents import SourceFile
from ..text import quote
from .header_room import HeaderRoom
from .headers import DOWNLOAD_AGAIN, read_at
from .zip_records import (
    DESCRIBED,
    DESCRIPTOR_MAGIC,
    ENCRYPTED,
    END,
    END_MAGIC,
    ENTRY,
    ENTRY_MAGIC,
    IN_ZIP64,
    IN_ZIP64_COUNT,
    LOCAL,
    LOCAL_MAGIC,
    LOCATOR,
    LOCATOR_MAGIC,
    NARROW_DESCRIPTOR,
    WIDE_DESCRIPTOR,
    ZIP64_END,
    ZIP64_END_MAGIC,
    ZIP64_FIELD,
)

#: Bytes of the directory that each entry takes, besides its name.
DIRECTORY_COST = ENTRY.size


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

    Args:
        descriptor, file: the archive.
        entry: the entry, of a size that the caller has checked.

    Raises:
        SourceError: the CRC differs.
    """
    data = read_at(descriptor, entry.begin, entry.size, file)
    if entry.crc not in (0, isal_zlib.crc32(data)):
        raise _broken(file, entry.begin, f"the bytes of entry {quote(entry.name)} do not have the CRC that it states")
    return data


def _directory(descriptor: int, file: SourceFile) -> _Directory:
    """Return where the directory lies: it fills all between the last entry and the end records."""
    end = file.size - END.size
    if end < 0:
        raise _cut_off(file)
    magic, *disks, count_here, count, size, begin, comment = END.unpack(read_at(descriptor, end, END.size, file))
    if magic != END_MAGIC or comment:
        raise _cut_off(file)
    found, stated = _Directory(count, size, begin), end
    if end >= LOCATOR.size:
        magic, disk, end64, disk_count = LOCATOR.unpack(read_at(descriptor, end - LOCATOR.size, LOCATOR.size, file))
        if magic == LOCATOR_MAGIC:
            found, stated = _zip64(descriptor, file, end - LOCATOR.size, end64, found), end64
            disks += [disk, disk_count - 1]
    if any(disks) or count_here != count or found.begin + found.size != stated or found.entries > found.size:
        raise _broken(file, end, "the end record does not fit the file")
    return found


def _zip64(descriptor: int, file: SourceFile, locator: int, at: int, small: _Directory) -> _Directory:
    if at != locator - ZIP64_END.size:
        raise _broken(file, locator, "the zip64 end record is not where the locator says")
    magic, size, _, _, disk, first, here, *numbers = ZIP64_END.unpack(read_at(descriptor, at, ZIP64_END.size, file))
    found = _Directory(*numbers)
    hidden = (IN_ZIP64_COUNT, IN_ZIP64, IN_ZIP64)
    agree = all(a in (b, c) for a, b, c in zip(small, found, hidden, strict=True))
    if magic != ZIP64_END_MAGIC or size != ZIP64_END.size - 12 or disk or first or here != found.entries or not agree:
        raise _broken(file, at, "the zip64 end record contradicts the end record")
    return found


def _listed(data: bytes, directory: _Directory, file: SourceFile) -> Iterator[Entry]:
    """Yield the entries as the directory lists them, which does not say where their bytes begin."""
    at = 0
    for _ in range(directory.entries):
        where = directory.begin + at
        if at + ENTRY.size > len(data) or not data.startswith(ENTRY_MAGIC, at):
            raise _broken(file, where, "the directory is truncated")
        record = ENTRY.unpack_from(data, at)
        flags, method = record[3:5]
        crc, stored, size, name_length, extra_length, comment_length, disk = record[7:14]
        at += ENTRY.size
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
    if flags & ENCRYPTED or method:
        how = "encrypted" if flags & ENCRYPTED else "compressed"
        raise UnsupportedError(
            f"{quote(file.path.name)}: entry {quote(name)} is {how}, and torch.save does neither",
            "load the file with torch (a TorchScript program with torch.jit.load) and torch.save its state_dict()",
        )


def _widened(extra: bytes, numbers: tuple[int, ...], file: SourceFile, where: int) -> Iterator[int]:
    """Yield size, stored size and offset, from the zip64 field where they do not fit 32 bits (4.5.3)."""
    wide = _fields(extra).get(ZIP64_FIELD, b"")
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
    length = LOCAL.size + len(name)
    head = _ranged(descriptor, file, entry.header, length)
    magic, _, flags, method, _, _, crc, stored, size, name_length, extra_length = LOCAL.unpack(head[: LOCAL.size])
    if magic != LOCAL_MAGIC or name_length != len(name) or head[LOCAL.size :] != name:
        raise _broken(file, entry.header, f"the directory lists {quote(entry.name)} here, and something else is there")
    _check_stored(file, entry.name, flags, method)
    extra = _ranged(descriptor, file, entry.header + length, extra_length)
    placed = entry._replace(begin=entry.header + length + extra_length)
    # Nothing else reveals a damaged length of the extra fields, which would shift all bytes of a tensor.
    described = _described(descriptor, file, placed) if flags & DESCRIBED else (crc, stored, size)
    fields = _fields(extra)
    wide = ZIP64_FIELD in fields
    agree = described[0] == entry.crc and all(one == entry.size or (one == IN_ZIP64 and wide) for one in described[1:])
    if not agree or -1 in fields:
        raise _broken(file, entry.header, f"the header of entry {quote(entry.name)} contradicts the directory")
    return placed


def _described(descriptor: int, file: SourceFile, entry: Entry) -> tuple[int, int, int]:
    """Return CRC and sizes as the data descriptor behind an entry's bytes states them, be it narrow or wide."""
    found = _ranged(descriptor, file, entry.begin + entry.size, WIDE_DESCRIPTOR.size)
    for form in (WIDE_DESCRIPTOR, NARROW_DESCRIPTOR):
        magic, crc, stored, size = form.unpack_from(found)
        if magic == DESCRIPTOR_MAGIC and stored == size == entry.size:
            break
    return (crc, stored, size) if magic == DESCRIPTOR_MAGIC else (-1, -1, -1)


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
