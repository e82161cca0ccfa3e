"""Torch's files (`.bin`, `.pt`, `.pth`): a zip archive of a pickle that describes tensors, and of their storages.

Source: torch 2.13, `torch/_utils.py`, and files that it wrote. A tensor is a call of
`_rebuild_tensor_v2(storage, offset, size, strides, …)`; a parameter is a call around that; dtypes that have no
storage type of their own come as `_rebuild_tensor_v3(UntypedStorage, …, dtype)`. Nothing is called or imported:
`pickles` only states what would be. Ascend's torch_npu and torch's XLA write the tensors of their devices with calls of
their own around the same bytes, which are those of the CPU's copy.

One state dict is read: the dictionary itself, or the one under `model`, `state_dict`, `module` or `model_state_dict`
if it holds the tensors. All else (optimizers, epochs, dictionaries in the state dict) is listed as ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import SourceError, UnsupportedError
from ..tensors import dtypes
from ..tensors.extents import Extent, SourceFile
from ..tensors.refs import TensorRef
from ..tensors.strides import cutout, last_element
from ..text import quote
from . import zips
from .header_room import HeaderRoom
from .headers import DOWNLOAD_AGAIN, MAX_RANK, is_unicode, opened, shape_nbytes
from .pickle_machine import Call, Name, Pairs, Reference
from .shards import listing
from .torch_archive import Archive, read_archive

#: Storage types with the dtype of their elements, and dtypes that come with an untyped storage: torch's names.
TYPED = {
    "torch.FloatStorage": "F32",
    "torch.DoubleStorage": "F64",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.ComplexFloatStorage": "C64",
}
UNTYPED = {
    "torch.uint16": "U16",
    "torch.uint32": "U32",
    "torch.uint64": "U64",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e8m0fnu": "F8_E8M0",
}
UNTYPED_STORAGE = "torch.storage.UntypedStorage"
REBUILD, REBUILD_UNTYPED = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"

# Calls around a tensor, which is their first argument.
_AROUND = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_SUBCLASS = "torch._tensor._rebuild_from_type_v2"
# A tensor of a device without storages: the CPU's copy, and the dtype that it has anyway.
_MOVED = "torch._utils._rebuild_device_tensor_from_cpu_tensor"
# torch_npu 2.x. The seventh argument says how the NPU arranges the tensor in its own memory (True, an int or a Format).
_NPU, _NPU_FORMAT = "torch_npu.utils.storage._rebuild_npu_tensor", "torch_npu.npu._format.Format"
# Arguments of a rebuilding call: how many there are at least, and the place of the dtype and of the metadata.
_REBUILDS = {
    "torch._utils._rebuild_tensor": (4, None, 4),
    REBUILD: (6, None, 6),
    REBUILD_UNTYPED: (7, 6, 7),
    _NPU: (7, None, 7),
}
# Allowed by torch.load(weights_only=True) too, and not tensors. A training configuration names dtypes.
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
_SAFETENSORS = ("F64", "F32", "F16", "BF16", "C128", "C64", "I64", "I32", "I16", "I8", "U8", "BOOL")
_OF_DTYPE = {f"torch.{dtype}": name for dtype, name in zip(_DTYPES, _SAFETENSORS, strict=True)}
_INERT = {
    "torch.Size",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.device",
    "collections.Counter",
    *(f"torch.{dtype}" for dtype in _DTYPES),
    _NPU_FORMAT,
    "_codecs.encode",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "bytearray", "complex")),
}
_ALLOWED = frozenset({*TYPED, *UNTYPED, UNTYPED_STORAGE, *_AROUND, _SUBCLASS, _MOVED, *_REBUILDS, *_INERT})

# Real files have two at most, around a parameter of a subclass.
_MOST_AROUND = 4

_ROOTS = ("model", "state_dict", "module", "model_state_dict")
# Characters of a key that names no tensor: the same long text may be a key a million times.
_SHOWN = 160


def read(path: Path, header_room: HeaderRoom) -> tuple[SourceFile, dict[str, TensorRef], dict[str, str]]:
    """Return the file, its tensors by name in the order of their bytes, and why all else in it is ignored.

    Tensor bytes are not read.

    Args:
        path: the file.
        header_room: bytes that zip directory and pickle may have together; longer ones are refused unread.

    Raises:
        SourceError: unreadable, truncated, damaged or ambiguous.
        BudgetError: directory and pickle are longer than `header_room` allows.
        UnsupportedError: an old format, TorchScript, a pickle that wants more than tensors, a dtype or a kind of
            tensor that streamconv does not know.
    """
    with opened(path) as (descriptor, file):
        archive, value = read_archive(descriptor, file, _ALLOWED, header_room)
    ignored: dict[str, str] = {}
    refs = _tensors(archive, _state_dict(file, value, ignored), ignored)
    return file, {ref.name: ref for ref in sorted(refs, key=lambda ref: ref.extents[0].offset)}, ignored


def _state_dict(file: SourceFile, value: object, ignored: dict[str, str]) -> Pairs:
    """Return the dictionary of the model's tensors; add what lies next to it to `ignored`."""
    name = quote(file.path.name)
    if not isinstance(value, Pairs):
        raise UnsupportedError(f"{name} holds no dictionary", "torch.save the state_dict() of the model")
    known = [(key, one) for key, one in value.pairs if isinstance(key, str) and key in _ROOTS]
    roots = known if len(known) > len(_ROOTS) else [(key, one) for key, one in known if _holds_tensors(one)]
    if len(roots) > 1:
        raise SourceError(
            f"{name} holds {len(roots)} state dicts, {listing([key for key, _ in roots])}: it is ambiguous which one "
            "is the model",
            "load the file with torch and save the one to convert alone",
        )
    for chosen, state in roots:
        ignored.update({_label(file, key): "not part of the model" for key, _ in value.pairs if key is not chosen})
        if isinstance(state, Pairs):
            return state
    if known and not _holds_tensors(value):
        raise UnsupportedError(
            f"{name} holds no tensors under {listing([key for key, _ in known])}, where the model should be",
            "load the file with torch and save the state dict alone",
        )
    if not _holds_tensors(value):
        keys = listing([key for key, _ in value.pairs if isinstance(key, str)]) or "nothing"
        raise UnsupportedError(
            f"{name} holds no state dict, but {keys}: tensors are read from the dictionary itself, or from the one "
            f"under {', '.join(_ROOTS)}",
            "load the file with torch and save the state dict alone",
        )
    return value


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Pairs) and any(_rebuild(one) for _, one in value.pairs)


