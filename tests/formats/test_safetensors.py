"""streamconv.formats.safetensors: hostile and honest files, and a layout that the other readers take."""

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize, safe_open
from safetensors.numpy import save

from streamconv.errors import InternalError, SourceError, StreamconvError, UnsupportedError
from streamconv.formats import safetensors, safetensors_entries
from streamconv.formats.header_room import HeaderRoom
from streamconv.storage import disk
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support.helpers import text_of

LIMIT = 100_000_000
F32, BF16, U8 = dtypes.F32, dtypes.BF16, dtypes.from_safetensors("U8", "test")


def encode(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def u8(begin, end, **changes):
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end], **changes}


@pytest.fixture
def read(tmp_path):
    def run(content, room=LIMIT):
        path = tmp_path / "x.safetensors"
        path.write_bytes(content)
        return safetensors.read(path, HeaderRoom(room))

    return run


HOSTILE = {
    "empty file": (b"", "0 bytes"),
    "too short": (b"1234567", "7 bytes"),
    "header of 0": (encode(b"", b"abc"), "states a header length of 0 at byte 0"),
    "header of 1": (encode(b"{", b"abc"), "states a header length of 1 at byte 0"),
    "header past the end": (
        encode({"t": u8(0, 4)}, b"", length=1000),
        "is truncated: its header of 1000 bytes ends at byte 1008, the file at 68",
    ),
    "header of 2^63": (encode({}, length=1 << 63), "9223372036854775808"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "git-annex pointer": (b"/annex/objects/SHA256E-s123--abc.safetensors\n", "is a git-annex pointer"),
    "html": (b"<!DOCTYPE html><html>", "not a safetensors file"),
    "not UTF-8": (encode(b'{"\xff": 1}'), "not UTF-8: byte 2"),
    "not JSON": (encode(b"{{{{"), "not valid JSON"),
    "a byte order mark": (encode(b"\xef\xbb\xbf{}"), "not valid JSON"),
    "a number of 5000 digits": (encode(b'{"t": ' + b"9" * 5000 + b"}"), "t"),
    "nested": (encode(b"[" * 200_000), "nested too deeply"),
    "nested objects": (encode(b'{"a":' * 200_000), "nested too deeply"),
    "nested shape": (encode(b'{"t":{"dtype":"U8","shape":' + b"[" * 500 + b"]" * 500 + b"}}"), "tensor t"),
    "list": (encode(b"[]"), "not an object"),
    "duplicate tensor": (encode(b'{"t":1,"t":2}'), "key t twice"),
    "duplicate inner key": (encode(b'{"t":{"dtype":"U8","dtype":"U8"}}'), "key dtype twice"),
    "metadata number": (encode({"__metadata__": {"a": 1}, "t": u8(0, 1)}, b"a"), "__metadata__"),
    "metadata null value": (encode({"__metadata__": {"a": None}, "t": u8(0, 1)}, b"a"), "__metadata__"),
    "metadata list": (encode({"__metadata__": [], "t": u8(0, 1)}, b"a"), "__metadata__"),
    "no tensors": (encode({}), "no tensors"),
    "only metadata": (encode({"__metadata__": {"a": "b"}}), "no tensors"),
    "entry not an object": (encode({"t": 7}), "tensor t"),
    "no dtype": (encode({"t": {"shape": [], "data_offsets": [0, 1]}}, b"a"), "tensor t has no dtype"),
    "dtype a number": (encode({"t": u8(0, 1, dtype=1)}, b"a"), "tensor t has no dtype"),
    "no shape": (encode({"t": {"dtype": "U8", "data_offsets": [0, 1]}}, b"a"), "tensor t has a shape"),
    "shape true": (encode({"t": u8(0, 1, shape=[True])}, b"a"), "tensor t has a shape"),
    "shape float": (encode({"t": u8(0, 1, shape=[1.0])}, b"a"), "tensor t has a shape"),
    "shape negative": (encode({"t": u8(0, 1, shape=[-1, -1])}, b"a"), "tensor t has a shape"),
    "shape null": (encode({"t": u8(0, 1, shape=None)}, b"a"), "tensor t has a shape"),
    "shape string": (encode({"t": u8(0, 1, shape="1")}, b"a"), "tensor t has a shape"),
    "shape overflows": (
        encode({"t": u8(0, 1, shape=[1 << 32, 1 << 31])}, b"a"),
        "tensor t has a shape of more",
    ),
    "overflow before a zero": (
        encode({"t": u8(0, 0, shape=[1 << 62, 4, 0])}),
        "tensor t has a shape of more",
    ),
    "33 dimensions": (encode({"t": u8(0, 1, shape=[1] * 33)}, b"a"), "tensor t has 33 dimensions"),
    "offsets missing": (encode({"t": {"dtype": "U8", "shape": [1]}}, b"a"), "tensor t has a data_offsets"),
    "offsets three": (encode({"t": u8(0, 1, data_offsets=[0, 1, 1])}, b"a"), "tensor t has data_offsets"),
    "offsets backwards": (encode({"t": u8(0, 1, data_offsets=[1, 0])}, b"a"), "tensor t has data_offsets"),
    "offsets negative": (encode({"t": u8(0, 1, data_offsets=[-1, 0])}, b"a"), "tensor t has a data_offsets"),
    "offsets true": (
        encode({"t": u8(0, 1, data_offsets=[False, True])}, b"a"),
        "tensor t has a data_offsets",
    ),
    "offsets huge": (
        encode({"t": u8(0, 1, data_offsets=[0, 1 << 64])}, b"a"),
        "tensor t has 18446744073709551616",
    ),
    "size differs": (encode({"t": u8(0, 1, shape=[2])}, b"a"), "but shape [2] of U8 needs 2"),
    "overlap": (encode({"a": u8(0, 2), "t": u8(1, 3)}, b"abc"), "tensor t overlaps"),
    "same place": (encode({"a": u8(0, 2), "t": u8(0, 2)}, b"ab"), "tensor t overlaps"),
    "hole": (encode({"a": u8(0, 1), "t": u8(2, 3)}, b"abc"), "tensor t follows a hole"),
    "hole at the start": (encode({"t": u8(1, 3)}, b"abc"), "tensor t follows a hole"),
    "empty tensor within another": (encode({"a": u8(0, 2), "t": u8(1, 1)}, b"ab"), "tensor t overlaps"),
    "truncated": (encode({"t": u8(0, 9)}, b"ab"), "x.safetensors is truncated: tensor t ends at byte "),
    "trailing": (encode({"t": u8(0, 2)}, b"abcd"), "2 trailing bytes"),
    "surrogate name": (encode({"\ud800": u8(0, 2)}, b"ab"), "surrogate"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_broken_file_is_refused_by_name(read, case):
    content, expected = HOSTILE[case]
    with pytest.raises(SourceError) as caught:
        read(content)
    assert "x.safetensors" in caught.value.message
    assert expected in text_of(caught.value)


def test_a_key_that_is_there_twice_is_found_at_once_among_many(read):
    """In one pass: with a pass for each key before it, this would take hours."""
    entries = [f'"t{number}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for number in range(200_000)]
    with pytest.raises(SourceError, match="has the key t199999 twice"):
        read(encode(("{" + ",".join([*entries, entries[-1]]) + "}").encode()))


#: What may stand where a header has a number, a list or a dtype.
ANY = st.sampled_from(
    [None, True, 0, -1, 2.0, "U8", "F4", [], [0], [1], [0, 1], [True], [1.0], [-1], [[1]], {}, [0, 1 << 64], "\ud800"]
)


@given(st.data())
def test_entries_judged_together_are_judged_as_each_alone(tmp_path_factory, data):
    """The header of many tensors is looked at column by column: no fault may hide among sound neighbours."""
    header = {name: u8(at, at + 1) for at, name in enumerate("abcd")}
    for name in data.draw(st.lists(st.sampled_from("abcd"), max_size=2)):
        field = data.draw(st.sampled_from(["", "name", *header[name]])) if isinstance(header.get(name), dict) else ""
        if field == "name":
            header["\ud800"] = header.pop(name)
        elif field:
            header[name][field] = data.draw(ANY)
        elif name in header:
            header[name] = data.draw(ANY)
    path = tmp_path_factory.mktemp("x") / "x.safetensors"
    path.write_bytes(encode(header, b"abcd"))
    assert _outcome(path) == _outcome(path, one_by_one=True)


def _outcome(path, one_by_one=False):
    with pytest.MonkeyPatch.context() as patch:
        if one_by_one:
            patch.setattr(safetensors_entries, "_sound", lambda header: [])
        try:
            return [(name, ref.dtype, ref.shape, ref.extents) for name, ref in read_all(path)]
        except StreamconvError as error:
            return type(error), text_of(error)


def read_all(path):
    return safetensors.read(path, HeaderRoom(LIMIT))[1].items()


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "f32", "", "Int4", "str", "\x1b[31m"])
def test_an_unknown_dtype_is_not_guessed(read, dtype):
    with pytest.raises(UnsupportedError, match="tensor t has dtype") as caught:
        read(encode({"t": u8(0, 2, dtype=dtype)}, b"ab"))
    assert text_of(caught.value)


def test_a_header_beyond_the_budget_is_refused_unread(read):
    with pytest.raises(SourceError, match=r"the header of x\.safetensors \(101 bytes, .* 100 are allowed"):
        read(encode(b"{" * 101, b""), room=100)
    with pytest.raises(
        SourceError, match=r"the header of x\.safetensors \(60 bytes, about 4 values\) .* 60 are allowed"
    ):
        read(encode({"t": u8(0, 2)}, b"ab"), room=60)
    read(encode({"t": u8(0, 2)}, b"ab"), room=78)


def test_only_the_header_is_read(tmp_path, monkeypatch):
    path = tmp_path / "sparse.safetensors"
    content = encode({"t": u8(0, 1 << 40)})
    with path.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + (1 << 40))
    seen = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda d, n, o: (seen.append(o + n), pread(d, n, o))[1])
    _, tensors = safetensors.read(path, HeaderRoom(LIMIT))
    assert tensors["t"].nbytes == 1 << 40
    assert max(seen) <= len(content)


