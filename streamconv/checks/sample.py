"""Samples: a share of the blocks or boxes of a verification, at random, but spread evenly over all of them."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from secrets import randbits

import xxhash
from msgspec import Struct, field

from ..errors import UsageError
from ..text import quote

_FRACTION = re.compile(r"\s*([0-9]{0,9}\.?[0-9]{1,12})\s*(%?)\s*")


class Sample(Struct, frozen=True):
    """One of every `1 / share` things that are counted from 0.

    Attributes:
        share: above 0, at most 1.
        seed: the same one takes the same things; a new one every time where none is given.
    """

    share: Fraction
    seed: int = field(default_factory=lambda: randbits(64))

    def takes(self, number: int) -> bool:
        """Return whether thing `number` is in the sample; how many things there are need not be known."""
        stratum = math.floor(number * self.share)
        low, high = math.ceil(stratum / self.share), math.ceil((stratum + 1) / self.share)
        return number - low == self.one_of(high - low, str(stratum))

    def one_of(self, count: int, what: str) -> int:
        """Return a random number below `count`, another one for every `what`."""
        return xxhash.xxh3_64_intdigest(f"{self.seed} {what}".encode("utf-8", "surrogatepass")) % count

    def __str__(self) -> str:
        return f"{float(100 * self.share):.6g}%"


def parse_sample(fraction: str | float | None, seed: int | None = None) -> Sample | None:
    """Return the sample of a fraction, `None` for everything.

    Args:
        fraction: such as `5%`, or 0.05 for the same; `None` for everything.
        seed: makes the sample repeatable.

    Raises:
        UsageError: it is no number, not above 0, or above 100%.
    """
    if fraction is None:
        return None
    match = _FRACTION.fullmatch(fraction if isinstance(fraction, str) else f"{fraction:.12f}")
    if not match:
        raise UsageError(f"not a share: {quote(fraction)}", "write for example 5% or 0.05")
    share = Fraction(match[1]) / (100 if match[2] else 1)
    if not 0 < share <= 1:
        hint = f"write {match[1]}% or {float(share / 100):.6g}" if 1 < share <= 100 and not match[2] else ""
        raise UsageError(f"a share must be above 0 and at most 100%: {quote(fraction)}", hint)
    if share == 1:
        return None
    return Sample(share) if seed is None else Sample(share, seed)
