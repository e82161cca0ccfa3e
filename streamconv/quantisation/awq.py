"""AWQ: AutoAWQ's files in the gemm version, with 4 bits."""

from __future__ import annotations

from collections.abc import Sequence

from ..tensors.dtypes import BF16, F16, F32, I32
from ..text import quote
from .language import ByModule, Entry, Factor, Layout, Method, Part, Stated, Zeros, unsigned

_GEMM = Layout(
    "AWQ, {bits} bits",
    Part(".qweight", (I32,)),
    unsigned,
    (Factor(".scales", (F16, BF16, F32)),),
    bits=4,
    word=32,
    axis=1,
    interleaved=True,
    zeros=Zeros(".qzeros", (I32,), code=unsigned, axis=1, interleaved=True),
    inputs=0,
    swapped=True,
    source="AutoAWQ, `utils/packing_utils.py`, AWQ_ORDER; compressed-tensors' AutoAWQConverter",
)


def _layouts(entry: Entry) -> Sequence[Layout]:
    return (_GEMM,)


def _stated(entry: Entry) -> ByModule:
    size = entry.get("group_size")
    found = Stated(4, group=size if isinstance(size, int) and size > 0 else 0)
    return lambda module: found


def _refuses(entry: Entry) -> str:
    version, bits = entry.get("version", "gemm"), entry.get("bits", 4)
    if str(version).lower() != "gemm":
        return f"its version {quote(version)} is not read"
    return "" if bits == 4 else f"it has {quote(bits)} bits, and only 4 are read"


METHOD = Method(
    "awq",
    "AWQ",
    ("AutoAWQ",),
    _layouts,
    _stated,
    _refuses,
    differs=("GPTQModel's converter forgets the order of the columns; streamconv agrees with compressed-tensors",),
)