@pytest.mark.parametrize("kind", ["fifo", "directory", "missing", "dangling", "device", "NUL"])
def test_what_is_no_regular_file_neither_hangs_nor_passes(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "NUL":
        path = tmp_path / "x.safetensors\0"
    with pytest.raises(SourceError, match=r"x\.safetensors"):
        safetensors.read(path, HeaderRoom(LIMIT))


@pytest.mark.parametrize("header", [
    {"t": u8(0, 2), "__metadata__": {}},
    {"__metadata__": {"format": "pt"}, "t": u8(0, 2)},
    {"__metadata__": None, "t": u8(0, 2)},
    {"t": u8(0, 2, extra=[1, {}])},
    b'  {"t": {"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   ',
    {"t": u8(0, 2, shape=[1, 2, 1]), "e": u8(2, 2, dtype="F32")},
    {"e": u8(0, 0, dtype="F32", shape=[4, 0]), "t": u8(0, 2)},
])  # fmt: skip
def test_unusual_but_valid_headers_are_read(read, ref_bytes, header):
    _, tensors = read(encode(header, b"ab"))
    assert ref_bytes(tensors["t"]) == b"ab"


@pytest.mark.parametrize(("dtype", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("F8_E8M0", 1), ("C64", 8)])
def test_dtypes_that_numpy_or_older_libraries_lack(read, dtype, size):
    _, tensors = read(encode({"t": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}}, b"a" * 2 * size))
    assert tensors["t"].dtype.name == dtype


