"""The hostile menu: what is made, what is said of it, and how `convert` ends."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from typing import NamedTuple

from streamconv.configs.mindformers_yaml import MOST_MERGED
from streamconv.formats import shards
from support import hostile
from support.hostile import (
    ESCAPE,
    ODD,
    Calling,
    blob,
    both,
    encode,
    entry_of,
    files_of,
    honest,
    index,
    laughs,
    llama,
    lying_zip,
    manifest,
    one,
    pickled,
    record,
    replaced,
    sharded,
    u8,
    write,
)

RAW = ("--model", "raw")


class Case(NamedTuple):
    """What makes the source (a directory), what is said of it, and how `convert` ends."""

    make: hostile.Make
    said: tuple[str, ...] = ()
    code: int = 3
    words: tuple[str, ...] = RAW
    inspects: int | None = None


def file(content: bytes, *said: str, code: int = 3, name: str = "model.safetensors") -> Case:
    return Case(files_of({name: content}), said, code)


def short_by(count: int) -> bytes:
    whole = encode({"t": {"dtype": "U8", "shape": [9000], "data_offsets": [0, 9000]}}, bytes(9000))
    return whole[: len(whole) - count]


S = "model.safetensors"
SAFETENSORS = {
    "header of 0 bytes": file(encode(b"", b"abc"), S, "byte 0", "header length of 0"),
    "header of 7 bytes": file(encode(b'{"t":1}', b"abc"), S, "tensor t is not described"),
    "header past the end": file(encode({"t": u8(0, 2)}, b"ab", 1000), S, "its header of 1000 bytes ends at byte 1008"),
    "header of 2^63": file(encode({}, length=1 << 63), S, "byte 0", "9223372036854775808"),
    "header of 2^64 - 1": file(encode({}, length=(1 << 64) - 1), S, "byte 0", "18446744073709551615"),
    "not UTF-8": file(encode(b'{"\xff": 1}'), S, "not UTF-8: byte 2"),
    "UTF-16": file(encode('{"t": 1}'.encode("utf-16")), S, "not UTF-8: byte 0"),
    "not an object": file(encode(b"[1, 2]"), S, "not an object"),
    "deeply nested": file(encode(b'{"t":' * 100_000), S, "nested too deeply"),
    "nested in a shape": file(encode(b'{"t":{"dtype":"U8","shape":' + b"[" * 900 + b"]" * 900 + b"}}"), S, "tensor t"),
    "a key twice": file(encode(b'{"t":1,"t":2}'), S, "key t twice"),
    "shape of a float": file(one(shape=[2.0]), S, "tensor t has a shape"),
    "shape of 1e400": file(encode(json.dumps({"t": u8(0, 2)}).replace("[2]", "[1e400]").encode(), b"ab"), "tensor t"),
    "shape of NaN": file(one(shape=[float("nan")]), S, "tensor t has a shape"),
    "shape of a string": file(one(shape=["2"]), S, "tensor t has a shape"),
    "shape of a negative": file(one(shape=[-2]), S, "tensor t has a shape"),
    "shape of a boolean": file(one(shape=[True, 2]), S, "tensor t has a shape"),
    "shape that overflows": file(one(shape=[1 << 33, 1 << 31]), S, "tensor t", "more than 2^63 bytes"),
    "shape of 4000 digits": file(one(shape=[10**4000]), S, "tensor t", "more than 2^63 bytes"),
    "shape that wraps to 2": file(one(shape=[(1 << 64) + 2]), S, "tensor t", "more than 2^63 bytes"),
    "offsets of floats": file(one(data_offsets=[0.0, 2.0]), S, "tensor t has a data_offsets"),
    "offsets of strings": file(one(data_offsets=["0", "2"]), S, "tensor t has a data_offsets"),
    "offsets below 0": file(one(data_offsets=[-2, 0]), S, "tensor t has a data_offsets"),
    "offsets of booleans": file(one(data_offsets=[False, True]), S, "tensor t has a data_offsets"),
    "offsets swapped": file(one(data_offsets=[2, 0]), S, "tensor t has data_offsets [2, 0]"),
    "offsets past the end": file(encode({"t": u8(0, 2), "u": u8(2, 4)}, b"ab"), S, "truncated: tensor u ends at byte"),
    "offsets of 2^64": file(one(data_offsets=[0, 1 << 64]), S, "tensor t has 18446744073709551616 bytes"),
    "offsets of 4000 digits": file(one(data_offsets=[0, 10**4000]), S, "tensor t"),
    "overlap": file(encode({"a": u8(0, 2), "t": u8(1, 3)}, b"abc"), S, "tensor t overlaps", "byte 1"),
    "hole": file(encode({"a": u8(0, 2), "t": u8(3, 5)}, b"abcde"), S, "tensor t follows a hole", "byte 1"),
    "trailing bytes": file(encode({"t": u8(0, 2)}, b"abc"), S, "1 trailing bytes"),
    "short by 1 byte": file(short_by(1), S, "tensor t ends at byte 9074, the file at 9073"),
    "short by a page": file(short_by(4096), S, "tensor t ends at byte 9074, the file at 4978"),
    "short by a third": file(short_by(3000), S, "tensor t ends at byte 9074, the file at 6074"),
    "dtype F4": file(one(dtype="F4"), S, "tensor t has dtype F4", code=4),
    "dtype F6_E2M3": file(one(dtype="F6_E2M3"), S, "tensor t has dtype F6_E2M3", code=4),
    "dtype F6_E3M2": file(one(dtype="F6_E3M2"), S, "tensor t has dtype F6_E3M2", code=4),
    "dtype of escapes": file(one(dtype=ESCAPE), S, "tensor t has dtype \\x1b[31mred", code=4),
    "dtype of a megabyte": file(one(dtype="F" * (1 << 19)), S, "tensor t has dtype FFF", code=4),
    "a name of escapes": file(encode({ESCAPE: u8(0, 3)}, b"abc"), S, "tensor \\x1b[31mred\\x1b]0;owned\\x07 has 3"),
    "a name with NUL": file(encode({"t\0u": u8(0, 3)}, b"abc"), S, "tensor t\\x00u has 3 bytes"),
    "a name of 64 KiB": file(encode({"t" * (64 << 10): u8(0, 3)}, b"abc"), S, "tensor ttt"),
    "a name right to left": file(encode({"t\u202eu": u8(0, 3)}, b"abc"), S, "tensor t\\u202eu has 3 bytes"),
    "a name of half a pair": file(encode({"\ud800": u8(0, 2)}, b"ab"), S, "surrogate"),
    "metadata of numbers": file(encode({"__metadata__": {"a": 1}, "t": u8(0, 2)}, b"ab"), S, "__metadata__"),
    "git-lfs": file(b"version https://git-lfs.github.com/spec/v1\n", S, "git lfs pull"),
}


def indexed(name: str, entry: str) -> Case:
    return Case(sharded(name, a=entry), (name, "not plain names in its directory"))


NAMES = {
    "up": "../secret.safetensors",
    "up and down": "x/../../secret.safetensors",
    "absolute": "/etc/passwd",
    "backslashes": "..\\secret.safetensors",
    "empty": "",
    "a dot": ".",
    "two dots": "..",
    "NUL": "x\0.safetensors",
    "half a pair": "\udc80.safetensors",
}
INDEX = {
    **{
        f"{name} names: {what}": indexed(name, entry)
        for name in (shards.HF_INDEX, shards.MS_MAP, shards.TORCH_INDEX)
        for what, entry in NAMES.items()
    },
    **{
        f"{name} is {what}": Case(files_of({name: text, S: honest("")}), (name, said), inspects=3)
        for name in (shards.HF_INDEX, shards.MS_MAP)
        for what, text, said in (
            ("a list", "[]", "not an object"),
            ("empty", "", "not valid JSON"),
            ("nested", '{"weight_map":' * 50_000, "nested too deeply"),
            ("a map of numbers", '{"weight_map": {"a": 1}}', "no weight_map"),
            ("a map of nothing", '{"weight_map": {}}', "no weight_map"),
            ("a key twice", '{"weight_map": {"a": "x", "a": "y"}}', "key a twice"),
        )
    },
    **{
        f"{name} is too large": Case(
            files_of({name: " " * (2 << 20), S: honest("")}), (name, "of memory, and the limit of"), 6, inspects=3
        )
        for name in (shards.HF_INDEX, shards.MS_MAP)
    },
    **{
        f"{name} is {what}": Case(replaced(name, odd, sharded(name)), (name,))
        for name in (shards.HF_INDEX, shards.MS_MAP, shards.TORCH_INDEX)
        for what, odd in ODD.items()
    },
    **{
        f"a shard is {what}": Case(replaced("x-00002-of-00002.safetensors", odd, sharded()), ("x-00002-of-00002",))
        for what, odd in ODD.items()
    },
    "a shard is missing": Case(
        replaced("x-00002-of-00002.safetensors", lambda path: None, sharded()),
        ("lacks 1 shard: x-00002-of-00002.safetensors",),
    ),
    "an extra shard": Case(both(sharded(), files_of({"x-00003-of-00003.safetensors": b"\x1b"})), code=0),
    "a tensor in two shards": Case(
        both(sharded(), files_of({"x-00002-of-00002.safetensors": encode({"a": u8(0, 2)}, b"ab")})),
        ("of the index not found in the shards",),
    ),
    "a tensor twice, unlike": Case(
        files_of({"a.safetensors": honest("", "t"), "b.safetensors": encode({"t": u8(0, 2)}, b"ab")}),
        ("in two files, in different shapes or dtypes", "t (a.safetensors, b.safetensors)"),
    ),
    "a tensor twice, in a file of escapes": Case(
        files_of({f"{ESCAPE}{n}.safetensors": honest("", "t", n) for n in "ab"}), code=0
    ),
    "only in the index": Case(
        both(sharded(), index({ESCAPE: "x-00001-of-00002.safetensors", "a": "x-00001-of-00002.safetensors"})),
        ("\\x1b[31mred", "not found in the shards"),
    ),
    "only in a shard": Case(
        both(sharded(), index({"a": "x-00001-of-00002.safetensors"})), ("not found in the index: b",)
    ),
    "a name of a megabyte": Case(sharded(a="x" * (1 << 19)), ("lacks 1 shard: xxx",)),
    "shards without number": Case(sharded(a=ESCAPE), ("lacks 1 shard: \\x1b[31mred",)),
    "a series of 99999": Case(files_of({"x-00001-of-99999.safetensors": honest("")}), ("lacks 99998 shards",)),
}

C = "model.ckpt"
GOOD = record(b"good")


def checkpoint(content: bytes, *said: str, code: int = 3) -> Case:
    return file(content, C, *said, code=code, name=C)


CKPT = {
    "a varint cut off": checkpoint(GOOD + b"\x0a\xff\xff", f"byte {len(GOOD) + 1}", "past the end of the file"),
    "a varint too long": checkpoint(GOOD + b"\x0a" + b"\xff" * 11, f"byte {len(GOOD) + 1}", "longer than 10 bytes"),
    "a length past the end": checkpoint(GOOD + blob(1, b"abc", 1000), f"byte {len(GOOD)}", "past the end of the file"),
    "a length of 2^64 - 1": checkpoint(GOOD + blob(1, b"abc", -1), f"byte {len(GOOD)}", "past the end of the file"),
    "a length past the record": checkpoint(blob(1, blob(1, b"t", 99)) + GOOD * 9, "past the end of the record"),
    "wrong dims": checkpoint(record(dims=(3,)), "tensor t has 2 bytes", "need 3"),
    "negative dims": checkpoint(record(dims=(-2,)), "tensor t has the negative dimension -2"),
    "dims that overflow": checkpoint(record(dims=(1 << 62, 4)), "tensor t", "more than 2^63 bytes"),
    "a thousand dims": checkpoint(record(dims=(1,) * 1000), "more than 32 dimensions"),
    "a missing slice": checkpoint(record(dims=(4,)), "tensor t has 2 bytes in 1 record", "need 4"),
    "a foreign slice": checkpoint(record() + GOOD + record(), "tensor t appears again after another tensor"),
    "a slice too many": checkpoint(record(dims=(4,)) * 3, "tensor t has 6 bytes in 3 records", "need 4"),
    "a type that is none": checkpoint(record(kind=b"\x1b[31m"), "tensor t has type \\x1b[31m", code=4),
    "a type not UTF-8": checkpoint(record(kind=b"\xff"), "a type is not UTF-8"),
    "a name not UTF-8": checkpoint(record(tag=b"\xff"), "a name is not UTF-8"),
    "a name of escapes": checkpoint(record(tag=ESCAPE.encode(), dims=(3,)), "tensor \\x1b[31mred"),
    "a name of a megabyte": checkpoint(record(tag=b"t" * (1 << 20)), "a name of 1048576 bytes"),
    "no name": checkpoint(blob(1, blob(2, b"")), "a record has no name"),
    "no content": checkpoint(blob(1, blob(1, b"t") + blob(2, blob(2, b"UInt8"))), "tensor t has no content"),
    "a map": checkpoint(blob(1, blob(1, b"t") + blob(3, b"")), "t is a map parameter", code=4),
    "field 0": checkpoint(b"\x00\x00" + GOOD, "byte 0", "the number 0"),
    "a group": checkpoint(b"\x0b\x0c" + GOOD, "byte 0", "the wire type 3"),
    "cut within a tensor": checkpoint((GOOD + record())[:-1], "past the end of"),
    "nothing": checkpoint(b"", "is an empty file"),
    "no tensors": checkpoint(blob(7, b"x"), "holds no tensors"),
    "AES-GCM": checkpoint(b"\xd8\x5e\x3a\x7f" + GOOD, "is encrypted (AES-GCM)", code=4),
    "AES-CBC": checkpoint(b"\xd9\x5e\x3a\x7f" + GOOD, "is encrypted (AES-CBC)", code=4),
    "SM4-CBC": checkpoint(b"\xda\x5e\x3a\x7f" + GOOD, "is encrypted (SM4-CBC)", code=4),
}

T = "pytorch_model.bin"


def torch(make: hostile.Make, *said: str, code: int = 3) -> Case:
    return Case(files_of({T: make}), (T, *said), code)


def truncated_zip(count: int) -> hostile.Make:
    return lambda path: path.write_bytes(honest(".bin")[:-count])


NAMES_IN_ZIPS = ("../x", "/etc/x", "a/../../x", f"a/{ESCAPE}", "a\\x")
TORCH = {
    "an entry of 2^32 - 2 bytes": torch(lying_zip(24, 0xFFFFFFFE), "states sizes that do not fit"),
    "a stored size of 2^32 - 2": torch(lying_zip(20, 0xFFFFFFFE), "states sizes that do not fit"),
    "an entry elsewhere": torch(lying_zip(42, 64), "something else is there"),
    "an entry beyond the end": torch(lying_zip(42, 0x7FFFFFFF), "beyond the end of the file"),
    "a compressed bomb": torch(
        hostile.archive({"a/data.pkl": b"\x80\x02" + b"0" * (1 << 20)}, zipfile.ZIP_DEFLATED),
        "is compressed",
        code=4,
    ),
    "twenty thousand entries": torch(
        hostile.archive({"a/data.pkl": b"\x80\x02}.", **{f"a/{n}": b"" for n in range(20_000)}}),
        "the zip directory of",
        "of memory, and the limit of",
        code=6,
    )._replace(inspects=4),
    "overlapping entries": torch(hostile.overlapping, "overlaps the entry before it"),
    **{
        f"an entry called {name!r}": torch(hostile.archive({name: b"", "a/data.pkl": b"\x80\x02}."}), code=code)
        for name, code in zip(NAMES_IN_ZIPS, (3, 3, 4, 4, 3), strict=True)
    },
    "an entry twice": torch(hostile.twice, "is listed twice"),
    "cut off": torch(truncated_zip(1), "truncated"),
    "cut in half": torch(truncated_zip(400), "truncated"),
    "os.system": torch(pickled(pickle.dumps(Calling(os.system, "touch owned"))), "asks for posix.system", code=4),
    "builtins.eval": torch(pickled(pickle.dumps(Calling(eval, "1"), 2)), "asks for __builtin__.eval", code=4),
    "a call within a call": torch(pickled(hostile.evaluating("1")), "asks for __builtin__.eval", code=4),
    "a name of escapes": torch(pickled(b"\x80\x02c\x1b[31m\nx\n."), "asks for \\x1b[31m.x", code=4),
    "a billion laughs": torch(pickled(laughs(100)), "holds no dictionary", code=4),
    "a billion laughs for a tensor": torch(
        pickled(b"\x80\x02}K\x01" + laughs(100)[2:-1] + b"s."), "holds no state dict", code=4
    ),
    "nested lists": torch(pickled(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."), "holds no dictionary", code=4),
    "nested marks": torch(pickled(b"\x80\x02" + b"(" * 50_000 + b"."), "values are left over at its end"),
    "a memo of 2^32 - 1": torch(pickled(b"\x80\x02}r\xff\xff\xff\xff."), "holds no state dict", code=4),
    "a text of 2^32 - 1 bytes": torch(pickled(b"\x80\x02X\xff\xff\xff\xffx."), "truncated by 4294967293 bytes"),
    "a text of 2^64 - 1 bytes": torch(
        pickled(b"\x80\x04\x8d" + b"\xff" * 8 + b"x."), "truncated by 18446744073709551613 bytes"
    ),
    "a pickle cut off": torch(pickled(entry_of("FloatStorage")[:-9]), "byte"),
    "an empty pickle": torch(pickled(b""), "truncated by 1 byte"),
    "no storage": torch(pickled(entry_of("FloatStorage")), "tensor t lies in storage 0, which is not in the file"),
    "a short storage": torch(pickled(entry_of("FloatStorage"), **{"a/data/0": bytes(8)}), "tensor t", "8 bytes"),
    "a shape past the storage": torch(
        pickled(entry_of("FloatStorage", shape="K\x09K\x09\x86"), **{"a/data/0": bytes(24)}),
        "tensor t ends at byte 132",
    ),
    "a shape of 2^2000": torch(
        pickled(entry_of("FloatStorage", shape="\x8a\xfa" + "\x7f" * 250 + "K\x03\x86"), **{"a/data/0": bytes(24)}),
        "tensor t",
    ),
    "an expanded tensor": torch(
        pickled(entry_of("FloatStorage", strides="K\0K\0\x86"), **{"a/data/0": bytes(24)}), "share memory", code=4
    ),
    "a negative stride": torch(
        pickled(entry_of("FloatStorage", strides="J\xff\xff\xff\xffK\x01\x86"), **{"a/data/0": bytes(24)}), "tensor t"
    ),
    "an opcode that is none": torch(pickled(b"\x80\x02\xff."), "a checkpoint does not need the opcode 0xff", code=4),
    "a negative protocol": torch(pickled(b"\x80\xff}."), "protocol"),
    "a legacy file": torch(
        lambda path: path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."), "before version 1.6", code=4
    ),
    "a text": torch(lambda path: path.write_text("hello"), "not a torch file", code=4),
}


def mark(name: str, odd: hostile.Make) -> Case:
    """A whole model next to something that is called like what a download leaves."""
    return Case(replaced(name, odd, files_of({S: honest("")})), (S, "is not complete"))


LONG = f"m-1-of-{'9' * 200}{S[5:]}"
SOURCES = {
    "a series of 10^200": Case(files_of({LONG: honest("")}), ("lacks " + "9" * 199 + "8 shards",)),
    "a series numbered in Arabic": Case(
        files_of({"m-\u0661-of-\u0663.safetensors": honest("")}), ("lacks 2 shards: m-2-of-\u0663.safetensors",)
    ),
    "a number past its series": Case(files_of({f"{ESCAPE}-9-of-2.safetensors": honest("")}), ("is numbered 9 of 2",)),
    **{f"{S}.aria2 is {what}": mark(f"{S}.aria2", odd) for what, odd in ODD.items()},
    "a download of escapes": Case(
        files_of({f"{ESCAPE}.safetensors": honest(""), f"{ESCAPE}.safetensors.part": b""}), ("\\x1b[31mred",)
    ),
    "a temporary folder that is a file": Case(
        files_of({S: honest(""), ".cache": b"", "._____temp": b"", ".rsync-partial": b""}), code=0
    ),
    "a slice of escapes": Case(files_of({f"{ESCAPE}_rank_1-1_1.ckpt": honest(".ckpt")}), ("\\x1b[31mred",), code=4),
    "a rank of 200 digits": Case(files_of({f"x_rank_{'1' * 200}-1_1.ckpt": honest(".ckpt")}), ("of rank 111",), code=4),
    "a folder of escapes": Case(
        both(os.mkdir, lambda path: files_of({S: honest("")})(path / f"{ESCAPE}")), ("holds no weights itself", "\\x1b")
    ),
    "folders in a circle": Case(both(os.mkdir, lambda path: (path / "x").symlink_to(".")), ("holds no file to read",)),
    "zeros": file(bytes(1 << 20), S, "holds nothing but zeros"),
    "a web page of escapes": file(f"<html>{ESCAPE}".encode(), S, "is a web page"),
    "a torch file named safetensors": Case(files_of({S: honest(".bin")}), code=0),
    "a code in a file named safetensors": Case(
        files_of({S: pickled(pickle.dumps(Calling(os.system, "touch owned")))}), ("asks for posix.system",), code=4
    ),
    "a .ckpt in a file named .bin, cut off": file(
        honest(".ckpt")[:-1], T, "past the end of the file", "truncated", name=T
    ),
}

DEEP = '{"x":' * 900 + "1" + "}" * 900


def config(text: str, *said: str, code: int = 3) -> Case:
    return Case(both(llama(), files_of({"config.json": text})), ("config.json", *said), code, (), 0)


def says(code: int = 0, *said: str, **values: object) -> Case:
    return Case(llama(**values), said, code, (), 0)


HUGE = 10**18
CONFIG = {
    "nested": config("[" * 100_000, "is not JSON"),
    "nested as deep as JSON can be read": config(f'{{"model_type": "llama", "x": {DEEP}}}', "nested deeper"),
    "not an object": config("[]", "holds no JSON object"),
    "empty": config("", "is not JSON"),
    "a number of 10^5 digits": config('{"model_type": "llama", "num_hidden_layers": ' + "9" * 100_000 + "}", "digits"),
    "many values": config(
        '{"model_type": "llama", "x": [' + "0," * (1 << 20) + "0]}", "of memory, and the limit of", code=6
    ),
    "a megabyte of spaces too many": config(" " * (17 << 20), "larger than"),
    "a type of escapes": config(json.dumps({"model_type": ESCAPE}), "\\x1b[31mred", code=4),
    "a type of a megabyte": config(json.dumps({"model_type": "x" * (1 << 19)}), "xxx", code=4),
    "a type that is a list": config('{"model_type": ["llama"]}', "no config.json with a model_type was found", code=2),
    **{
        f"config.json is {what}": Case(replaced("config.json", odd, llama()), ("config.json",), 3, (), 0)
        for what, odd in ODD.items()
    },
    "1e400 layers": says(num_hidden_layers="1e400"),
    "NaN layers": says(num_hidden_layers="NaN"),
    "0 layers": says(num_hidden_layers=0),
    "-1 layers": says(num_hidden_layers=-1),
    "a list of layers": says(num_hidden_layers=[2]),
    "layers as text": says(num_hidden_layers='"2"'),
    "3 layers": says(3, "model.layers.2.input_layernorm.weight: missing", num_hidden_layers=3),
    "1 layer": says(4, "no layer 1; the model has 1", num_hidden_layers=1),
    "10^9 layers": says(3, "at least 100000 tensors do not fit", num_hidden_layers=10**9),
    "10^18 layers": says(3, "num_hidden_layers is 2^31 or more", num_hidden_layers=HUGE),
    "10^4000 layers": says(3, "num_hidden_layers is 2^31 or more", num_hidden_layers=10**4000),
    "10^9 heads": says(4, "model.layers.0.self_attn.q_proj.weight", num_attention_heads=10**9),
    "more heads than rows": says(4, "heads", num_attention_heads=10**9, head_dim="null"),
    "10^4000 heads": says(3, "num_attention_heads is", num_attention_heads=10**4000),
    "garbage for quantization_config": says(quantization_config='[1, "x", null]'),
    "garbage in quantization_config": says(quantization_config={"weight_block_size": ESCAPE, "quant_method": []}),
    "garbage for tie_word_embeddings": says(tie_word_embeddings=[]),
    "garbage for torch_dtype": says(torch_dtype=[1]),
}
MANIFEST = {
    **{f"it is {what}": Case(replaced("streamconv.json", odd, llama()), ("streamconv.json",), 3, (), 0)
       for what, odd in ODD.items()},
    "a list": Case(both(llama(), write(streamconv__json="[]")), ("streamconv.json", "not a manifest"), 3, (), 0),
    "nested": Case(both(llama(), write(streamconv__json="[" * 100_000)), ("streamconv.json", "not JSON"), 3, (), 0),
    "nested less": Case(manifest(options=json.loads(DEEP)), ("streamconv.json", "not a manifest"), 3, (), 0),
    "many values": Case(
        both(llama(), write(streamconv__json="[" + "0," * (1 << 20) + "0]")),
        ("streamconv.json", "of memory, and the limit of"),
        6,
        (),
        0,
    ),
    "a model of escapes": Case(manifest(model=ESCAPE), ("\\x1b[31mred",), 2, (), 0),
    "a model of a megabyte": Case(manifest(model="x" * (1 << 19)), ("xxx",), 2, (), 0),
    "a model that is a path": Case(manifest(model="../../etc/passwd"), ("unknown model",), 2, (), 0),
    "a model that is a list": Case(manifest(model=[]), ("cannot be recognised",), 2, (), 0),
    "files of paths": Case(manifest(files={"../x": {"size": 1, "blocks": []}}), code=0, words=()),
    "files that are a list": Case(manifest(files=[]), code=0, words=()),
    "options that are a list, in reverse": Case(
        manifest(options=[]), ("options is missing",), 3, ("--reverse",), 0
    ),
    "options of escapes, in reverse": Case(
        both(llama(), manifest(model="llama", options={"qkv_concat": ESCAPE})),
        ("\\x1b[31mred",), 2, ("--reverse",), 0,
    ),
}  # fmt: skip

MERGES = "a: &a {" + ", ".join(f"k{n}: 1" for n in range(101)) + "}\nb: {<<: [" + ", ".join(["*a"] * 100) + "]}\n"
LAUGHS = "l0: &l0 [1]\n" + "".join(f"l{n}: &l{n} [*l{n - 1}, *l{n - 1}, *l{n - 1}]\n" for n in range(1, 50))
MODEL = "model:\n  model_config:\n    num_layers: "
YAML = {
    "a bomb of anchors": (LAUGHS, 3, "no model.model_config"),
    "a bomb in the model": (LAUGHS + MODEL + "*l49\n", 0, ""),
    "a bomb of merges": (MERGES, 3, f"more than {MOST_MERGED} merged keys"),
    "os.system": ("model: !!python/object/apply:os.system ['touch owned']", 3, "could not determine a constructor"),
    "an object": ("model: !!python/object:os.stat_result {}", 3, "could not determine a constructor"),
    "nested": ("[" * 5_000, 3, "recursion"),
    "nested blocks": ("- " * 5_000, 3, "recursion"),
    "it holds itself": ("model: &m {model_config: *m}", 0, ""),
    "a key that is a list": ("? [a]\n: 1", 3, "while constructing a mapping"),
    "a key of 10^4 digits": (MODEL + "2\n    0x" + "f" * 900 + ": 1\n", 0, ""),
    "layers of 10^4 digits": (MODEL + "0x" + "f" * 9000 + "\n", 3, "num_hidden_layers is 2^31 or more"),
    "a timestamp that is none": ("!!timestamp x", 3, "is not YAML"),
    "a boolean that is none": ("!!bool x", 3, "is not YAML"),
    "a number that is none": ("!!int ''", 3, "is not YAML"),
    "a float beyond all": ("a: " + "59:" * 9000 + "1.5", 3, "is not YAML"),
    "a control character": ("a: \x1b[31m", 3, "is not YAML"),
    "not UTF-8": ("\udcff", 3, "is not YAML"),
    "too large": ("#" * (65 << 10), 3, "larger than 65536 bytes"),
}
MENU = {
    f"{title}: {what}": case
    for title, cases in {
        "safetensors": SAFETENSORS,
        "index": INDEX,
        "ckpt": CKPT,
        "torch": TORCH,
        "sources": SOURCES,
        "config": CONFIG,
        "manifest": MANIFEST,
    }.items()
    for what, case in cases.items()
}
