"""How large a task is: several for each worker, so that a slow one gives work away, and each worth its call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..units import BLOCK

T = TypeVar("T")

_MOST = 1 << 30
_PARTS = 64


def portion_bytes(total: int) -> int:
    """Return the bytes of a task of a job of `total` bytes: one of 64 parts, but at least 16 MiB and at most 1 GiB."""
    return max(BLOCK, min(_MOST, total // _PARTS))


def gathered(things: Iterable[tuple[T, int]], most: int) -> Iterator[tuple[list[T], int]]:
    """Yield neighbours together, with their bytes: `most` bytes at most, or a single thing that is larger."""
    group: list[T] = []
    total = 0
    for thing, nbytes in things:
        if group and total + nbytes > most:
            yield group, total
            group, total = [], 0
        group.append(thing)
        total += nbytes
    if group:
        yield group, total