def test_the_library_has_the_last_word(read, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no\x1b")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    with pytest.raises(SourceError, match=r"x\.safetensors .* library refuses it: no\\x1b"):
        read(encode({"t": u8(0, 2)}, b"ab"))


def test_the_library_judges_the_same_header_and_size(read, monkeypatch):
    seen = []

    def opened(path, framework):
        seen.append((Path(path).stat().st_size, Path(path).read_bytes()))
        return safe_open(path, framework)

    content = encode({"t": u8(0, 2), "u": u8(2, 5)}, b"abcde")
    monkeypatch.setattr(safetensors, "safe_open", opened)
    read(content)
    assert seen == [(len(content), content[:-5] + bytes(5))]


def test_without_files_in_memory_nobody_judges_but_us(read, monkeypatch):
    def refused():
        raise OSError(errno.ENOSYS, "none")

    monkeypatch.setattr(disk, "memory_file", refused)
    assert list(read(encode({"t": u8(0, 2)}, b"ab"))[1]) == ["t"]


def test_order_is_by_offset_and_names_are_any_text(read, ref_bytes):
    _, tensors = read(encode({"": u8(2, 3), "a b/\n": u8(0, 1), "模型": u8(1, 2)}, b"abc"))
    assert {name: ref_bytes(ref) for name, ref in tensors.items()} == {"a b/\n": b"a", "模型": b"b", "": b"c"}
    assert list(tensors) == ["a b/\n", "模型", ""]


def test_torch_files_are_read(tmp_path, ref_bytes):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    tensors = {
        "bf16": torch.arange(6).reshape(2, 3).bfloat16(),
        "f8": torch.ones(3).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4, dtype=torch.float16),
        "mask": torch.tensor([True, False]),
        "long": torch.tensor([[1 << 40]]),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    _, found = safetensors.read(tmp_path / "model.safetensors", HeaderRoom(LIMIT))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tuple(tensor.shape)
        assert ref_bytes(found[name]) == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", ["many_dtypes.safetensors", "many_dtypes_nobf16_crc.safetensors"])
def test_mindspore_files_are_read(samples, ref_bytes, name):
    _, found = safetensors.read(samples / name, HeaderRoom(LIMIT))
    expected = dict(deserialize((samples / name).read_bytes()))
    assert {n: (r.dtype.name, list(r.shape), ref_bytes(r)) for n, r in found.items()} == {
        n: (e["dtype"], e["shape"], bytes(e["data"])) for n, e in expected.items()
    }


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_flipped_byte_escapes_our_errors(tmp_path_factory, data):
    content = bytearray(encode({"__metadata__": {"a": "b"}, "t": u8(0, 2), "s": u8(2, 4)}, b"abcd"))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(8, len(content))) :]
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(content)
    try:
        file, tensors = safetensors.read(path, HeaderRoom(LIMIT))
    except StreamconvError as error:
        assert text_of(error)
    else:
        assert all(e.offset + e.length <= file.size for ref in tensors.values() for e in ref.extents)