def _label(file: SourceFile, key: object) -> str:
    shown = key[:_SHOWN] if isinstance(key, str) else key if isinstance(key, int | float) else "a key of another type"
    return f"{file.path.name}: {shown}"


def _rebuild(value: object) -> Call | None:
    """Return the rebuilding call of a tensor, from inside calls around it; `None` for other values."""
    for _ in range(_MOST_AROUND):
        match value:
            case Call(function) if function in _REBUILDS:
                return value
            case Call(function, [inner, *_]) if function in _AROUND:
                value = inner
            case Call(function, [inner, Name(dtype), str(), *_]) if function == _MOVED and _has_dtype(inner, dtype):
                value = inner
            case Call(function, [Name(inner), _, tuple(arguments), _]) if function == _SUBCLASS:
                value = Call(inner, arguments)
            case _:
                return None
    return None


def _has_dtype(value: object, dtype: str) -> bool:
    """Return whether a tensor is of a dtype already, so that nothing is cast when it is loaded."""
    match value:
        case Call(_, [Reference(id=("storage", Name(kind), *_)), _, _, _, _, _, Name(its), *_]):
            return kind == UNTYPED_STORAGE and its == dtype
        case Call(_, [Reference(id=("storage", Name(kind), *_)), *_]):
            return TYPED.get(kind, "") == _OF_DTYPE.get(dtype)
    return False


