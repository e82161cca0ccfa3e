"""Makers of hostile checkpoints, byte by byte: what no honest program writes."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamconv.formats import ckpt, safetensors, shards
from streamconv.formats import torch_writer as torch_layout
from streamconv.tensors import dtypes
from streamconv.tensors.refs import OutputFile, TensorSpec
from support import running

Make = Callable[[Path], object]
ESCAPE = "\x1b[31mred\x1b]0;owned\x07"
F32 = dtypes.F32

# -- honest files, of zeros ------------------------------------------------------------------------------------------


def assembled(output: OutputFile) -> bytes:
    """A file as it is laid out, its tensors all zero."""
    out = bytearray(output.size)
    for offset, literal in output.literals:
        out[offset : offset + len(literal)] = literal
    return bytes(out)


def specs(*names: str, shape: tuple[int, ...] = (2, 3)) -> list[TensorSpec]:
    return [TensorSpec(name, F32, shape) for name in names]


def honest(ending: str, *names: str) -> bytes:
    """A whole file of these tensors."""
    by_ending: dict[str, Callable[[str, Sequence[TensorSpec]], OutputFile]] = {
        ".ckpt": ckpt.lay_out,
        ".bin": torch_layout.lay_out,
    }
    lay_out = by_ending.get(ending)
    some = specs(*(names or ("a", "b")))
    return assembled(lay_out("x", some) if lay_out else safetensors.lay_out("x", some, {}))


# -- safetensors -----------------------------------------------------------------------------------------------------


def encode(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def u8(begin: object, end: object, **changes: object) -> dict[str, object]:
    return {"dtype": "U8", "shape": [2], "data_offsets": [begin, end], **changes}


def one(**changes: object) -> bytes:
    """A file of the tensor `t` of two bytes, described wrongly."""
    return encode({"t": u8(0, 2, **changes)}, b"ab")


# -- .ckpt -----------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = []
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def blob(number: int, content: bytes, length: int | None = None) -> bytes:
    return varint(number << 3 | 2) + varint(len(content) if length is None else length) + content


def record(
    tag: bytes = b"t", dims: Sequence[int] = (2,), kind: bytes = b"UInt8", content: bytes = b"ab", more: bytes = b""
) -> bytes:
    tensor = b"".join(b"\x08" + varint(size) for size in dims) + blob(2, kind) + blob(3, content) + more
    return blob(1, blob(1, tag) + blob(2, tensor))


# -- torch -----------------------------------------------------------------------------------------------------------


def archive(entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Make:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as file:
            for name, content in entries.items():
                file.writestr(name, content)

    return make


def pickled(data: bytes, **more: bytes) -> Make:
    """A torch file of this pickle."""
    return archive({"a/data.pkl": data, "a/version": b"3\n", **more})


class Calling:
    """An object that unpickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def laughs(depth: int) -> bytes:
    """A pair of a pair of a pair …, each of which is there twice: 2**depth elements, in 5 bytes each."""
    return b"\x80\x02K\x00" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(depth)) + b"."


def entry_of(kind: str, count: int = 6, shape: str = "K\x02K\x03\x86", strides: str = "K\x03K\x01\x86") -> bytes:
    """A pickle of {"t": a tensor} with this storage type, count, shape and strides (in opcodes)."""

    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text("0") + text("cpu")
    storage += b"J" + struct.pack("<i", count) + b"tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape.encode("latin-1")
    rebuilt += strides.encode("latin-1") + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("t") + rebuilt + b"s."


def lying_zip(at: int, number: int) -> Make:
    """An honest torch file whose first directory entry has `number` as the 32-bit field at `at`."""

    def make(path: Path) -> None:
        data = bytearray(honest(".bin"))
        begin = data.index(b"PK\x01\x02")
        struct.pack_into("<I", data, begin + at, number)
        path.write_bytes(data)

    return make


