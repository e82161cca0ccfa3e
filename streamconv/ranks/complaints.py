"""Why the files of a training cannot be put together, in words."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import SourceError
from ..tensors.refs import Catalog
from ..text import counted, first_few

_SHOWN = 5
_LISTED = 100


class IncompleteError(SourceError):
    """Slices are missing.

    Attributes:
        catalog: the rest, and what is missing.
    """

    def __init__(self, message: str, hint: str, catalog: Catalog) -> None:
        super().__init__(message, hint)
        self.catalog = catalog


def ranks(numbers: Sequence[int]) -> str:
    """Return some ranks for a message: `rank 2`, `ranks 2, 3 and 5 more`."""
    return f"rank{'s' if len(numbers) > 1 else ''} {first_few([*map(str, numbers)], 8)}"


def listed(lines: Collection[str]) -> str:
    """Return the first few of these, a line for each, and how many more there are."""
    more = f"\n  and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return "".join(f"\n  {line}" for line in [*lines][:_LISTED]) + more


def refuse(where: str, findings: Sequence[str], by: str) -> None:
    """Refuse slices that do not fit each other, or what describes them.

    Args:
        where: the checkpoint.
        findings: what does not fit.
        by: what describes them.

    Raises:
        SourceError: there are findings.
    """
    if findings:
        raise SourceError(
            f"{where}: {counted(len(findings), 'tensor')} in slices that do not fit each other or {by}:"
            f"{listed(findings)}",
            f"check that all files are of one training and one step, and {by} too",
        )


def warnings(of_files: Sequence[str]) -> tuple[str, ...]:
    """Return the first few of the warnings that files give, and how many more there are."""
    more = [f"{counted(len(of_files) - _SHOWN, 'more file')} with such a warning"] if len(of_files) > _SHOWN else []
    return (*of_files[:_SHOWN], *more)