# Laying out

ITEM_NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SPECS = st.lists(
    st.tuples(
        ITEM_NAMES,
        st.sampled_from(["BOOL", "U8", "I16", "F32", "F64", "I64", "BF16", "F16", "F8_E4M3", "C64"]),
        st.lists(st.integers(0, 4), max_size=3),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda item: item[0],
).map(lambda items: [TensorSpec(n, dtypes.from_safetensors(d, n), tuple(s)) for n, d, s in items])


@settings(max_examples=100, deadline=None)
@given(SPECS, st.sampled_from([{}, {"format": "pt"}, {"format": "ms", "ключ": "значение"}]))
def test_what_is_laid_out_reads_back(tmp_path_factory, file_bytes, ref_bytes, specs, metadata):
    specs = [s for s in specs if s.name not in (*metadata, "__metadata__")] or [TensorSpec("t", U8, (1,))]
    data = {s.name: bytes((i + k) % 2 for k in range(s.nbytes)) for i, s in enumerate(specs)}
    output = safetensors.lay_out("y.safetensors", specs, metadata)
    path = tmp_path_factory.getbasetemp() / output.name
    path.write_bytes(file_bytes(output, data))
    _, found = safetensors.read(path, HeaderRoom(LIMIT))
    assert list(found) == [s.name for s in sorted(specs, key=lambda s: -s.dtype.itemsize)]
    for spec in specs:
        ref = found[spec.name]
        assert (ref.dtype, ref.shape, ref_bytes(ref)) == (spec.dtype, spec.shape, data[spec.name])
        assert ref.extents[0].offset % spec.dtype.itemsize == 0


def test_the_header_to_the_byte():
    specs = [TensorSpec("b", BF16, (2,)), TensorSpec("é", F32, (1, 2)), TensorSpec("a", F32, (0,))]
    output = safetensors.lay_out("m.safetensors", specs, {"format": "ms"})
    text = (
        '{"__metadata__":{"format":"ms"},"é":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
        '"a":{"dtype":"F32","shape":[0],"data_offsets":[8,8]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]}}'
    ).encode()
    text += b" " * (-len(text) % 8)
    at = 8 + len(text)
    assert output.literals == ((0, struct.pack("<Q", len(text)) + text),)
    assert output.extents == {"é": ((at, 8),), "a": ((at + 8, 0),), "b": ((at + 8, 4),)}
    assert output.size == at + 12


def test_the_library_writes_the_same_bytes(file_bytes):
    arrays = {"a": np.arange(3, dtype="f8"), "b": np.ones((2, 2), "f4"), "c": np.arange(5, dtype="u1")}
    specs = [
        TensorSpec(n, dtypes.from_safetensors(d, n), arrays[n].shape)
        for n, d in (("a", "F64"), ("b", "F32"), ("c", "U8"))
    ]
    output = safetensors.lay_out("m.safetensors", specs, {"format": "np"})
    assert file_bytes(output, {n: a.tobytes() for n, a in arrays.items()}) == save(arrays, {"format": "np"})


@pytest.mark.slow
def test_mindspore_loads_what_is_laid_out(tmp_path, file_bytes):
    mindspore = pytest.importorskip("mindspore")
    names = ["F64", "F16", "BF16", "I64", "BOOL", "U8", "F32", "I32"]
    specs = [TensorSpec(f"w.{d}.é", dtypes.from_safetensors(d, d), (2, 3)) for d in names]
    specs += [TensorSpec("scalar", F32, ()), TensorSpec("empty", F32, (0,)), TensorSpec("odd", U8, (1,))]
    data = {s.name: bytes(i % 2 for i in range(s.nbytes)) for s in specs}
    output = safetensors.lay_out("m.safetensors", specs, {"format": "ms"})
    (tmp_path / output.name).write_bytes(file_bytes(output, data))
    loaded = mindspore.load_checkpoint(str(tmp_path / output.name), format="safetensors")
    assert loaded.keys() == data.keys()
    for spec in specs:
        assert tuple(loaded[spec.name].shape) == spec.shape
        assert bytes(loaded[spec.name].get_bytes()) == data[spec.name]


@pytest.mark.parametrize(("specs", "metadata", "error", "expected"), [
    ([], {}, UnsupportedError, "no tensors"),
    ([TensorSpec("t", dtypes.STR, (3,))], {}, UnsupportedError, "tensor t has type str"),
    ([TensorSpec("t", F32, (3,)), TensorSpec("t", F32, (3,))], {}, InternalError, "tensor t"),
    ([TensorSpec("format", F32, (3,))], {"format": "pt"}, UnsupportedError, "tensor format"),
    ([TensorSpec("__metadata__", F32, (3,))], {}, UnsupportedError, "tensor __metadata__"),
])  # fmt: skip
def test_what_readers_would_refuse_is_not_laid_out(specs, metadata, error, expected):
    with pytest.raises(error, match=r"m\.safetensors") as caught:
        safetensors.lay_out("m.safetensors", specs, metadata)
    assert expected in text_of(caught.value)


def test_a_header_too_long_for_readers_is_not_laid_out(monkeypatch):
    monkeypatch.setattr(safetensors, "MAX_HEADER", 100)
    with pytest.raises(UnsupportedError, match="use smaller shards"):
        safetensors.lay_out("m.safetensors", [TensorSpec("t" * 99, F32, (3,))], {})
