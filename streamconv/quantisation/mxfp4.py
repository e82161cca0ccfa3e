"""MXFP4 as gpt-oss has it: stacked experts in blocks, stored with rows and columns swapped."""

from __future__ import annotations

from collections.abc import Sequence

from ..tensors.dtypes import U8
from .language import Entry, Factor, Layout, Method, Part, e2m1

_GPT_OSS = Layout(
    "MXFP4 (E2M1)",
    Part("_blocks", (U8,)),
    e2m1,
    (Factor("_scales", (U8,), group=32),),
    bits=4,
    word=8,
    has_block_axis=True,
    weight="",
    swapped=True,
    source="gpt-oss; transformers `integrations/mxfp4.py`, convert_moe_packed_tensors",
)


def _layouts(entry: Entry) -> Sequence[Layout]:
    return (_GPT_OSS,)


METHOD = Method("mxfp4", "MXFP4 of gpt-oss", ("OpenAI", "transformers"), _layouts)