def overlapping(path: Path) -> None:
    """Two entries of which the second begins within the first: its header is among the first one's bytes."""
    data = bytearray(zipped({"a/data.pkl": b"\x80\x02}.", "a/one": zipped({"a/two": b"xx"})[:40], "a/two": b"xx"}))
    inner, last = data.index(b"PK\x03\x04", 60), data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, last + 42, inner)
    path.write_bytes(data)


def twice(path: Path) -> None:
    """Two entries of one name."""
    path.write_bytes(zipped({"a/data.pkl": b"\x80\x02}.", "a/data.pkm": b"\x80\x02}."}).replace(b".pkm", b".pkl"))


def zipped(entries: Mapping[str, bytes]) -> bytes:
    """An archive as Python writes it."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return target.getvalue()


# -- directories -----------------------------------------------------------------------------------------------------


def write(**files: bytes | str | Make) -> Make:
    """Files by name (`__` is a dot), in a directory: their content, or what makes them."""
    return files_of({name.replace("__", "."): content for name, content in files.items()})


def files_of(files: Mapping[str, bytes | str | Make]) -> Make:
    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            if callable(content):
                content(folder / name)
            else:
                (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def both(*makes: Make) -> Make:
    def make(folder: Path) -> None:
        for some in makes:
            some(folder)

    return make


def index(weight_map: object, name: str = shards.HF_INDEX) -> Make:
    return files_of({name: json.dumps({"metadata": {}, "weight_map": weight_map})})


def sharded(index_name: str = shards.HF_INDEX, **changes: str) -> Make:
    """Two shards and an index, of which entries are changed."""
    ending = ".bin" if index_name == shards.TORCH_INDEX else ".safetensors"
    names = [f"x-{n:05}-of-00002{ending}" for n in (1, 2)]
    files = {name: honest(ending, *pair) for name, pair in zip(names, ("ab", "cd"), strict=True)}
    return both(
        files_of(files), index({"a": names[0], "b": names[0], "c": names[1], "d": names[1], **changes}, index_name)
    )


def listening(path: Path) -> None:
    """A socket of that name, bound from its directory: such a name has 107 bytes at the most."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as one_socket:
            one_socket.bind(path.name)
    finally:
        os.chdir(before)


def linked(to: str) -> Make:
    def make(path: Path) -> None:
        path.symlink_to(to)

    return make


ODD: dict[str, Make] = {
    "a FIFO": os.mkfifo,
    "a socket": listening,
    "a directory": os.mkdir,
    "/dev/zero": linked("/dev/zero"),
    "a FIFO by a link": both(lambda path: os.mkfifo(path.parent.parent / "fifo"), linked("../fifo")),
    "a link to itself": lambda path: linked(path.name)(path),
    "a link to nothing": linked("nowhere"),
}


def replaced(name: str, odd: Make, source: Make) -> Make:
    """A source of which one file is something else."""

    def make(folder: Path) -> None:
        source(folder)
        (folder / name).unlink(missing_ok=True)
        odd(folder / name)

    return make


def llama(**config: object) -> Make:
    """A tiny Llama with a changed config.json."""

    def make(folder: Path) -> None:
        running.tiny(folder, shard=1 << 40)
        said = json.loads((folder / "config.json").read_text())
        # Not through json.dumps: 1e400 has to stand there as it is.
        text = json.dumps({**said, **{key: f"@{key}@" for key in config}})
        for key, value in config.items():
            text = text.replace(f'"@{key}@"', value if isinstance(value, str) else json.dumps(value))
        (folder / "config.json").write_text(text)

    return make


def manifest(**changes: object) -> Make:
    """A source that says how it was made."""
    said = {"streamconv": "0", "manifest": 1, "model": "raw", "options": {}, "files": {}, "tensors": {}, **changes}
    return both(write(model__safetensors=honest("")), files_of({"streamconv.json": json.dumps(said)}))


def evaluating(text: str) -> bytes:
    """A pickle that evaluates a text, inside of another pickle's bytes."""
    return pickle.dumps({"state_dict": pickle.dumps(Calling(eval, text)), "x": Calling(eval, text)}, protocol=2)
