"""The tensors that a quantised weight was found to consist of, and what is said where they do not go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..tensors.refs import TensorRef
from ..text import quote
from .language import Layout, Part

Shape = tuple[int, ...]

#: Reads the whole numbers in a small tensor.
ReadNumbers = Callable[[TensorRef], tuple[int, ...]]


class MisfitError(Exception):
    """The shapes of the parts do not go together; the message says how."""


class Found(NamedTuple):
    """The tensors of a weight: its codes, and in the order of the layout's parts those that are there."""

    layout: Layout
    codes: TensorRef
    parts: Sequence[TensorRef | None]

    def of(self, part: Part | None) -> TensorRef | None:
        """Return the tensor of a part, `None` if it is not there."""
        every = zip(self.layout.parts, self.parts, strict=True)
        return next((ref for one, ref in every if one is part), None)

    def refs(self) -> Iterator[TensorRef]:
        """Yield them all."""
        yield self.codes
        yield from (ref for ref in self.parts if ref is not None)


def spelled(ref: TensorRef) -> str:
    """Return a tensor's name and shape, for people."""
    return f"{quote(ref.name)} {list(ref.shape)}"
