"""The records of a zip archive, as PKWARE's APPNOTE 6.3 lays them out (section 4.3)."""

from __future__ import annotations

import struct

LOCAL_MAGIC, ENTRY_MAGIC, DESCRIPTOR_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"
END_MAGIC, ZIP64_END_MAGIC, LOCATOR_MAGIC = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"

LOCAL = struct.Struct("<4s5H3I2H")
ENTRY = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
ZIP64_END = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
NARROW_DESCRIPTOR, WIDE_DESCRIPTOR = struct.Struct("<4s3I"), struct.Struct("<4sI2Q")

#: Offset and bytes of the CRC-32 in a data descriptor.
CRC_IN_DESCRIPTOR, CRC_BYTES = 4, 4

#: Offset of the CRC-32 in an entry of the directory.
CRC_IN_DIRECTORY = 16

#: Flags: the entry is encrypted; its CRC follows the bytes, in a data descriptor; its name is UTF-8.
ENCRYPTED, DESCRIBED, UTF8 = 0x0001, 0x0008, 0x0800

#: The kind of the extra field that holds 64-bit numbers; and in place of a 32-bit or 16-bit number, that it is there.
ZIP64_FIELD, IN_ZIP64, IN_ZIP64_COUNT = 1, 0xFFFFFFFF, 0xFFFF
