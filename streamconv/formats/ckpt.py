"""MindSpore's `.ckpt`: protobuf records one after the other, no header, no footer (MindSpore 2.10, measured).

    Checkpoint  1: Value*           Value  1: tag (the name)  2: TensorProto  3: MapTensorProto
    TensorProto 1: dims (int64)*    2: tensor_type (string)   3: tensor_content (bytes)

- A parameter above 512 MiB is cut by bytes into full records with the same tag, dims and type. The loader
  joins consecutive records of one tag, and takes dims and type from the last; it zero-fills what is missing and
  overflows its heap where there is too much, so the sizes are checked here.
- 0-d has no dims; `[0]` with one item is its older spelling, and `[0]` without bytes loads as a 0-d zero:
  MindSpore cannot hold an empty 1-D tensor. A `str` is UTF-32-LE under dims `[0]`, which the loader does not
  look at.
- `crc_check=True` appends 17 bytes: `crc_num` and the big-endian CRC-32 of all bytes before.
- An encrypted file begins with D8 (AES-GCM), D9 (AES-CBC) or DA (SM4-CBC) and 5E 3A 7F.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct, field

from ..errors import SourceError, UnsupportedError
from ..tensors import dtypes
from ..tensors.extents import Extent, SourceFile
from ..tensors.refs import ChecksumSlot, OutputFile, TensorRef, TensorSpec
from ..text import counted, quote, setting
from .header_room import HeaderRoom
from .headers import DOWNLOAD_AGAIN, MAX_RANK, opened, read_at, read_head, shape_nbytes
from .protobuf import BYTES, VARINT, Buffer, Field, encode_varint
from .specs import checked, place

SLICE_BYTES = 512 << 20
CRC_TAIL_BYTES = 17

_CRC_MARK = b"crc_num"
_MAX_TEXT = 64 << 10
_MAX_DIM = (1 << 31) - 1
_HOST_CACHE_MARK = ".__param_key__"
# What a record costs in memory besides its bytes; without it a file of tiny records would pass.
_RECORD_COST = 64
# Beyond the room records are counted, so that the error can name what would do; of more than these only the bytes are.
_MOST_COUNTED = 1_000_000
_LEAST_RECORD = 8
_ENCRYPTED = {b"\xd8\x5e\x3a\x7f": "AES-GCM", b"\xd9\x5e\x3a\x7f": "AES-CBC", b"\xda\x5e\x3a\x7f": "SM4-CBC"}


class _Record(Struct):
    """One `Value` message, as far as it is read; it begins at byte `begin` of the file."""

    begin: int
    tag: str | None = None
    is_map: bool = False
    dims: list[int] = field(default_factory=list)
    type: str | None = None
    content: tuple[int, int] | None = None


def read(path: Path, header_room: HeaderRoom | None = None) -> tuple[SourceFile, dict[str, TensorRef]]:
    """Return the parameters of a `.ckpt` in file order, slices joined as extents. Tensor bytes are not read.

    Args:
        path: the file.
        header_room: bytes that the record heads (all that is not tensor content) may have in total.

    Raises:
        SourceError: unreadable, truncated, damaged or empty.
        BudgetError: more record heads than `header_room` allows.
        UnsupportedError: encrypted, or a parameter that MindSpore itself does not load from a file.
    """
    with opened(path) as (descriptor, file):
        _refuse_foreign(descriptor, file)
        tail = CRC_TAIL_BYTES if _read_tail(descriptor, file) is not None else 0
        return file, _join(file, _records(Buffer(descriptor, file, file.size - tail), header_room or HeaderRoom()))


def read_crc_tail(path: Path, size: int) -> int | None:
    """Return the CRC-32 that the last 17 of the file's `size` bytes state, `None` without such a tail.

    Raises:
        SourceError: the file cannot be read, or is not `size` bytes long.
    """
    with opened(path) as (descriptor, file):
        if file.size != size:
            raise SourceError(f"{quote(path)} was changed: it has {file.size} bytes, and {size} are expected")
        return _read_tail(descriptor, file)


def _read_tail(descriptor: int, file: SourceFile) -> int | None:
    if file.size < CRC_TAIL_BYTES:
        return None
    tail = read_at(descriptor, file.size - CRC_TAIL_BYTES, CRC_TAIL_BYTES, file)
    return int.from_bytes(tail[len(_CRC_MARK) :], "big") if tail.startswith(_CRC_MARK) else None


def _refuse_foreign(descriptor: int, file: SourceFile) -> None:
    name, head = quote(file.path.name), read_head(descriptor, file, 64)
    if mode := _ENCRYPTED.get(head[:4]):
        raise UnsupportedError(f"{name} is encrypted ({mode})", "decrypt it with MindSpore first: load, then save")


def _records(buffer: Buffer, header_room: HeaderRoom) -> Iterator[_Record]:
    values = (value for value in buffer.fields(0, buffer.end) if value.key == (1, BYTES))
    spent = 0
    for value in values:
        record = _read_value(buffer, value)
        spent += _cost(value, record)
        if spent > header_room.nbytes:
            needed = spent + _cost_of_rest(buffer, value.end, values)
            header_room.check(needed, f"the part of {quote(buffer.file.path.name)} that is not tensor content")
        yield record


def _cost(value: Field, record: _Record) -> int:
    begin, end = record.content or (0, 0)
    return value.end - value.at - (end - begin) + _RECORD_COST


def _cost_of_rest(buffer: Buffer, at: int, values: Iterator[Field]) -> int:
    """Return what all further records cost, from byte `at` on; at most, if there are too many to count."""
    cost = 0
    for value in itertools.islice(values, _MOST_COUNTED):
        cost += _cost(value, _read_value(buffer, value))
        at = value.end
    rest = buffer.end - at
    return cost + (rest + rest // _LEAST_RECORD * _RECORD_COST if next(values, None) else 0)


def _read_value(buffer: Buffer, value: Field) -> _Record:
    record = _Record(value.begin)
    for part in buffer.fields(value.begin, value.end):
        if part.key == (1, BYTES):
            record.tag = _text(buffer, part, "name")
            buffer.near = f"in tensor {quote(record.tag)}"
        elif part.key == (2, BYTES):
            _read_tensor(buffer, part, record)
        elif part.key == (3, BYTES):
            record.is_map = True
    _check_complete(buffer.file, record)
    buffer.near = f"after tensor {quote(record.tag)}"
    return record


def _read_tensor(buffer: Buffer, tensor: Field, record: _Record) -> None:
    for part in buffer.fields(tensor.begin, tensor.end):
        if part.key == (1, VARINT):
            record.dims.append(_signed(part.value))
        elif part.key == (1, BYTES):
            at = part.begin
            while at < part.end and len(record.dims) <= MAX_RANK:
                number, at = buffer.varint(at, part.end)
                record.dims.append(_signed(number))
        elif part.key == (2, BYTES):
            record.type = _text(buffer, part, "type")
        elif part.key == (3, BYTES):
            record.content = part.begin, part.end
        if len(record.dims) > MAX_RANK:
            raise buffer.broken(part.at, f"a tensor has more than {MAX_RANK} dimensions")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _text(buffer: Buffer, part: Field, what: str) -> str:
    if part.end - part.begin > _MAX_TEXT:
        raise buffer.broken(part.at, f"a {what} of {part.end - part.begin} bytes ({_MAX_TEXT} are allowed)")
    try:
        return buffer.take(part.begin, part.end).decode()
    except UnicodeDecodeError as error:
        raise buffer.broken(part.begin + error.start, f"a {what} is not UTF-8") from error


def _check_complete(file: SourceFile, record: _Record) -> None:
    where = f"{quote(file.path.name)}, byte {record.begin}"
    if record.tag is None:
        raise SourceError(f"{where}: a record has no name: the file is damaged", DOWNLOAD_AGAIN)
    if record.is_map:
        raise UnsupportedError(
            f"{where}: {quote(record.tag)} is a map parameter (a hash table), which no other format can hold",
            "remove it from the checkpoint with MindSpore first",
        )
    for value, what in ((record.type, "type"), (record.content, "content")):
        if value is None:
            raise SourceError(f"{where}: tensor {quote(record.tag)} has no {what}: the file is damaged", DOWNLOAD_AGAIN)


def _join(file: SourceFile, records: Iterator[_Record]) -> dict[str, TensorRef]:
    tensors: dict[str, TensorRef] = {}
    for tag, run in itertools.groupby(records, key=lambda record: record.tag or ""):
        slices = list(run)
        if tag in tensors:
            raise SourceError(
                f"{quote(file.path.name)}, byte {slices[0].begin}: "
                f"tensor {quote(tag)} appears again after another tensor; "
                "MindSpore would load its last part only, so it is ambiguous which one is meant"
            )
        tensors[tag] = _tensor(file, tag, slices)
    if not tensors:
        raise SourceError(f"{quote(file.path.name)} holds no tensors")
    return tensors


def _tensor(file: SourceFile, tag: str, slices: Sequence[_Record]) -> TensorRef:
    where = f"{quote(file.path.name)}, byte {slices[0].begin}: tensor {quote(tag)}"
    dtype = [dtypes.from_mindspore(record.type or "", where) for record in slices][-1]
    ranges = [record.content for record in slices if record.content]
    nbytes = sum(end - begin for begin, end in ranges)
    dims = tuple(slices[-1].dims)
    shape = _shape(dims, nbytes, dtype)
    needed = shape_nbytes(shape, dtype, where)
    if needed != nbytes:
        raise SourceError(
            f"{where} has {counted(nbytes, 'byte')} in {counted(len(slices), 'record')}, "
            f"but dims {quote(list(dims))} of {dtype.mindspore} need {needed}",
            DOWNLOAD_AGAIN,
        )
    extents = [Extent(file, begin, end - begin) for begin, end in ranges if begin != end]
    return TensorRef(tag, dtype, shape, tuple(extents or [Extent(file, ranges[0][0], 0)]))


def _shape(dims: tuple[int, ...], nbytes: int, dtype: dtypes.DType) -> tuple[int, ...]:
    if dtype is dtypes.STR:
        return (nbytes // dtype.itemsize,)
    return () if dims == (0,) and nbytes == dtype.itemsize else dims


def lay_out(
    name: str, tensors: Sequence[TensorSpec], crc: bool = False, *, slice_bytes: int = SLICE_BYTES
) -> OutputFile:
    """Return the `.ckpt` file `name` with these tensors in this order, byte for byte as MindSpore would write it.

    Args:
        name: the file's name.
        tensors: its tensors. A `str` has the shape (characters,).
        crc: whether the 17 bytes follow that MindSpore appends for the CRC-32 of all bytes before them.
        slice_bytes: where a tensor is cut into records; only tests have a reason to change it.

    Raises:
        UnsupportedError: no tensors, or one that MindSpore would not load: its dtype, its shape or its name.
        InternalError: two tensors of the same name.
    """
    literals: list[tuple[int, bytes]] = []
    extents: dict[str, tuple[tuple[int, int], ...]] = {}
    at = 0
    for spec in checked(name, tensors):
        if refused := _refusal(spec):
            raise UnsupportedError(f"{place(name, spec)} {refused[0]}", refused[1])
        pieces = []
        for length in _slice_lengths(spec.nbytes, slice_bytes):
            head = _record_head(spec, length)
            literals.append((at, head))
            pieces.append((at + len(head), length))
            at += len(head) + length
        extents[spec.name] = tuple(pieces)
    if not crc:
        return OutputFile(name, at, tuple(literals), extents)
    literals.append((at, _CRC_MARK.ljust(CRC_TAIL_BYTES, b"\0")))
    slot = ChecksumSlot(0, at, (at + len(_CRC_MARK),), CRC_TAIL_BYTES - len(_CRC_MARK), "big")
    return OutputFile(name, at + CRC_TAIL_BYTES, tuple(literals), extents, (slot,))


def _refusal(spec: TensorSpec) -> tuple[str, str] | None:
    """Return why a `.ckpt` cannot hold a tensor, and what to do instead."""
    if spec.dtype.mindspore is None:
        keep = f"{setting('model', 'raw')} {setting('format', 'hf')}"
        return f"has dtype {spec.dtype}, which MindSpore refuses to load", (
            f"keep all tensors as they are, in a directory, with {keep}"
        )
    if spec.shape == (0,):
        return "is an empty 1-D tensor, which a .ckpt cannot hold", (
            f"write safetensors with {setting('format', 'safetensors')}"
        )
    if max(spec.shape, default=0) > _MAX_DIM:
        return f"has shape {list(spec.shape)}; MindSpore loads no dimension above {_MAX_DIM} from a .ckpt", ""
    if _HOST_CACHE_MARK in spec.name:
        why = f"has {_HOST_CACHE_MARK} in its name, which MindSpore's loader reserves for itself"
        return why, "rename it in the source"
    return None


def _slice_lengths(nbytes: int, slice_bytes: int) -> list[int]:
    whole, rest = divmod(nbytes, slice_bytes)
    return [slice_bytes] * whole + ([rest] if rest or not whole else [])


def _record_head(spec: TensorSpec, length: int) -> bytes:
    """Return a record without its `length` bytes of content at the end; the lengths in it include them."""
    tag, kind = spec.name.encode(), (spec.dtype.mindspore or "").encode()
    dims = (0,) if spec.dtype is dtypes.STR else spec.shape
    tensor = b"".join(b"\x08" + encode_varint(size) for size in dims)
    tensor += b"\x12" + encode_varint(len(kind)) + kind + b"\x1a" + encode_varint(length)
    value = b"\x0a" + encode_varint(len(tag)) + tag + b"\x12" + encode_varint(len(tensor) + length) + tensor
    return b"\x0a" + encode_varint(len(value) + length) + value
