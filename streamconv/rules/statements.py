"""Rules: frozen, invertible statements «this HuggingFace pattern is that MindFormers pattern, through this layout».

A number that only one side's patterns have is a stack: `experts.{expert}.w1.weight` on the one side, `ffn.w1.weight`
on the other, with the experts along a new axis 0 before the layout is applied. What a pattern is, `patterns` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .patterns import holes
from .transforms import Identity, Transform

#: The key of config.json that says whether a model's head is its embedding.
TIED = "tie_word_embeddings"


class Direction(Enum):
    """Which side of the rules is the source."""

    FORWARD = "forward"
    REVERSE = "reverse"


@dataclass(frozen=True)
class Rule:
    """`hf` patterns are `ms` patterns through `layout`.

    Attributes:
        hf, ms: a pattern, or several that belong together.
        shape: the shape of each HF tensor in the model's symbols (`"heads*head_dim, hidden"`); one for all, or one
            each; `None` = any.
        layout: from the HF tensors to the MindFormers tensors.
        ms_shape: the shape of the MindFormers tensors, where that tells a number which no HF shape does.
        optional: the tensors may be absent, but from all layers alike.
        scattered: where optional, they may be absent from any layer.
        fp32: the sides (`hf`, `ms`) on which the model keeps it in float32: there it is F32 where a dtype is asked.
    """

    hf: str | tuple[str, ...]
    ms: str | tuple[str, ...]
    shape: str | tuple[str, ...] | None = None
    layout: Transform = Identity()  # noqa: RUF009 - frozen, without state
    optional: bool = False
    fp32: tuple[str, ...] = ()
    ms_shape: str | None = None
    scattered: bool = False

    def patterns(self, side: str) -> tuple[str, ...]:
        """The patterns of side `hf` or `ms`."""
        patterns = self.hf if side == "hf" else self.ms
        return (patterns,) if isinstance(patterns, str) else patterns

    def shapes(self) -> tuple[str | None, ...]:
        """The symbolic shape of each HF tensor."""
        count = len(self.patterns("hf"))
        return self.shape if isinstance(self.shape, tuple) else (self.shape,) * count

    def holes(self, side: str) -> tuple[str, ...]:
        """Names of the holes in the patterns of a side."""
        return holes(self.patterns(side))

    def stacked(self, side: str) -> str | None:
        """The hole that only this side has: its tensors are a stack on the other side."""
        other = self.holes("ms" if side == "hf" else "hf")
        return next((hole for hole in self.holes(side) if hole not in other), None)

    def shared(self, side: str) -> tuple[str, ...]:
        """The holes of a side that the other side has too."""
        stacked = self.stacked(side)
        return tuple(hole for hole in self.holes(side) if hole != stacked)


@dataclass(frozen=True)
class Tied:
    """HF tensor `hf` (MindFormers' `ms`) holds the same bytes as HF tensor `of`.

    Forward it is written from `of` where the source lacks it, and where it is present its bytes have to equal those of
    `of`. In reverse it is left out, unless it differs: training may have untied it. With `again` false MindFormers'
    model has no such tensor, and forward it is left out too.
    """

    hf: str
    ms: str
    of: str
    shape: str | None = None
    again: bool = True


@dataclass(frozen=True)
class Copy:
    """HF tensor `hf` is HF tensor `of` a second time, and MindFormers has no such tensor, for it shares `of`.

    Forward it is left out where the source has it; in reverse it is written from `of`, unless a rule gives it.
    """

    hf: str
    of: str
    why: str


@dataclass(frozen=True)
class Drop:
    """Tensors of one side that the other does not have, and why.

    With `beside` a tensor is dropped only where one of those is there too, for the same holes: what looks alike but is
    something else, a layer more than the config says, is not lost in silence. With `same` it has to hold the bytes of
    that HF tensor.
    """

    why: str
    hf: tuple[str, ...] = ()
    ms: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    same: str = ""


Statement = Rule | Tied | Copy | Drop
