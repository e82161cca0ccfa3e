"""One table of dtypes in the three worlds: safetensors, MindSpore's checkpoint, NumPy.

Sources: the safetensors format's dtype list; MindSpore's `tensor_type` strings as its loader accepts them (MindSpore
2.10: it writes complex and float8 records silently, and then refuses the whole file).
"""

from __future__ import annotations

from msgspec import Struct

from ..errors import UnsupportedError, UsageError
from ..text import quote, setting

FLOAT, INTEGER, OPAQUE = "float", "integer", "opaque"


class DType(Struct, frozen=True, cache_hash=True):
    """One element type.

    Attributes:
        name: its name in safetensors (or MindSpore's, where safetensors has none).
        itemsize: bytes of one element.
        kind: `float` can be cast; `integer` (booleans too) only where a table says so, `opaque` never.
        mindspore: MindSpore's `tensor_type`, `None` where its loader refuses the type.
        numpy: the name NumPy or ml_dtypes knows it by, `None` where there is none.
        safetensors: whether a safetensors file can hold it.
    """

    name: str
    itemsize: int
    kind: str
    mindspore: str | None
    numpy: str | None
    safetensors: bool = True

    def __str__(self) -> str:
        return self.name


#: All dtypes of all formats.
DTYPES = (
    DType("BOOL", 1, INTEGER, "Bool", "bool"),
    DType("U8", 1, INTEGER, "UInt8", "uint8"),
    DType("I8", 1, INTEGER, "Int8", "int8"),
    DType("U16", 2, INTEGER, "UInt16", "uint16"),
    DType("I16", 2, INTEGER, "Int16", "int16"),
    DType("U32", 4, INTEGER, "UInt32", "uint32"),
    DType("I32", 4, INTEGER, "Int32", "int32"),
    DType("U64", 8, INTEGER, "UInt64", "uint64"),
    DType("I64", 8, INTEGER, "Int64", "int64"),
    DType("F16", 2, FLOAT, "Float16", "float16"),
    DType("BF16", 2, FLOAT, "BFloat16", "bfloat16"),
    DType("F32", 4, FLOAT, "Float32", "float32"),
    DType("F64", 8, FLOAT, "Float64", "float64"),
    DType("F8_E4M3", 1, OPAQUE, None, "float8_e4m3fn"),
    DType("F8_E5M2", 1, OPAQUE, None, "float8_e5m2"),
    DType("F8_E8M0", 1, OPAQUE, None, "float8_e8m0fnu"),
    DType("C64", 8, OPAQUE, None, "complex64"),
    # MindSpore keeps qint4x2 as one byte an element, and append_dict's strings as UTF-32-LE characters.
    DType("Int4", 1, OPAQUE, "Int4", None, safetensors=False),
    DType("str", 4, OPAQUE, "str", None, safetensors=False),
)

_BY_NAME = {d.name: d for d in DTYPES}
_BY_MINDSPORE = {d.mindspore: d for d in DTYPES if d.mindspore}

BF16, F16, F32, F64 = (_BY_NAME[n] for n in ("BF16", "F16", "F32", "F64"))
F8_E4M3, F8_E8M0, STR = (_BY_NAME[n] for n in ("F8_E4M3", "F8_E8M0", "str"))
U8, I8, I32, I64 = (_BY_NAME[n] for n in ("U8", "I8", "I32", "I64"))

#: The dtypes that tensors can be cast to, by the word that names them.
TARGETS = {"fp32": F32, "fp16": F16, "bf16": BF16}

#: How `torch_dtype` of a config.json spells the targets.
TORCH_NAMES = {F32: "float32", F16: "float16", BF16: "bfloat16"}


def from_safetensors(name: str, where: str) -> DType:
    """Return the dtype of this name in a safetensors header; `where` begins the error message.

    Raises:
        UnsupportedError: an unknown name, or a dtype smaller than a byte.
    """
    dtype = _BY_NAME.get(name)
    if dtype is None or not dtype.safetensors:
        known = ", ".join(d.name for d in DTYPES if d.safetensors)
        raise UnsupportedError(f"{where} has dtype {quote(name)}, which streamconv cannot read; it can read {known}")
    return dtype


def from_mindspore(name: str, where: str) -> DType:
    """Return the dtype that MindSpore's `tensor_type` string names (case-sensitive); `where` begins the error message.

    Raises:
        UnsupportedError: an unknown type, or one that MindSpore writes but refuses to load (float8, complex).
    """
    dtype = _BY_MINDSPORE.get(name)
    if dtype is None:
        known = ", ".join(_BY_MINDSPORE)
        raise UnsupportedError(
            f"{where} has type {quote(name)}, which MindSpore itself refuses to load; it loads {known}"
        )
    return dtype


def target(word: str | None) -> DType | None:
    """Return the dtype to cast to, `None` for `None`.

    Args:
        word: a key of `TARGETS`, or the same dtype as config.json spells it, such as `bfloat16`.

    Raises:
        UsageError: another word.
    """
    if word is None:
        return None
    known = {**TARGETS, **{name: dtype for dtype, name in TORCH_NAMES.items()}}
    if word not in known:
        raise UsageError(f"unknown value for {setting('dtype')}: {quote(word)}", f"choose one of {', '.join(known)}")
    return known[word]
