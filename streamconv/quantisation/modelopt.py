"""NVIDIA's ModelOpt (TensorRT Model Optimizer): FP8, MXFP8, NVFP4, MXFP4 and INT4 with AWQ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..tensors.dtypes import BF16, F8_E4M3, F16, F32, U8
from ..text import quote
from .language import ByModule, Entry, Factor, Layout, Method, Part, Stated, e2m1, e4m3, signed

_SOURCE = "nvidia-modelopt 0.47, `torch/export/`"
_WEIGHT, _SCALE = ".weight", ".weight_scale"

_NVFP4 = Layout(
    "NVFP4 (E2M1)",
    Part(_WEIGHT, (U8,)),
    e2m1,
    (Factor(_SCALE, (F8_E4M3,), group=16), Factor(".weight_scale_2", (F32,))),
    bits=4,
    word=8,
    source=_SOURCE,
)
_MXFP4 = Layout(
    "MXFP4 (E2M1)", Part(_WEIGHT, (U8,)), e2m1, (Factor(_SCALE, (U8,), group=32),), bits=4, word=8, source=_SOURCE
)
_INT4 = Layout(
    "INT4, two rows in a byte",
    Part(_WEIGHT, (U8,)),
    signed,
    (Factor(_SCALE, (F32,)), Factor(".pre_quant_scale", (BF16, F16, F32), optional=True, of_inputs=True)),
    bits=4,
    word=8,
    axis=0,
    source=_SOURCE,
)
_MXFP8 = Layout("MXFP8 (E4M3)", Part(_WEIGHT, (F8_E4M3,)), e4m3, (Factor(_SCALE, (U8,), group=32),), source=_SOURCE)
_FP8 = Layout(
    "FP8 (E4M3)", Part(_WEIGHT, (F8_E4M3,)), e4m3, (Factor(_SCALE, (F32,), block=(128, 128)),), source=_SOURCE
)

_READ = {
    *("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8", "MXFP4", "NVFP4", "W4A16_NVFP4", "W4A16_AWQ"),
    "MIXED_PRECISION",
}


def _layouts(entry: Entry) -> Sequence[Layout]:
    return _NVFP4, _MXFP4, _INT4, _MXFP8, _FP8


def _inner(entry: Entry) -> Mapping[str, object]:
    """Return what is said: hf_quant_config.json has it one level deeper."""
    inner = entry.get("quantization")
    return inner if isinstance(inner, dict) else entry


def _stated(entry: Entry) -> ByModule:
    size = _inner(entry).get("group_size")
    found = Stated(group=size if isinstance(size, int) and size > 0 else 0)
    return lambda module: found


def _refuses(entry: Entry) -> str:
    algorithm = _inner(entry).get("quant_algo")
    layers = _inner(entry).get("quantized_layers")
    every = [algorithm]
    if isinstance(layers, dict):
        every += [layer.get("quant_algo") for layer in layers.values() if isinstance(layer, dict)]
    unread = [str(one) for one in every if one is not None and str(one).upper() not in _READ]
    return f"its quant_algo {quote(unread[0])} is not read" if unread else ""


METHOD = Method(
    "modelopt",
    "NVIDIA ModelOpt",
    ("nvidia-modelopt",),
    _layouts,
    _stated,
    _refuses,
    files=("hf_quant_config.json",),
    differs=("FP8: ModelOpt's own dequantize(bfloat16) rounds the scale to BF16 first: a fifth of the numbers differ",),
)
