"""Sizes: as people write them, and those that all modules share.

Memory follows the binary reading (`16G` = `16GiB` = 16·2^30); files follow the decimal one for `GB` (`5GB` = 5·10^9),
as HuggingFace's `max_shard_size` does.
"""

from __future__ import annotations

import operator
import re

from .errors import UsageError
from .text import quote

#: Bytes of an output shard at most, where nothing else is asked: what HuggingFace's own tools write.
DEFAULT_SHARD_SIZE = "5GB"

#: Bytes to read, hash or make up at a time where the whole may be large: small next to any budget.
CHUNK = 1 << 20

#: Bytes of a block: fixed ranges of an output file, the unit of digest, of durability, and of large writes.
BLOCK = 16 << 20

_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([KMGT]?)(I?B)?\s*", re.IGNORECASE)
_LIMIT = 1 << 62


def parse_size(text: str | int, what: str = "size") -> int:
    """Return the bytes of a size such as `16G`, `16GiB` (both 16·2^30), `5GB` (5·10^9), `1.5G` or `123456`.

    Raises:
        UsageError: it is not such a size, or not between 1 byte and 2^62 bytes.

    >>> parse_size("16G"), parse_size("5GB"), parse_size("512")
    (17179869184, 5000000000, 512)
    """
    value = _bytes_of(text, what) if isinstance(text, str) else _whole_number(text, what)
    if not 1 <= value <= _LIMIT:
        shown = f" {quote(text)!r}" if isinstance(text, str) else ""
        raise UsageError(f"{what}{shown} is out of range; it has to be at least one byte and at most 4 EiB")
    return value


def _whole_number(value: object, what: str) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(f"{what} must be str or int, not {type(value).__name__}") from error


def _bytes_of(text: str, what: str) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"{what} {quote(text)!r} is not a size; write for example 16G, 512MiB, 5GB or plain bytes")
    number, unit, suffix = match.groups()
    base = 1000 if unit and suffix and suffix.upper() == "B" else 1024
    factor = base ** _POWER[unit.upper()]
    return int(float(number) * factor) if "." in number else int(number) * factor
