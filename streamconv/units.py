"""Sizes as people write them.

Memory follows the binary reading (`16G` = `16GiB` = 16·2^30); files follow the decimal one for `GB` (`5GB` = 5·10^9),
as HuggingFace's `max_shard_size` does.
"""

from __future__ import annotations

import re

from .errors import UsageError, quote

_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([KMGT]?)(I?B)?\s*", re.IGNORECASE)
_LIMIT = 1 << 62


def parse_size(text: str | int, what: str = "size") -> int:
    """Bytes of a size such as `16G`, `16GiB` (both 16·2^30), `5GB` (5·10^9), `1.5G` or `123456`.

    Raises:
        UsageError: the text is not such a size, or not between 1 byte and 2^62 bytes.

    >>> parse_size("16G"), parse_size("5GB"), parse_size("512")
    (17179869184, 5000000000, 512)
    """
    value = text if isinstance(text, int) else _bytes_of(text, what)
    if not 1 <= value <= _LIMIT:
        shown = f" {quote(text)!r}" if isinstance(text, str) else ""
        raise UsageError(f"{what}{shown} is out of range; it has to be at least one byte and below 4 EiB")
    return value


def _bytes_of(text: str, what: str) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"{what} {quote(text)!r} is not a size; write for example 16G, 512MiB, 5GB or plain bytes")
    number, unit, suffix = match.groups()
    base = 1000 if unit and suffix and suffix.upper() == "B" else 1024
    factor = base ** _POWER[unit.upper()]
    return int(float(number) * factor) if "." in number else int(number) * factor


def counted(count: int, noun: str) -> str:
    """A count with its noun: `1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_size(count: float) -> str:
    """A count of bytes for people, in binary units: `12 B`, `3.4 MiB`, `1.25 GiB`."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{value:.4g} {unit}"
