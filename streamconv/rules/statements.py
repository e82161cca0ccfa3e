"""Statements of a family's table: how HuggingFace's tensors and MindFormers' correspond, in both directions.

A hole in the patterns of one side only makes a stack: `experts.{expert}.w1.weight` on one side, `ffn.w1.weight` on the
other, with the experts along a new axis 0 before the transform is applied. Patterns are explained in `patterns`.
"""

from __future__ import annotations

from enum import Enum
from functools import cached_property

from msgspec import Struct

from .patterns import holes
from .transforms import Identity, Transform

#: The key of config.json that says whether a model's head is its embedding.
TIED = "tie_word_embeddings"


class Side(Enum):
    """The two sides of a table: HuggingFace's tensors and MindFormers'."""

    HF = "hf"
    MS = "ms"

    @property
    def other(self) -> Side:
        """The opposite side."""
        return Side.MS if self is Side.HF else Side.HF


class Direction(Enum):
    """Which side of the rules is the source: HuggingFace's forward, MindFormers' in reverse."""

    FORWARD = "forward"
    REVERSE = "reverse"

    @property
    def source(self) -> Side:
        """The side of the source's tensors."""
        return Side.HF if self is Direction.FORWARD else Side.MS

    @property
    def target(self) -> Side:
        """The side of the tensors to be written."""
        return self.source.other


class Rule(Struct, frozen=True, dict=True):
    """The tensors `hf` are the tensors `ms`, transformed.

    Attributes:
        hf: HuggingFace's pattern, or several that belong together.
        ms: MindFormers' pattern, or several that belong together.
        shape: shape of each HF tensor in the model's symbols (`"heads*head_dim, hidden"`): one for all, or one each;
            `None` allows any.
        transform: from the HF tensors to the MindFormers tensors.
        optional: the tensors may be absent, but only from all layers.
        fp32: sides on which the model keeps the tensors in float32: a cast gives F32 there, whatever dtype is asked.
        ms_shape: shape of the MindFormers tensors, if a size can be learned only from it, or `shape` is not known.
        any_layer: an optional tensor may be absent from any layer.
    """

    hf: str | tuple[str, ...]
    ms: str | tuple[str, ...]
    shape: str | tuple[str, ...] | None = None
    transform: Transform = Identity()
    optional: bool = False
    fp32: tuple[Side, ...] = ()
    ms_shape: str | None = None
    any_layer: bool = False

    @cached_property
    def _hf(self) -> _RuleSide:
        """What is asked again for every tensor, worked out once."""
        return _RuleSide.of(_as_tuple(self.hf), _as_tuple(self.ms))

    @cached_property
    def _ms(self) -> _RuleSide:
        return _RuleSide.of(_as_tuple(self.ms), _as_tuple(self.hf))

    def _on(self, side: Side) -> _RuleSide:
        return self._hf if side is Side.HF else self._ms

    def patterns(self, side: Side) -> tuple[str, ...]:
        """Return the patterns of a side."""
        return self._on(side).patterns

    def shapes(self) -> tuple[str | None, ...]:
        """Return the symbolic shape of each HF tensor."""
        count = len(self.patterns(Side.HF))
        return self.shape if isinstance(self.shape, tuple) else (self.shape,) * count

    def holes(self, side: Side) -> tuple[str, ...]:
        """Return the names of the holes in the patterns of a side."""
        return self._on(side).holes

    def stacked(self, side: Side) -> str | None:
        """Return the hole that only this side has: its tensors are a stack on the other side."""
        return self._on(side).stacked

    def shared(self, side: Side) -> tuple[str, ...]:
        """Return the holes of a side that the other side has too."""
        return self._on(side).shared


class _RuleSide(Struct, frozen=True):
    """What the methods of `Rule` return for a side."""

    patterns: tuple[str, ...]
    holes: tuple[str, ...]
    stacked: str | None
    shared: tuple[str, ...]

    @classmethod
    def of(cls, mine: tuple[str, ...], others: tuple[str, ...]) -> _RuleSide:
        found, other = holes(mine), holes(others)
        stacked = next((hole for hole in found if hole not in other), None)
        return cls(mine, found, stacked, tuple(hole for hole in found if hole != stacked))


def _as_tuple(patterns: str | tuple[str, ...]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else patterns


class Tied(Struct, frozen=True):
    """HF tensor `hf` (MindFormers' `ms`) is tied to HF tensor `of`: it holds the same bytes.

    Forward, it is written from `of`; if the source has it, its bytes must equal those of `of`. In reverse, it is not
    written unless it differs: training may have untied it.

    Attributes:
        hf: HuggingFace's name.
        ms: MindFormers' name.
        of: HuggingFace's name of the tensor that it is tied to.
        shape: its shape in the model's symbols.
        stored_twice: MindFormers' model stores the tensor as well; if false, it is not written forward either.
    """

    hf: str
    ms: str
    of: str
    shape: str | None = None
    stored_twice: bool = True

    def patterns(self, side: Side) -> tuple[str, ...]:
        """Return the name on a side."""
        return (self.hf if side is Side.HF else self.ms,)


class Copy(Struct, frozen=True):
    """HF tensor `hf` is a copy of HF tensor `of`, which MindFormers stores once.

    Forward, it is dropped if the source has it; in reverse, it is written from `of` unless a rule writes it.

    Attributes:
        hf: HuggingFace's pattern.
        of: HuggingFace's name of the tensor that it copies.
        why: why MindFormers has no such tensor.
    """

    hf: str
    of: str
    why: str

    def patterns(self, side: Side) -> tuple[str, ...]:
        """Return the pattern on a side: MindFormers has none."""
        return (self.hf,) if side is Side.HF else ()


class Drop(Struct, frozen=True):
    """Tensors of one side that the other side does not have.

    Attributes:
        why: why they are dropped; shown in the plan.
        hf: HuggingFace's patterns.
        ms: MindFormers' patterns.
        only_with: drop a tensor only if one of these is present too, for the same holes: a tensor that just looks like
            one to drop, such as one layer more than the config says, is then an error.
        must_equal: HF tensor whose bytes a dropped tensor must hold.
    """

    why: str
    hf: tuple[str, ...] = ()
    ms: tuple[str, ...] = ()
    only_with: tuple[str, ...] = ()
    must_equal: str = ""

    def patterns(self, side: Side) -> tuple[str, ...]:
        """Return the patterns of a side."""
        return self.hf if side is Side.HF else self.ms


Statement = Rule | Tied | Copy | Drop
