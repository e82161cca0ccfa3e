"""What a benchmark is given and returns: a setting, data that JSON can hold, and tables and figures made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What a benchmark measured: numbers, strings, lists and dicts of them. `notes`, if present, are sentences shown below
#: its tables: what was skipped, and why.
Data = dict[str, Any]

#: Called with a few words on what is being done.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """Where and how to measure.

    Attributes:
        folder: an empty directory on a disk; whoever writes to it cleans up.
        memory: the same on tmpfs, or `None` if there is none.
        rounds: how often each contestant runs.
        quick: use small checkpoints, to check that everything runs; the figures mean nothing.
    """

    folder: Path
    memory: Path | None
    rounds: int
    quick: bool

    @property
    def places(self) -> Mapping[str, Path]:
        """The directories to measure in, by `disk` and `tmpfs`."""
        places = {"disk": self.folder, "tmpfs": self.memory}
        return {where: folder for where, folder in places.items() if folder is not None}


class Benchmark(Protocol):
    """A module of this package that is a benchmark."""

    #: Its heading.
    TITLE: str

    def measure(self, setting: Setting, say: Say) -> Data:
        """Measure; raise a `BenchmarkError` that says what is missing here."""
        ...

    def tables(self, data: Data) -> Sequence[Table]:
        """Return what was measured as tables."""
        ...

    def figures(self, data: Data) -> Mapping[str, Figure]:
        """Return what was measured as plots, by file name."""
        ...


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first column is text, the others are right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown, with aligned columns."""
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        return "\n".join(_line(row, widths) for row in (self.columns, rule, *self.rows))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return f"| {' | '.join((row[0].ljust(widths[0]), *cells))} |"
