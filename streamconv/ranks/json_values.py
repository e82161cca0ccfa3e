"""Values of JSON that came from outside: of the type that is expected, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import SourceError
from ..formats.headers import DOWNLOAD_AGAIN
from ..text import quote


def entries(value: object, where: str) -> Mapping[str, object]:
    """Return an object's entries; `where` is the subject of the error message.

    Raises:
        SourceError: not a JSON object.
    """
    if not isinstance(value, dict):
        raise _wrong(where, "an object")
    return value


def items(value: object, where: str) -> list[object]:
    """Return a list; `where` is the subject of the error message.

    Raises:
        SourceError: not a JSON list.
    """
    if not isinstance(value, list):
        raise _wrong(where, "a list")
    return value


def integer(value: object, where: str) -> int:
    """Return a whole number; `where` is the subject of the error message.

    Raises:
        SourceError: not a number, or one that 64 bits cannot hold.
    """
    if type(value) is not int or abs(value) >> 63:
        raise _wrong(where, "a whole number")
    return value


def integers(value: object, where: str) -> tuple[int, ...]:
    """Return a list of whole numbers, as `items` and `integer`."""
    return tuple(integer(one, f"a value in {where}") for one in items(value, where))


def key(where: str, name: str) -> str:
    """Return how errors call the value of a key: `FILE: KEY`."""
    return f"{where}: {quote(name)}"


def _wrong(where: str, what: str) -> SourceError:
    return SourceError(f"{where} is not {what}", DOWNLOAD_AGAIN)
