"""Quantised tensors: codes of few bits, what they stand for, and what they are multiplied by.

One description serves every method: an element is (code - zero point) * factors. All parts are tensors on disk; how
their bits are read follows from their dtypes, and which of their elements belong to a code from their blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from .extents import Extent
from .grids import Box
from .refs import TensorRef

Block = tuple[int, int]
"""Rows and columns of a matrix of codes that share one element of another tensor."""


_Item = TypeVar("_Item")


def swapped(sides: tuple[_Item, ...]) -> tuple[_Item, ...]:
    """Return a shape or a box of a stack of matrices where rows and columns have changed places."""
    return (*sides[:-2], sides[-1], sides[-2])


class Code(Struct, frozen=True):
    """What the bits of a code stand for.

    Attributes:
        kind: `e4m3`, `e2m1` (OCP formats), `signed` (two's complement), `unsigned`, or `following`: the number after
            an unsigned one, as GPTQ v1 stores zero points less one.
        bits: of a code.
        bias: what is taken from an unsigned number.
    """

    kind: str
    bits: int
    bias: int = 0


@cache
def _unit(bits: int, word: int) -> tuple[int, int]:
    shared = math.lcm(bits, word)
    return shared // bits, shared // word


class Packing(Struct, frozen=True):
    """How codes lie in words along the rows or columns of a matrix. Words are little-endian, and hold low bits first.

    Attributes:
        bits: of a code.
        word: bits of a word: 8 or 32.
        axis: 0 where the codes of a word stand one below the other, 1 where they stand side by side.
        crosses: codes are one stream of bits and may cross from word to word; otherwise a word has unused bits.
        interleaved: the first half of a word's codes has the even places along the axis, the second half the odd ones.
    """

    bits: int
    word: int
    axis: int
    crosses: bool = True
    interleaved: bool = False

    @property
    def unit(self) -> tuple[int, int]:
        """The codes after which words begin again, and how many words these take."""
        return _unit(self.bits, self.word if self.crosses else self.word // self.bits * self.bits)

    def bit(self, number: int) -> int:
        """Return at which bit of its unit a code begins, by its place along the axis."""
        if self.interleaved:
            number = number // 2 + number % 2 * (self.unit[0] // 2)
        return number * self.bits

    def words(self, count: int) -> int:
        """Return how many words hold `count` codes."""
        if self.crosses:
            return -(-count * self.bits // self.word)
        return -(-count // (self.word // self.bits))

    @property
    def swapped(self) -> Packing:
        """The same where rows and columns have changed places."""
        return replace(self, axis=1 - self.axis)

    def span(self, low: int, high: int, length: int) -> tuple[int, int]:
        """Return the words that hold codes `low` … `high` of `length` along the axis: whole units, but for the last."""
        codes, words = self.unit
        return low // codes * words, min(-(-high // codes) * words, self.words(length))


class Codes(Struct, frozen=True):
    """Codes of a matrix, or of a stack of them, on disk; or numbers as they are.

    Attributes:
        ref: the tensor that holds them, of shape [..., rows, columns] in words.
        shape: [..., rows, columns] of the codes, not packed.
        code: what they stand for, `None` where the tensor's dtype says it: F32, BF16, F16, I8 and F8_E4M3 are numbers,
            F8_E8M0 and U8 powers of two, and of an I64 the low 32 bits are an F32.
        packing: how several share a word, `None` where each has an element of the tensor.
    """

    ref: TensorRef
    shape: tuple[int, ...]
    code: Code | None = None
    packing: Packing | None = None

    @property
    def unit(self) -> Block:
        """How many rows and columns of codes begin with a word."""
        if self.packing is None:
            return 1, 1
        size = self.packing.unit[0]
        return (size, 1) if self.packing.axis == 0 else (1, size)

    @property
    def swapped(self) -> Codes:
        """The same where rows and columns have changed places; those of `ref` have not."""
        return replace(self, shape=swapped(self.shape), packing=self.packing and self.packing.swapped)

    def words(self, box: Box) -> Box:
        """Return which elements of the tensor hold a box of codes: whole units, but for the last."""
        if self.packing is None:
            return box
        axis = len(self.shape) - 2 + self.packing.axis
        return (*box[:axis], self.packing.span(*box[axis], self.shape[axis]), *box[axis + 1 :])

    def start(self, box: Box) -> tuple[int, int]:
        """Return row and column of the first code in these elements."""
        (top, _), (left, _) = box[-2:]
        rows, columns = self.unit
        return top // rows * rows, left // columns * columns


class Blocks(Struct, frozen=True):
    """Numbers that blocks of codes share: factors, or zero points.

    Attributes:
        codes: the numbers, of shape [..., rows, columns] in blocks; a leading axis of one is for all matrices.
        block: rows and columns of codes that share one.
        divides: as a factor, the codes are divided by it.
    """

    codes: Codes
    block: Block
    divides: bool = False

    @property
    def swapped(self) -> Blocks:
        """The same where rows and columns have changed places."""
        return Blocks(self.codes.swapped, (self.block[1], self.block[0]), self.divides)

    def touched(self, box: Box, grouped: int | None) -> Box:
        """Return the blocks that a box of codes touches; all of them along the axis where they are in no order."""
        shape = self.codes.shape
        lead = ((0, 1) if size == 1 else side for side, size in zip(box[:-2], shape, strict=False))
        sides = zip((0, 1), box[-2:], self.block, shape[-2:], strict=True)
        return (
            *lead,
            *((0, n) if axis == grouped else (low // b, (high - 1) // b + 1) for axis, (low, high), b, n in sides),
        )


class Groups(Struct, frozen=True):
    """To which group of blocks each row or column of codes belongs, where they are not in order.

    Attributes:
        ref: an I32 for each row or column; all in order if any of them is negative.
        axis: 0 for rows, 1 for columns.
    """

    ref: TensorRef
    axis: int

    @property
    def swapped(self) -> Groups:
        """The same where rows and columns have changed places."""
        return Groups(self.ref, 1 - self.axis)


class Quantised(Struct, frozen=True):
    """A tensor that is quantised: (codes - zeros) * factors, in float32, rounded once to BF16.

    Attributes:
        method: how it was quantised, for people.
        codes: its codes.
        factors: what they are multiplied with, at least one; several are put together first.
        zeros: their zero points, if they have any.
        groups: which blocks rows or columns belong to, where that is written down.
        stated: a tensor that holds the shape once more, which is checked when the codes are read.
    """

    method: str
    codes: Codes
    factors: tuple[Blocks, ...]
    zeros: Blocks | None = None
    groups: Groups | None = None
    stated: TensorRef | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., rows, columns] of the codes, not packed."""
        return self.codes.shape

    @property
    def swapped(self) -> Quantised:
        """The same where rows and columns have changed places."""
        return replace(
            self,
            codes=self.codes.swapped,
            factors=tuple(factor.swapped for factor in self.factors),
            zeros=self.zeros and self.zeros.swapped,
            groups=self.groups and self.groups.swapped,
        )


class Scheme(Protocol):
    """How weights of one kind are quantised: the same codes, blocks and shapes."""

    @property
    def title(self) -> str:
        """How it is called, for people."""

    @property
    def codes_shape(self) -> tuple[int, ...]:
        """[..., rows, columns] of the codes, not packed."""

    def quantised(self, tensors: Sequence[TensorRef | None]) -> Quantised:
        """Describe the weight that these tensors stand for."""


class Parts(NamedTuple):
    """What a quantised tensor consists of: one of thousands, described in full only when it is read.

    Attributes:
        scheme: how it is quantised, as others are.
        tensors: the tensors on disk, the codes first; `None` for what others have and this one has not.
    """

    scheme: Scheme
    tensors: tuple[TensorRef | None, ...]

    def refs(self) -> Iterator[TensorRef]:
        """Yield the tensors on disk that it consists of, the codes first."""
        return (ref for ref in self.tensors if ref is not None)

    def described(self) -> Quantised:
        """Return the description that it is read by."""
        return self.scheme.quantised(self.tensors)


class QuantisedRef(TensorRef, frozen=True, kw_only=True):
    """A quantised tensor, or a part of one, under the name and with the shape of the tensor that it stands for.

    Attributes:
        parts: what it consists of on disk.
        box: which part of them it is; all where empty. Leading axes of one that `shape` lacks are left out.
        order: its axis i is axis `order[i]` of that part; empty where they are in order.
    """

    parts: Parts
    box: Box = ()
    order: tuple[int, ...] = ()

    def places(self) -> Iterator[Extent]:
        """Yield all extents that are read for it."""
        for ref in self.parts.refs():
            yield from ref.places()
