"""Model families: one table each, and everything that a family's author imports."""

from ..rules.family import Config, Family, Option, Options, Value, spell, whole_number
from ..rules.fused import Fused
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.padding import DropZeros, InsertZeros, Pad, Unpad
from ..rules.statements import Copy, Direction, Drop, Rule, Side, Statement, Tied
from ..rules.transforms import (
    Flatten,
    Identity,
    PerTensor,
    Squeeze,
    ToInteger,
    Transform,
    Transpose,
    Unflatten,
    Unsqueeze,
)
from .registry import choose, families, find, load, recognise
from .registry import families as list  # noqa: A004 - `streamconv.families.list()`

__all__ = [
    "Config",
    "Copy",
    "Deinterleave",
    "Direction",
    "Drop",
    "DropZeros",
    "Family",
    "Flatten",
    "Fused",
    "Identity",
    "InsertZeros",
    "Interleave",
    "Option",
    "Options",
    "Pad",
    "PerTensor",
    "Rule",
    "Side",
    "Squeeze",
    "Statement",
    "Tied",
    "ToInteger",
    "Transform",
    "Transpose",
    "Unflatten",
    "Unpad",
    "Unsqueeze",
    "Value",
    "choose",
    "families",
    "find",
    "list",
    "load",
    "recognise",
    "spell",
    "whole_number",
]
