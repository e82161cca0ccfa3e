"""GPTQ: AutoGPTQ's and GPTQModel's files, with 2, 3, 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

from ..tensors.dtypes import BF16, F16, F32, I32
from ..text import quote
from .language import ByModule, Entry, Factor, Layout, Method, Part, Stated, Zeros, following, unsigned

_V1, _V2 = "gptq", "gptq_v2"


def _layout(version: str) -> Layout:
    zero = following if version == _V1 else unsigned
    return Layout(
        "GPTQ, {bits} bits",
        Part(".qweight", (I32,)),
        unsigned,
        (Factor(".scales", (F16, BF16, F32)),),
        bits=0,
        word=32,
        axis=0,
        zeros=Zeros(".qzeros", (I32,), code=zero, axis=1),
        groups=Part(".g_idx", (I32,)),
        inputs=0,
        swapped=True,
        source="GPTQModel, `utils/model_dequant.py`, `nn_modules/qlinear/`",
    )


def _layouts(entry: Entry) -> Sequence[Layout]:
    return (_layout(str(entry.get("checkpoint_format", _V1))),)


def _stated(entry: Entry) -> ByModule:
    # `dynamic` gives some modules other bits and groups: the shapes and g_idx tell those.
    size = entry.get("group_size")
    found = Stated(group=size if isinstance(size, int) and size > 0 else 0)
    return lambda module: found


def _refuses(entry: Entry) -> str:
    if not entry:
        return "no config says whether its zero points are stored less one (checkpoint_format gptq) or not (gptq_v2)"
    stated = entry.get("checkpoint_format", _V1)
    return "" if stated in (_V1, _V2) else f"its checkpoint_format {quote(stated)} is not read"


METHOD = Method(
    "gptq",
    "GPTQ",
    ("AutoGPTQ", "GPTQModel"),
    _layouts,
    _stated,
    _refuses,
    files=("quantize_config.json",),
    differs=("scales in F16: the result is BF16, which has three bits less",),
)
