"""streamconv.formats.ckpt: all that protobuf allows and MindSpore writes, nothing that either misreads."""

import hashlib
import json
import os
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.errors import InternalError, SourceError, StreamconvError, UnsupportedError
from streamconv.formats import ckpt
from streamconv.formats.header_room import HeaderRoom
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import helpers, mindspore_loader
from support.helpers import text_of

F32, BF16 = dtypes.F32, dtypes.BF16


def varint(number, pad=0):
    number &= (1 << 64) - 1
    out = []
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    if pad:
        out[-1] |= 0x80
        out += [0x80] * (pad - 1) + [0]
    return bytes(out)


def blob(number, content, pad=0):
    return varint(number << 3 | 2) + varint(len(content), pad) + content


def integer(number, value, pad=0):
    return varint(number << 3) + varint(value, pad)


def tensor(dims=(2,), kind=b"UInt8", content=b"ab"):
    return b"".join(integer(1, d) for d in dims) + blob(2, kind) + blob(3, content)


def record(tag=b"t", body=None, **fields):
    return blob(1, blob(1, tag) + blob(2, tensor(**fields) if body is None else body))


GOOD = record(b"good")


@pytest.fixture
def read(tmp_path):
    def run(content, *limit):
        path = tmp_path / "x.ckpt"
        path.write_bytes(content)
        return ckpt.read(path, *map(HeaderRoom, limit))

    return run


