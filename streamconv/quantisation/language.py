"""The language that quantisation methods are written in.

A method is a table of layouts. A layout says which tensors a quantised weight consists of, by the endings of their
names and by their dtypes, and what their elements mean; sizes come from the shapes, and from what the config states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from msgspec import Struct, field

from ..tensors.dtypes import BF16, F16, F32, DType
from ..tensors.quantised import Block, Code

#: What a config says about quantisation, or a file next to the weights.
Entry = Mapping[str, object]

FLOATS = (F32, BF16, F16)


class Stated(NamedTuple):
    """What a config says about one weight: 0 and `None` where it says nothing.

    Attributes:
        bits: of a code.
        group: how many codes in a row share a scale.
        block: rows and columns of codes that do.
        pads: codes do not cross words, where the number of words does not tell.
        type: what it calls the way in which the weight is stored.
        has_zeros: there have to be zero points.
    """

    bits: int = 0
    group: int = 0
    block: Block | None = None
    pads: bool = False
    type: str = ""
    has_zeros: bool = False


#: What a config says about the weight of a module, by the module's name.
ByModule = Callable[[str], Stated]


class Part(Struct, frozen=True, dict=True):
    """A tensor that a quantised weight has next to its codes.

    Attributes:
        ending: of its name; alternatives between `|`. It takes the place of the codes' ending.
        dtypes: that it may have.
        optional: not every weight has it.
        is_common: models have tensors of their own that are called so.
    """

    ending: str
    dtypes: tuple[DType, ...]
    optional: bool = False
    is_common: bool = False

    @cached_property
    def endings(self) -> Sequence[str]:
        """The alternatives."""
        return self.ending.split("|")


class Factor(Part, frozen=True):
    """What the codes are multiplied with.

    Attributes:
        group: how many codes along the inputs share one, where the format fixes it.
        block: rows and columns of codes that share one where no config says.
        divides: the codes are divided by it.
        of_inputs: it has one number for each input, [in].
    """

    group: int = 0
    block: Block | None = None
    divides: bool = False
    of_inputs: bool = False


class Zeros(Part, frozen=True):
    """The zero points of the first factor's blocks.

    Attributes:
        code: what packed ones stand for, of as many bits as the weight's codes; `None` if they are numbers.
        axis: along which axis of the blocks they are packed.
        interleaved: as of `tensors.quantised.Packing`.
    """

    code: Callable[[int], Code] | None = None
    axis: int = 1
    interleaved: bool = False


class Layout(Struct, frozen=True, dict=True):
    """How a quantised weight is stored.

    Attributes:
        title: what it is, for people; `{bits}` is the number of bits.
        codes: ending and dtypes of the tensor that holds the codes.
        code: what a code of so many bits stands for.
        factors: what codes are multiplied with: all the factors first, then the code.
        bits: of a code; 0 if the shapes tell.
        word: bits of the words that codes are packed in; 0 if each has its own element.
        axis: along which codes are packed, 0 for rows and 1 for columns of the matrix as it is stored.
        interleaved: how codes lie in a word, see `tensors.quantised.Packing`.
        zeros: the zero points.
        groups: to which group each input belongs.
        shape: a tensor that holds the shape.
        has_block_axis: the codes have an axis more than their scales, for the words of a block.
        weight: what takes the place of the codes' ending in the name of the weight.
        inputs: axis of the inputs in the matrix as it is stored: 0 where that is [in, out].
        swapped: the weight has the last two axes of what is stored in the other order.
        types: it is only for weights that the config calls so, where there are any.
        source: where this is written down.
    """

    title: str
    codes: Part
    code: Callable[[int], Code]
    factors: tuple[Factor, ...]
    bits: int = 8
    word: int = 0
    axis: int = 1
    interleaved: bool = False
    zeros: Zeros | None = None
    groups: Part | None = None
    shape: Part | None = None
    has_block_axis: bool = False
    weight: str = ".weight"
    inputs: int = 1
    swapped: bool = False
    types: tuple[str, ...] = ()
    source: str = ""

    @cached_property
    def parts(self) -> Sequence[Part]:
        """All tensors next to the codes."""
        return [*self.factors, *(part for part in (self.zeros, self.groups, self.shape) if part is not None)]


def _nothing(entry: Entry) -> ByModule:
    return lambda module: Stated()


def _accepts(entry: Entry) -> str:
    return ""


class Method(Struct, frozen=True):
    """A way to quantise models, as one family of tools does it.

    Attributes:
        name: as `quant_method` of a config spells it.
        title: for people.
        tools: what writes it.
        layouts: how its weights are stored, given what the config says, those that need most tensors first.
        stated: what the config says about the weight of each module.
        refuses: why a model with this config cannot be read; empty if it can.
        files: names of files next to the weights that describe it, as patterns.
        dropped: endings of the names of tensors that are of no use without quantisation -> what they are.
        differs: where a library's own dequantiser gives other bits, and why.
    """

    name: str
    title: str
    tools: tuple[str, ...]
    layouts: Callable[[Entry], Sequence[Layout]]
    stated: Callable[[Entry], ByModule] = _nothing
    refuses: Callable[[Entry], str] = _accepts
    files: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    differs: tuple[str, ...] = ()


class Description(NamedTuple):
    """What says how a source is quantised.

    Attributes:
        name: of the method, as it is spelled there.
        method: the method, `None` if it is not read.
        entry: all that is said.
        where: what says it, for messages: `config.json: quantization_config`, or a file.
    """

    name: str
    method: Method | None
    entry: Entry
    where: str


def block(value: object) -> Block | None:
    """Return rows and columns of a block as a config states them, `None` if it does not."""
    match value:
        case [int(rows), int(columns)] if min(rows, columns) > 0 and not isinstance(rows, bool):
            return rows, columns
    return None


def e4m3(bits: int) -> Code:
    """Return FP8: sign, 4 bits of exponent, 3 of mantissa (OCP 8-bit Floating Point, E4M3)."""
    return Code("e4m3", 8)


def e2m1(bits: int) -> Code:
    """Return FP4 (OCP Microscaling Formats 1.0, E2M1)."""
    return Code("e2m1", 4)


def signed(bits: int) -> Code:
    """Return whole numbers in two's complement."""
    return Code("signed", bits)


def unsigned(bits: int) -> Code:
    """Return whole numbers from 0."""
    return Code("unsigned", bits)


def centred(bits: int) -> Code:
    """Return whole numbers that are stored with half of their range added."""
    return Code("unsigned", bits, 1 << (bits - 1))


def following(bits: int) -> Code:
    """Return whole numbers that are stored less one, and wrap around."""
    return Code("following", bits)