def _tensors(archive: Archive, state: Pairs, ignored: dict[str, str]) -> Iterator[TensorRef]:
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    seen: set[str] = set()
    name = quote(archive.file.path.name)
    for key, value in state.pairs:
        call = _rebuild(value)
        if call is None:
            what = "a dictionary inside the state dict" if isinstance(value, Pairs) else "not a tensor"
            ignored[_label(archive.file, key)] = what
            continue
        if isinstance(key, str) and key in seen:
            raise SourceError(f"{name} has tensor {quote(key)} twice: it is ambiguous which one is meant")
        if not isinstance(key, str) or not is_unicode(key):
            raise SourceError(
                f"{name} has a tensor whose name is not Unicode text", "load the file with torch and rename the tensor"
            )
        seen.add(key)
        yield _tensor(archive, key, call, shapes)


def _tensor(archive: Archive, name: str, call: Call, shapes: dict[tuple[int, ...], tuple[int, ...]]) -> TensorRef:
    where = f"{quote(archive.file.path.name)}: tensor {quote(name)}"
    least, dtype_at, metadata_at = _REBUILDS[call.function]
    arguments = call.arguments
    if len(arguments) < least:
        raise _broken(where, "is described by too few values")
    if any(one is not None and not (isinstance(one, Pairs) and not one.pairs) for one in arguments[metadata_at:]):
        raise UnsupportedError(
            f"{where} is negated or conjugated lazily, by a flag",
            "load the file with torch, call resolve_neg() and resolve_conj() on the tensor, and save it again",
        )
    dtype, entry = _storage(archive, arguments[0], None if dtype_at is None else arguments[dtype_at], where)
    offset, shape, strides = _number(arguments[1], where), _numbers(arguments[2], where), _numbers(arguments[3], where)
    if len(shape) != len(strides):
        raise _broken(where, f"has {len(shape)} dimensions and {len(strides)} strides")
    shape = shapes.setdefault(shape, shape)
    begin = offset * dtype.itemsize
    if not shape_nbytes(shape, dtype, where):
        return TensorRef(name, dtype, shape, (Extent(archive.file, entry.begin, 0),))
    end = begin + (last_element(shape, strides) + 1) * dtype.itemsize
    if end > entry.size:
        raise _broken(where, f"ends at byte {end} of its storage, which has {entry.size}")
    cut = cutout(shape, strides, where)
    nbytes = shape_nbytes(cut.shape if cut else shape, dtype, where)
    # The array that a slice is cut out of may end beyond the storage, with elements of no tensor.
    extent = Extent(archive.file, entry.begin + begin, min(nbytes, entry.size - begin))
    return TensorRef(name, dtype, shape, (extent,), cut)


def _storage(archive: Archive, storage: object, dtype: object, where: str) -> tuple[dtypes.DType, zips.Entry]:
    """Return the dtype of a tensor and the entry that holds its storage."""
    match storage:
        case Reference(id=("storage", Name(kind), str(key), str(), int(count))):
            pass
        case _:
            raise _broken(where, "refers to something that is not a storage")
    if kind == UNTYPED_STORAGE:
        known, width = UNTYPED.get(dtype.text, "") if isinstance(dtype, Name) else "", 1
    else:
        known = TYPED.get(kind, "") if dtype is None else ""
        width = dtypes.from_safetensors(known, where).itemsize if known else 1
    if not known:
        raise _broken(where, "has no dtype that fits its storage")
    entry = archive.entries.get(f"{archive.root}/data/{key}")
    if entry is None:
        raise _broken(where, f"lies in storage {quote(key)}, which is not in the file")
    if entry.size != count * width:
        raise _broken(where, f"lies in a storage of {count} elements, and its entry has {entry.size} bytes")
    return dtypes.from_safetensors(known, where), entry


def _numbers(value: object, where: str) -> tuple[int, ...]:
    match value:
        case Call(function="torch.Size", arguments=(tuple(inner),)):
            value = inner
    if not isinstance(value, tuple) or len(value) > MAX_RANK:
        raise _broken(where, f"has a shape or strides that are not a tuple of at most {MAX_RANK}")
    return tuple(_number(one, where) for one in value)


def _number(value: object, where: str) -> int:
    # `type is int` because `True` is an `int` in Python. Numbers above 2^63 are damage, and may be too long to print.
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise _broken(where, "has a shape, stride or offset that is not a whole number from 0 up")
    return value


def _broken(where: str, what: str) -> SourceError:
    return SourceError(f"{where} {what}: the file is damaged", DOWNLOAD_AGAIN)
