"""msModelSlim, Huawei's tool for Ascend: what a weight is stands in quant_model_description*.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..tensors.dtypes import F8_E4M3, F32, I8, I64, U8
from ..text import quote
from .language import FLOATS, ByModule, Entry, Factor, Layout, Method, Part, Stated, Zeros, e2m1, e4m3, signed

_SOURCE = "msmodelslim 26.1, `core/quant_service/modelslim_v1/save/ascendv1.py`"
_WEIGHT, _SCALE = ".weight", ".weight_scale"
_OFFSET = Zeros(".weight_offset", FLOATS, optional=True)

_W4A8 = Layout(
    "INT4, two rows in a byte",
    Part(_WEIGHT, (I8,)),
    signed,
    (Factor(_SCALE, FLOATS),),
    bits=4,
    word=8,
    axis=0,
    zeros=_OFFSET,
    types=("W4A8_DYNAMIC",),
    source=_SOURCE,
)
_INT8 = Layout(
    "INT8",
    Part(_WEIGHT, (I8,)),
    signed,
    (Factor(_SCALE, FLOATS),),
    zeros=_OFFSET,
    # Not W4A8_DYNAMIC: with so many rows older versions wrote it, and a second scale, which is not read.
    types=("", "W8A8", "W8A8_DYNAMIC", "W8A8_MIX", "W8A16", "W4A4_DYNAMIC"),
    source=_SOURCE,
)
_STATIC = Layout(
    "INT8 with scales of activations",
    Part(_WEIGHT, (I8,)),
    signed,
    (Factor(".deq_scale", (F32, I64)), Factor(".input_scale", FLOATS, divides=True)),
    source=f"{_SOURCE}; for F16 models deq_scale is the F32's bits in an I64",
)
_MXFP4 = Layout(
    "MXFP4 (E2M1)", Part(_WEIGHT, (U8,)), e2m1, (Factor(_SCALE, (U8,), group=32),), bits=4, word=8, source=_SOURCE
)
_MXFP8 = Layout("MXFP8 (E4M3)", Part(_WEIGHT, (F8_E4M3,)), e4m3, (Factor(_SCALE, (U8,), group=32),), source=_SOURCE)
_FP8 = Layout("FP8 (E4M3)", Part(_WEIGHT, (F8_E4M3,)), e4m3, (Factor(_SCALE, FLOATS),), zeros=_OFFSET, source=_SOURCE)

_READ = {
    *("FLOAT", "W16A16S", "W8A8", "W8A8_DYNAMIC", "W8A8_MIX", "W8A16", "W4A8_DYNAMIC", "W4A4_DYNAMIC"),
    *("WFP8AFP8_DYNAMIC", "W8A8_MXFP8", "W4A8_MXFP", "W4A4_MXFP4", "C8", "FAQuant"),
}
#: What turns or scales the weights themselves: its result is right for its own graph alone.
_SECOND = (".weight_scale_second", ".weight_offset_second")
_ROTATIONS = ("quarot", "flatquant", "spinquant")


def _layouts(entry: Entry) -> Sequence[Layout]:
    return _W4A8, _INT8, _STATIC, _MXFP4, _MXFP8, _FP8


def _stated(entry: Entry) -> ByModule:
    offset = _OFFSET.ending
    return lambda module: Stated(type=str(entry.get(f"{module}{_WEIGHT}", "")), has_zeros=f"{module}{offset}" in entry)


def _keys(value: object, depth: int = 4) -> Iterator[str]:
    if isinstance(value, Mapping) and depth:
        for key, inner in value.items():
            yield str(key).lower()
            yield from _keys(inner, depth - 1)


def _refuses(entry: Entry) -> str:
    for section in ("metadata", "optional"):
        for key in _keys(entry.get(section)):
            if rotation := next((word for word in _ROTATIONS if word in key), ""):
                return f"its weights are rotated ({rotation}): without its own graph they are not the model's"
    if second := next((name for name in entry if str(name).endswith(_SECOND)), ""):
        return f"its weights have a second scale ({quote(second)}): this older W4A8 is not read"
    unread = [str(kind) for name, kind in entry.items() if "." in name and isinstance(kind, str) and kind not in _READ]
    return f"its type {quote(unread[0])} is not read" if unread else ""


METHOD = Method(
    "msmodelslim",
    "msModelSlim",
    ("msModelSlim",),
    _layouts,
    _stated,
    _refuses,
    files=("quant_model_description*.json",),
    dropped={
        ".quant_bias": "for the quantised kernel alone",
        ".input_offset": "zero point of activations",
        ".deq_scale": "for the quantised kernel alone",
        ".scale_bias": "for the quantised kernel alone",
        ".kv_cache_scale": "scale of the K/V cache",
        ".kv_cache_offset": "zero point of the K/V cache",
        **{f".fa_{one}.{what}": "scale of activations" for one in "qkv" for what in ("scale", "offset")},
    },
    differs=("weight_offset is subtracted, as msModelSlim does; vllm-ascend passes it to torch_npu, which adds it",),
)