ACCEPTED = {
    "plain": record(),
    "packed dims": record(body=blob(1, varint(2) + varint(1)) + blob(2, b"UInt8") + blob(3, b"ab")),
    "dims in parts": record(body=integer(1, 1) + blob(1, varint(2)) + blob(2, b"UInt8") + blob(3, b"ab")),
    "content before dims": record(body=blob(3, b"ab") + integer(1, 2) + blob(2, b"UInt8")),
    "type first": record(body=blob(2, b"UInt8") + blob(3, b"ab") + integer(1, 2)),
    "tag after tensor": blob(1, blob(2, tensor()) + blob(1, b"t")),
    "last type counts": record(body=blob(2, b"Float32") + tensor()),
    "last content counts": record(body=blob(3, b"long ago") + tensor()),
    "tensor in two parts": blob(1, blob(1, b"t") + blob(2, integer(1, 2)) + blob(2, tensor(dims=()))),
    "non-minimal varints": blob(
        1, blob(1, b"t", 3) + blob(2, integer(1, 2, 4) + blob(2, b"UInt8", 2) + blob(3, b"ab", 8), 5), 4
    ),
    "unknown fields": integer(7, 1 << 63)
    + blob(9, b"x" * 9999)
    + varint(5 << 3 | 1) + b"12345678"
    + blob(1, integer(4, 5) + blob(1, b"t") + varint(6 << 3 | 5) + b"1234"
    + blob(2, blob(15, b"?") + tensor()))
    + blob(2, b"not a Value"),
    "known numbers, wrong wire types": integer(1, 9)
    + blob(1, integer(2, 4) + blob(1, b"t")
    + blob(2, integer(3, 1) + varint(1 << 3 | 5) + b"1234" + tensor())),
    "slices, one of them empty": record(content=b"a") + record(content=b"") + record(content=b"b"),
    "type and dims of the last slice": record(dims=(), kind=b"Float32", content=b"a") + record(content=b"b"),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_whatever_protobuf_allows_is_read(read, ref_bytes, case):
    _, found = read(ACCEPTED[case])
    assert list(found) == ["t"]
    assert (found["t"].dtype.name, ref_bytes(found["t"])) == ("U8", b"ab")
    assert found["t"].shape in [(2,), (2, 1), (1, 2)]


_LOAD = """
import sys, mindspore
loaded = mindspore.load_checkpoint(sys.argv[1])
print({name: bytes(value.get_bytes()) for name, value in loaded.items()})
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ACCEPTED)
def test_mindspore_reads_the_same(tmp_path, case):
    """In a process of its own: where Ray is loaded too, MindSpore's parser refuses numbers that are too long."""
    pytest.importorskip("mindspore")
    (tmp_path / "x.ckpt").write_bytes(ACCEPTED[case])
    assert "\n{'t': b'ab'}\n" in "\n" + mindspore_loader.by_mindspore(_LOAD, tmp_path / "x.ckpt")


HOSTILE = {
    "empty file": (b"", "empty file"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "git-annex pointer": (b"/annex/objects/SHA256E-s123--abc.safetensors\n", "is a git-annex pointer"),
    "only unknown fields": (integer(7, 1), "no tensors"),
    "only a crc": (helpers.crc_tail(0), "no tensors"),
    "zero bytes at the end": (
        GOOD + bytes(8),
        f"byte {len(GOOD)} (after tensor good): a field has the number 0",
    ),
    "text": (b"hello world", "wire type"),
    "a group": (GOOD + b"\x1b\x1c", "wire type 3"),
    "key cut off": (GOOD + b"\x8a", "truncated"),
    "length cut off": (GOOD + b"\x0a\x80", "truncated"),
    "padded key": (
        GOOD + b"\x8a\0" + record()[1:],
        f"byte {len(GOOD)} (after tensor good): a field's key is padded",
    ),
    "varint of 11 bytes": (GOOD + b"\x38" + b"\x80" * 11 + b"\0", "longer than 10 bytes"),
    "fixed field cut off": (GOOD + varint(5 << 3 | 1) + b"123", "past the end of the file"),
    "record past the end": (GOOD + record()[:-1], f"byte {len(GOOD)} (after tensor good): a field of"),
    "record of 2^62 bytes": (GOOD + b"\x0a" + varint(1 << 62), "4611686018427387904 bytes"),
    "length of 2^64-1": (GOOD + b"\x0a" + varint(-1), "past the end of the file"),
    "tag past its record": (blob(1, b"\x0a\x50t") + GOOD, "past the end of the record"),
    "tensor past its record": (blob(1, blob(1, b"t") + b"\x12\x50") + GOOD, "(in tensor t)"),
    "content past its tensor": (record(body=integer(1, 2) + b"\x1a\x50") + GOOD, "(in tensor t)"),
    "dims cut off": (record(body=blob(1, b"\x80")) + GOOD, "(in tensor t)"),
    "tag not UTF-8": (
        GOOD + record(b"ab\xff"),
        f"byte {len(GOOD) + 6} (after tensor good): a name is not UTF-8",
    ),
    "tag too long": (record(b"t" * 70_000), "name of 70000 bytes"),
    "type too long": (record(kind=b"t" * 70_000), "(in tensor t): a type of 70000 bytes"),
    "no tag": (blob(1, blob(2, tensor())), "byte 2: a record has no name"),
    "empty record": (blob(1, b""), "byte 2: a record has no name"),
    "no tensor": (blob(1, blob(1, b"t")), "byte 2: tensor t has no type"),
    "no type": (record(body=integer(1, 2) + blob(3, b"ab")), "tensor t has no type"),
    "no content": (record(body=integer(1, 2) + blob(2, b"UInt8")), "tensor t has no content"),
    "negative dim": (record(dims=(-1, -2)), "tensor t has the negative dimension -1"),
    "33 dims": (record(dims=(1,) * 33), "more than 32 dimensions"),
    "many packed dims": (record(body=blob(1, b"\1" * 5000) + blob(3, b"a")), "more than 32 dimensions"),
    "overflow": (record(dims=(1 << 32, 1 << 31)), "tensor t has a shape of more than 2^63"),
    "overflow with a zero": (
        record(dims=(1 << 40, 1 << 40, 0), content=b""),
        "tensor t has a shape of more than",
    ),
    "content short": (
        record(content=b"a"),
        "tensor t has 1 byte in 1 record, but dims [2] of UInt8 need 2",
    ),
    "content long": (record(content=b"abc"), "tensor t has 3 bytes"),
    "content empty": (record(content=b""), "tensor t has 0 bytes"),
    "type too wide": (record(kind=b"Float32"), "tensor t has 2 bytes"),
    "type too narrow": (record(kind=b"UInt8", content=b"abcdefgh"), "tensor t has 8 bytes"),
    "repeated at once": (record() + record(), "tensor t has 4 bytes in 2 records"),
    "last slice without dims": (record(content=b"a") + record(dims=(), content=b"b"), "tensor t has 2 bytes"),
    "slice missing": (record(content=b"a") + GOOD, "tensor t has 1 byte in"),
    "not adjacent": (record() + GOOD + record(), f"byte {len(GOOD + record()) + 2}: tensor t appears again"),
    "slices not adjacent": (record(content=b"a") + GOOD + record(content=b"b"), "tensor t"),
    "scalar of two items": (record(dims=()), "tensor t has 2 bytes"),
    "str cut within a character": (record(dims=(0,), kind=b"str", content=b"abcde"), "tensor t has 5 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_broken_file_is_refused_by_name_and_byte(read, case):
    content, expected = HOSTILE[case]
    with pytest.raises(SourceError) as caught:
        read(content)
    assert "x.ckpt" in caught.value.message
    assert expected in text_of(caught.value)


UNSUPPORTED = {
    "map parameter": (blob(1, blob(1, b"t") + blob(3, blob(1, tensor()))), "t is a map parameter"),
    "map parameter, tag last": (blob(1, blob(3, b"") + blob(1, b"t")), "t is a map parameter"),
    "float8": (record(kind=b"Float8E4M3FN"), "tensor t has type Float8E4M3FN"),
    "type of a first slice": (record(kind=b"?", content=b"a") + record(content=b"b"), "tensor t has type ?"),
    "lower case": (record(kind=b"uint8"), "tensor t has type uint8"),
    "empty type": (record(kind=b""), "tensor t has type"),
    "hostile type": (record(kind=b"\x1b[2J"), "tensor t has type \\x1b[2J"),
    "AES-GCM": (b"\xd8\x5e\x3a\x7f" + GOOD, "AES-GCM"),
    "AES-CBC": (b"\xd9\x5e\x3a\x7f" + GOOD, "AES-CBC"),
    "SM4-CBC": (b"\xda\x5e\x3a\x7f" + GOOD, "decrypt it with MindSpore first"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_no_other_format_holds_is_refused_by_name(read, case):
    content, expected = UNSUPPORTED[case]
    with pytest.raises(UnsupportedError, match=r"x\.ckpt") as caught:
        read(content)
    assert expected in text_of(caught.value)


@pytest.mark.parametrize(("fields", "shape"), [
    ({"dims": (), "kind": b"UInt8", "content": b"a"}, ()),
    ({"dims": (0,), "kind": b"Float32", "content": b"abcd"}, ()),
    ({"dims": (0,), "kind": b"Float32", "content": b""}, (0,)),
    ({"dims": (0, 4), "kind": b"Float32", "content": b""}, (0, 4)),
    ({"dims": (1,), "kind": b"UInt8", "content": b"a"}, (1,)),
    ({"dims": (0,), "kind": b"str", "content": b"a\0\0\0b\0\0\0"}, (2,)),
    ({"dims": (0,), "kind": b"str", "content": b"a\0\0\0"}, (1,)),
    ({"dims": (2, 3), "kind": b"Int4", "content": b"abcdef"}, (2, 3)),
])  # fmt: skip
def test_shapes(read, ref_bytes, fields, shape):
    _, found = read(record(**fields))
    assert found["t"].shape == shape
    assert ref_bytes(found["t"]) == fields["content"]


def test_record_heads_beyond_the_budget_are_refused(read):
    content = b"".join(record(b"%d" % i) for i in range(1000))
    assert len(read(content)[1]) == 1000
    with pytest.raises(SourceError, match=r"the part of x\.ckpt that is not tensor content .* 50000 are allowed"):
        read(content, 50_000)


def test_tensor_bytes_are_not_read(tmp_path, monkeypatch):
    specs = [TensorSpec(name, F32, (1 << 28,)) for name in "abc"]
    output = ckpt.lay_out("sparse.ckpt", specs)
    path = tmp_path / output.name
    with path.open("wb") as file:
        for offset, head in output.literals:
            file.seek(offset)
            file.write(head)
        file.truncate(output.size)
    got = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda d, n, o: (got.append(n), pread(d, n, o))[1])
    _, found = ckpt.read(path)
    assert [len(found[name].extents) for name in "abc"] == [2, 2, 2]
    assert sum(got) < 200_000


def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.ckpt")
    with pytest.raises(SourceError, match=r"x\.ckpt is not a regular file but a FIFO"):
        ckpt.read(tmp_path / "x.ckpt")


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.data())
def test_no_flipped_byte_escapes_our_errors(tmp_path_factory, data):
    content = bytearray(GOOD + record(dims=(2, 3), kind=b"Int32", content=bytes(24)) + helpers.crc_tail(7))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    path = tmp_path_factory.getbasetemp() / "flipped.ckpt"
    path.write_bytes(content)
    try:
        file, tensors = ckpt.read(path)
    except StreamconvError as error:
        assert text_of(error)
    else:
        for ref in tensors.values():
            assert ref.nbytes == sum(e.length for e in ref.extents)
            assert all(e.offset + e.length <= file.size for e in ref.extents)


# What MindSpore wrote

DESCRIPTION = "samples.json"
UNREADABLE = {
    "enc_gcm_key_0123456789abcdef.ckpt": "AES-GCM",
    "float8_written_not_loadable.ckpt": "Float8E4M3FN",
}
SAMPLES = [
    "append_dict.ckpt", "empty_async.ckpt", "empty_sync_dropped.ckpt", "int4.ckpt", "many_dtypes.ckpt",
    "many_dtypes_crc.ckpt", "sliced_1KiB.ckpt", "sliced_1KiB_crc.ckpt", "sliced_async_uneven_1KiB.ckpt",
]  # fmt: skip


def sample_shape(entry):
    if entry["type"] == "str":
        return (entry["nbytes"] // 4,)
    return tuple(entry["dims"])


def test_every_sample_is_tested(samples):
    assert sorted([*SAMPLES, *UNREADABLE]) == sorted(path.name for path in samples.glob("*.ckpt"))


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_read(samples, ref_bytes, name):
    expected = json.loads((samples / DESCRIPTION).read_text())["files"][name]
    file, found = ckpt.read(samples / name)
    assert [(n, r.dtype.mindspore, r.shape, hashlib.sha256(ref_bytes(r)).hexdigest()) for n, r in found.items()] == [
        (e["name"], e["type"], sample_shape(e), e["sha256"]) for e in expected["records_in_order"]
    ]
    for entry in expected["records_in_order"]:
        lengths = [length for length in entry["slices"] if length] or [0]
        assert [extent.length for extent in found[entry["name"]].extents] == lengths
    has_tail = name.endswith("_crc.ckpt")
    tail = zlib.crc32((samples / name).read_bytes()[:-17]) if has_tail else None
    assert ckpt.read_crc_tail(samples / name, file.size) == tail


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_samples_are_refused(samples, name):
    with pytest.raises(UnsupportedError, match=UNREADABLE[name]):
        ckpt.read(samples / name)


@pytest.mark.parametrize("path", ["full/rank_0/full0", *(f"sliced/rank_{i}/net{i}" for i in range(4))])
def test_distributed_samples_are_laid_out_as_they_were(samples, file_bytes, ref_bytes, path):
    source = samples / "dist4" / f"{path}.ckpt"
    _, found = ckpt.read(source)
    output = ckpt.lay_out("x.ckpt", [TensorSpec(n, r.dtype, r.shape) for n, r in found.items()])
    assert file_bytes(output, {n: ref_bytes(r) for n, r in found.items()}) == source.read_bytes()


@pytest.mark.parametrize("name", [n for n in SAMPLES if "async" not in n])
def test_samples_are_laid_out_as_they_were(samples, file_bytes, ref_bytes, name):
    _, found = ckpt.read(samples / name)
    specs = [TensorSpec(n, r.dtype, r.shape) for n, r in found.items()]
    slice_bytes = 1024 if "1KiB" in name else ckpt.SLICE_BYTES
    output = ckpt.lay_out(name, specs, crc="_crc" in name, slice_bytes=slice_bytes)
    assert file_bytes(output, {n: ref_bytes(r) for n, r in found.items()}) == (samples / name).read_bytes()


def test_a_crc_tail_of_another_size_is_a_changed_file(samples):
    with pytest.raises(SourceError, match="1071 bytes, and 1000 are expected"):
        ckpt.read_crc_tail(samples / "many_dtypes_crc.ckpt", 1000)


def test_a_file_shorter_than_a_tail_has_none(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(record())
    assert ckpt.read_crc_tail(tmp_path / "x.ckpt", len(record())) is None


# Laying out


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """What MindSpore writes for these arrays, with slices of `slice_kib`."""
    mindspore = pytest.importorskip("mindspore")
    serialization = pytest.importorskip("mindspore.train.serialization")

    def save(values, slice_kib=None, **options):
        if slice_kib:
            monkeypatch.setattr(serialization, "SLICE_SIZE", slice_kib)
        parameters = {name: mindspore.Parameter(mindspore.Tensor(array), name=name) for name, array in values.items()}
        mindspore.save_checkpoint(parameters, str(tmp_path / "saved.ckpt"), **options)
        return (tmp_path / "saved.ckpt").read_bytes()

    return save


NUMPY = {"F32": "f4", "F16": "f2", "F64": "f8", "I8": "i1", "I64": "i8", "U16": "u2", "BOOL": "?"}


@pytest.mark.slow
@pytest.mark.parametrize("crc", [False, True])
@pytest.mark.parametrize("slice_kib", [None, 1, 3])
def test_the_bytes_are_mindspores(saved, file_bytes, crc, slice_kib):
    rng = np.random.default_rng(7)
    shapes = [(), (1,), (3, 5), (256,), (257,), (1024,), (16, 8, 8), (300, 2)]
    values = {
        f"层.{name}/{i} é": rng.integers(0, 2, shape).astype(kind)
        for name, kind in NUMPY.items()
        for i, shape in enumerate(shapes)
    }
    values["x" * 200] = np.ones((128, 1), "f4")
    by_kind = {np.dtype(kind): dtypes.from_safetensors(name, "") for name, kind in NUMPY.items()}
    specs = [TensorSpec(name, by_kind[array.dtype], array.shape) for name, array in values.items()]
    slicing = {"slice_bytes": slice_kib << 10} if slice_kib else {}
    output = ckpt.lay_out("m.ckpt", specs, crc, **slicing)
    assert file_bytes(output, {n: a.tobytes() for n, a in values.items()}) == saved(values, slice_kib, crc_check=crc)


@pytest.mark.slow
def test_append_dict_is_mindspores(saved, file_bytes):
    text = "héllo 世界"
    expected = saved({"w": np.ones(2, "f4")}, append_dict={"epoch_num": 7, "note": text})
    specs = [
        TensorSpec("w", F32, (2,)),
        TensorSpec("epoch_num", dtypes.from_safetensors("I64", ""), ()),
        TensorSpec("note", dtypes.STR, (len(text),)),
    ]
    data = {
        "w": np.ones(2, "f4").tobytes(),
        "epoch_num": (7).to_bytes(8, "little"),
        "note": text.encode("utf-32-le"),
    }
    assert file_bytes(ckpt.lay_out("m.ckpt", specs), data) == expected


@pytest.mark.slow
def test_mindspore_loads_bfloat16_empty_and_sliced(tmp_path, file_bytes):
    mindspore = pytest.importorskip("mindspore")
    specs = [TensorSpec("b", BF16, (3, 5)), TensorSpec("e", F32, (0, 4)), TensorSpec("s", BF16, ())]
    data = {s.name: bytes(range(s.nbytes)) for s in specs}
    output = ckpt.lay_out("m.ckpt", specs, crc=True, slice_bytes=7)
    assert output.extents["e"] == ((output.extents["e"][0][0], 0),)
    (tmp_path / "m.ckpt").write_bytes(file_bytes(output, data))
    loaded = mindspore.load_checkpoint(str(tmp_path / "m.ckpt"), crc_check=True)
    assert [tuple(loaded[s.name].shape) for s in specs] == [s.shape for s in specs]
    assert bytes(loaded["b"].get_bytes()) == data["b"]
    assert bytes(loaded["s"].get_bytes()) == data["s"]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
            st.sampled_from(["Bool", "Int4", "Int16", "Float32", "BFloat16", "Float64", "UInt64"]),
            st.lists(st.integers(0, 5), max_size=3).filter(lambda shape: shape != [0]),
        ),
        min_size=1,
        unique_by=lambda item: item[0],
    ),
    st.tuples(st.integers(1, 64), st.booleans()),
)
def test_what_is_laid_out_reads_back(tmp_path_factory, file_bytes, ref_bytes, items, options):
    slice_bytes, crc = options
    specs = [TensorSpec(n, dtypes.from_mindspore(d, n), tuple(s)) for n, d, s in items]
    data = {s.name: bytes((i + k) % 2 for k in range(s.nbytes)) for i, s in enumerate(specs)}
    output = ckpt.lay_out("y.ckpt", specs, crc, slice_bytes=slice_bytes)
    path = tmp_path_factory.getbasetemp() / "y.ckpt"
    path.write_bytes(content := file_bytes(output, data))
    file, found = ckpt.read(path)
    assert {n: (r.dtype, r.shape, ref_bytes(r)) for n, r in found.items()} == {
        s.name: (s.dtype, s.shape, data[s.name]) for s in specs
    }
    assert ckpt.read_crc_tail(path, file.size) == (zlib.crc32(content[:-17]) if crc else None)


def test_slices_of_half_a_gibibyte():
    nbytes = (1 << 29) + 4
    output = ckpt.lay_out("m.ckpt", [TensorSpec("a", F32, (nbytes // 4,)), TensorSpec("b", F32, (1 << 27,))])
    assert [length for _, length in output.extents["a"]] == [1 << 29, 4]
    assert [length for _, length in output.extents["b"]] == [1 << 29]
    assert output.size == sum(len(head) for _, head in output.literals) + nbytes + (1 << 29)


@pytest.mark.parametrize(("specs", "error", "expected"), [
    ([], UnsupportedError, "no tensors"),
    ([TensorSpec("t", dtypes.F8_E4M3, (2,))], UnsupportedError, "tensor t has dtype F8_E4M3"),
    ([TensorSpec("t", dtypes.F8_E4M3, (2,))], UnsupportedError, 'in a directory, with model="raw" format="hf"'),
    ([TensorSpec("t", dtypes.from_safetensors("C64", ""), (2,))], UnsupportedError, "tensor t has dtype C64"),
    ([TensorSpec("t", F32, (0,))], UnsupportedError, "tensor t is an empty 1-D tensor"),
    ([TensorSpec("t", dtypes.STR, (0,))], UnsupportedError, "tensor t is an empty 1-D tensor"),
    ([TensorSpec("t", F32, (1 << 31,))], UnsupportedError, "tensor t has shape [2147483648]"),
    ([TensorSpec("t.__param_key__1", F32, (1,))], UnsupportedError, "tensor t.__param_key__1"),
    ([TensorSpec("t", F32, (1,)), TensorSpec("t", F32, (1,))], InternalError, "tensor t"),
])  # fmt: skip
def test_what_mindspore_would_not_load_is_not_laid_out(specs, error, expected):
    with pytest.raises(error, match=r"m\.ckpt") as caught:
        ckpt.lay_out("m.ckpt", specs)
    assert expected in text_of(caught.value)


def test_the_largest_dimension_is_laid_out():
    assert ckpt.lay_out("m.ckpt", [TensorSpec("t", BF16, ((1 << 31) - 1,))]).size > 1 << 32


def test_crc_tail_to_the_byte():
    file = ckpt.lay_out("m.ckpt", [TensorSpec("t", BF16, (3,))], crc=True)
    (slot,) = file.slots
    at, tail = file.literals[-1]
    assert (slot.begin, slot.end, at, slot.at, file.size) == (0, at, at, (at + 7,), at + 17)
    assert tail[:7] + slot.encode(0x01020304) == b"crc_num\0\0\0\0\0\0\1\2\3\4"
