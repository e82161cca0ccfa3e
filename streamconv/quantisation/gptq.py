"""GPTQ: AutoGPTQ's and GPTQModel's files, with 2, 3, 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

from ..tensors.dtypes import BF16, F16, F32, I32
from ..text import quote
from .language import ByModule, Entry, Factor, Layout, Method, Part, Stated, Zeros, following, unsigned

_V1, _V2 = "gptq", "gptq_v2"


def _layout(version: str, is_in_order: bool) -> Layout:
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
        groups=Part(".g_idx", (I32,), optional=is_in_order),
        inputs=0,
        swapped=True,
        source="GPTQModel, `utils/model_dequant.py`, `nn_modules/qlinear/`",
    )


def _layouts(entry: Entry) -> Sequence[Layout]:
    return (_layout(_version(entry), entry.get("desc_act") is False),)


def _version(entry: Entry) -> str:
    """Return what a config calls the format, under either of its names."""
    return str(entry.get("checkpoint_format") or entry.get("format") or _V1)


def _stated(entry: Entry) -> ByModule:
    # `dynamic` gives some modules other bits and groups: the shapes and g_idx tell those.
    bits, size = entry.get("bits"), entry.get("group_size")
    found = Stated(bits if isinstance(bits, int) else 0, size if isinstance(size, int) and size > 0 else 0)
    return lambda module: found


def _refuses(entry: Entry) -> str:
    if not entry:
        return "no config says whether its zero points are stored less one (checkpoint_format gptq) or not (gptq_v2)"
    stated = _version(entry)
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
