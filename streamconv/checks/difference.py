"""A tensor that differs between two checkpoints, and how that is said."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from msgspec import Struct

from ..tensors.refs import TensorRef
from ..text import counted, quote
from .elements import Compared

#: What can differ, in the order in which it is said, with the words of the summary.
KINDS = {
    "only in A": "only in A",
    "only in B": "only in B",
    "shape": "with a different shape",
    "dtype": "with a different dtype",
    "values": "with different values",
    "bits": "with equal values but different bits",
}


class Difference(Struct, frozen=True):
    """A tensor that differs between the two checkpoints.

    Attributes:
        kind: one of `KINDS`, the first that holds.
        one, other: the tensor in A and in B; `None` where it is not there.
        compared: how its elements compare; `None` where they cannot be compared.
    """

    kind: str
    one: TensorRef | None
    other: TensorRef | None
    compared: Compared | None = None

    @property
    def name(self) -> str:
        """The tensor's name."""
        return (self.one or self.other).name  # type: ignore[union-attr]

    def __str__(self) -> str:
        sides = [f"{side} {r.dtype} {list(r.shape)}" for side, r in (("A", self.one), ("B", self.other)) if r]
        if self.kind in ("values", "bits"):
            sides = sides[:1]
            sides[0] = sides[0].removeprefix("A ")
        return "; ".join([f"{quote(self.name)}  {', '.join(sides)}", *self._values()])

    def _values(self) -> Iterator[str]:
        """Say how its values differ."""
        found = self.compared
        if found is None:
            return
        if found.same:
            yield "same values"
        if found.unequal:
            yield f"{found.unequal} of {counted(found.elements, 'element')} differ, the first at {self._first()}"
        if found.largest is not None:
            yield f"the largest difference is {_number(found.largest)}"
        if found.nans:
            yield f"{found.nans} of them {'is' if found.nans == 1 else 'are'} NaN on one side only"
        if found.bits_only:
            where = "" if found.unequal else f", the first at {self._first()}"
            said = f"{'has' if found.bits_only == 1 else 'have'} equal values but different bits"
            yield f"{found.bits_only} of {counted(found.elements, 'element')} {said}{where}"

    def _first(self) -> str:
        first = self.first
        return f"{first['index']}: A {first['a']}, B {first['b']}" if first else ""

    @property
    def first(self) -> dict[str, object] | None:
        """The first element that differs in value, else in bits: its index, and its value in A and in B as text."""
        found = self.compared
        element = found and (found.first or found.first_bits)
        if not (found and element and self.one):
            return None
        a, b = found.shown(element)
        return {"index": [int(i) for i in np.unravel_index(element.number, self.one.shape)], "a": a, "b": b}

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values; an infinite difference is the text `inf`."""
        sides = {
            side: ref and {"dtype": ref.dtype.name, "shape": list(ref.shape)}
            for side, ref in (("a", self.one), ("b", self.other))
        }
        found = self.compared
        if found is None:
            return {"name": self.name, "kind": self.kind, **sides}
        largest = found.largest if found.largest is None or math.isfinite(found.largest) else str(found.largest)
        return {
            "name": self.name,
            "kind": self.kind,
            **sides,
            "elements": found.elements,
            "unequal": found.unequal,
            "bits_only": found.bits_only,
            "nans": found.nans,
            "largest": largest,
            "first": self.first,
        }


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
