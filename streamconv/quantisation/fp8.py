"""FP8 with scales: DeepSeek's blocks and powers of two, Qwen's, Ministral's, AutoFP8's; and DeepSeek-V4's FP4."""

from __future__ import annotations

from collections.abc import Sequence

from ..tensors.dtypes import F8_E4M3, F8_E8M0, I8, U8
from ..text import quote
from .language import FLOATS, ByModule, Entry, Factor, Layout, Method, Part, Stated, block, e2m1, e4m3

_BLOCK = (128, 128)

_FP4 = Layout(
    "FP4 (E2M1) with scales that are powers of two",
    Part(".weight", (I8,)),
    e2m1,
    (Factor(".scale", (F8_E8M0,), is_common=True, group=32),),
    bits=4,
    word=8,
    source="DeepSeek-V4, `inference/convert.py`; msmodelslim `decode_fp4`",
)
_MXFP8 = Layout(
    "MXFP8 (E4M3)",
    Part("", (F8_E4M3,)),
    e4m3,
    (Factor("_scale_inv|_scale", (U8,), is_common=True, group=32),),
    weight="",
    source="OCP Microscaling Formats 1.0; transformers `integrations/finegrained_fp8.py`",
)


def _fp8(codes: str, scale: str, source: str, is_common: bool = True) -> Layout:
    """Return FP8 with a scale for each block, by how the names of codes and scales end."""
    factor = Factor(scale, (*FLOATS, F8_E8M0, U8), is_common=is_common, block=_BLOCK)
    return Layout("FP8 (E4M3)", Part(codes, (F8_E4M3,)), e4m3, (factor,), weight=codes, source=source)


_FP8 = _fp8("", "_scale_inv", "DeepSeek-V3, `inference/fp8_cast_bf16.py`", is_common=False)
_FP8_TENSOR = _fp8("", "_scale", "AutoFP8")
_FP8_SCALE = _fp8(".weight", ".scale", "DeepSeek-V4, `inference/convert.py`; msmodelslim `decode_fp8`")


def _layouts(entry: Entry) -> Sequence[Layout]:
    return _FP4, _MXFP8, _FP8, _FP8_TENSOR, _FP8_SCALE


def _stated(entry: Entry) -> ByModule:
    found = Stated(block=block(entry.get("weight_block_size")))
    return lambda module: found


def _refuses(entry: Entry) -> str:
    stated = entry.get("weight_block_size")
    if stated is None or block(stated):
        return ""
    return f"weight_block_size is {quote(stated)}, not [rows, columns]"


METHOD = Method(
    "fp8",
    "FP8 and DeepSeek-V4's FP4",
    ("DeepSeek", "Qwen", "Mistral", "AutoFP8", "transformers"),
    _layouts,
    _stated,
    _refuses,
)
