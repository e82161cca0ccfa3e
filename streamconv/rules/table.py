"""A family's statements for one model, read from the side of the source."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from msgspec import Struct
from msgspec.structs import replace

from .matcher import Matcher
from .sizes import Ranges, Sizes
from .statements import Side, Statement


class Table(Struct, frozen=True, dict=True):
    """A family's statements for one model.

    Attributes:
        statements: the statements, in the family's order.
        side: the side whose names the source has.
        ranges: the values of the holes; they narrow as sizes are learned.
    """

    statements: Sequence[Statement]
    side: Side
    ranges: Ranges

    @property
    def sizes(self) -> Sizes:
        """The model's sizes."""
        return self.ranges.sizes

    @cached_property
    def matcher(self) -> Matcher:
        """The index over the patterns of `side`. Ranges count as they are at first use."""
        return Matcher(self.statements, self.side, self.ranges)

    @property
    def other(self) -> Table:
        """The same table, read from the other side."""
        return replace(self, side=self.side.other)
