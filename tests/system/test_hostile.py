"""Hostile checkpoints, from the command line to what it says and leaves behind.

Each entry of the menu is refused with its exit code and words, or read as what it is; and none of them hangs, writes,
changes its source, reads elsewhere, or sends a control character to the terminal.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamconv
from streamconv.engine import budget as memory
from streamconv.formats import ckpt, shards
from streamconv.formats.header_room import HeaderRoom
from support import hostile, nowhere, running
from support.hostile import ESCAPE, ODD, encode, honest, llama, replaced, u8, write
from support.hostile_menu import LAUGHS, MENU, RAW, YAML, Case

#: Only what hangs takes so long, be the machine ever so busy.
HANG = 60

# -- what is watched ---------------------------------------------------------------------------------------------------

_opened: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_watch)
PACKAGE = Path(streamconv.__file__).parent
#: Installed packages may lie elsewhere than the interpreter: a .pth file can add a folder of them.
_INSTALLED = tuple(folder for folder in sys.path if Path(folder).name == "site-packages")
_ELSEWHERE = ("/proc/", "/sys/", "/dev/null", str(PACKAGE), sys.prefix, sys.base_prefix, *_INSTALLED)


@contextmanager
def watched(*folders: Path) -> Iterator[None]:
    """Nothing but these folders is opened in the block, and it does not hang."""

    def hang(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG)
    _opened.clear()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    roots = tuple(str(folder.resolve()) + os.sep for folder in folders)
    strange = [path for path in _opened if not (os.path.realpath(path) + os.sep).startswith(roots + _ELSEWHERE)]
    assert strange == []


def said_safely(ended: running.Ended) -> None:
    for line in (ended.out + ended.err).split("\n"):
        assert line.isprintable(), line


def judge(case: Case, folder: Path, capsys: Any) -> None:
    """Inspect and convert a case's source."""
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    source, dest = folder / "in" / "model", folder / "out" / "dest"
    case.make(source)
    before = running.tree(folder / "in")
    inspects = case.code if case.inspects is None else case.inspects
    for code, words in (
        (inspects, ("inspect", source)),
        (inspects, ("inspect", source, "--json")),
        (case.code, ("plan", source, dest, *case.words)),
        (case.code, ("convert", source, dest, *case.words)),
    ):
        with watched(folder):
            ended = running.call(capsys, *words)
        said_safely(ended)
        assert ended.code == code, ended.err
        if code:
            assert ended.out == ""
            assert ended.err.startswith("error: ")
            if case.inspects is None or words[0] != "inspect":
                assert [text for text in case.said if text not in ended.err] == [], ended.err
    assert running.tree(folder / "in") == before
    if case.code:
        assert list((folder / "out").iterdir()) == []


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for headers of a mebibyte, whatever the tests before have left in memory."""
    monkeypatch.setattr(memory, "header_room", lambda limit, tensors=None: HeaderRoom(1 << 20, limit, 0, 20))


@pytest.mark.parametrize("what", MENU)
def test_the_menu(what: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    judge(MENU[what], tmp_path, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["in", "out"], ["fifo", "in", "out"])


@pytest.mark.parametrize("what", YAML)
def test_a_hostile_yaml(what: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, code, said = YAML[what]
    (tmp_path / "in").mkdir()
    (tmp_path / "run.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    llama()(tmp_path / "in" / "model")
    words = ("--model", "llama", "--config", tmp_path / "run.yaml")
    with watched(tmp_path):
        ended = running.call(capsys, "plan", tmp_path / "in" / "model", tmp_path / "dest", *words)
    said_safely(ended)
    assert ended.code == code, ended.err
    assert said in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "run.yaml"]


# -- names -------------------------------------------------------------------------------------------------------------

#: Cyrillic a, a composed and a decomposed é, a full-width letter, a zero-width space, one from right to left.
ALIKE = ["model.a", "model.\u0430", "\xe9", "e\u0301", "\uff21", "A", "A\u200b", "\u202eA"]
HOSTILE_NAMES = [ESCAPE, "t\0u", "\n", "\r", "a\x85b", "\x9b31m", "\u2028", "x" * (64 << 10), *ALIKE]


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".bin"])
@pytest.mark.parametrize("dest", ["dest", "dest.ckpt", "dest.bin"])
def test_names_are_kept_and_never_printed_as_they_are(ending: str, dest: str, tmp_path: Path, capsys: Any) -> None:
    source, out = tmp_path / f"model{ending}", tmp_path / dest
    source.write_bytes(honest(ending, *HOSTILE_NAMES))
    for words in (
        ("inspect", source),
        ("plan", source, out, *RAW),
        ("convert", source, out, *RAW, "--max-mem", "8G"),
        ("verify", source, out, "--max-mem", "8G"),
        ("inspect", out),
    ):
        ended = running.call(capsys, *words)
        assert ended.code == 0, ended.err
        said_safely(ended)
    assert set(streamconv.open(out)) == set(HOSTILE_NAMES)
    ended = running.call(capsys, "inspect", out, "--json")
    said_safely(ended)
    assert {entry["name"] for entry in json.loads(ended.out)["tensors"]} == set(HOSTILE_NAMES)


def test_names_in_what_a_report_counts(tmp_path: Path, capsys: Any) -> None:
    data = np.full(2, 1e30, np.float32).tobytes()
    (tmp_path / "x.safetensors").write_bytes(encode({ESCAPE: u8(0, 8, dtype="F32")}, data))
    for words in ((), ("--json",)):
        out = tmp_path / f"dest{len(words)}"
        ended = running.call(capsys, "convert", tmp_path / "x.safetensors", out, *RAW, "--dtype", "fp16", *words)
        assert ended.code == 0
        assert (
            "\\u001b[31mred" in ended.out if words else "overflowed to infinity in 1 tensor: \\x1b[31mred" in ended.out
        )
        said_safely(ended)


def test_paths_of_no_text(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "\udcff\x1b[31m"
    folder.mkdir()
    source, out = folder / "\udcfe.safetensors", folder / "\udcfd"
    source.write_bytes(honest(""))
    for words in (
        ("inspect", source),
        ("inspect", folder),
        ("inspect", source, "--json"),
        ("plan", source, out, *RAW, "--json"),
        ("convert", source, out, *RAW),
        ("verify", out),
        ("verify", source, out),
    ):
        ended = running.call(capsys, *words)
        said_safely(ended)
        assert ended.code == 0, ended.err
    for words in (("inspect", f"{source}\0"), ("convert", f"{source}\0", out), ("verify", f"{out}\0")):
        ended = running.call(capsys, *words)
        said_safely(ended)
        assert ended.code in (2, 3), ended.err
    ended = running.call(capsys, "convert", source, f"{out}\0", *RAW)
    assert ended.code == 2, ended.err
    ended = running.call(capsys, "convert", source, folder / "new", *RAW, "--config", f"{out}\0")
    assert ended.code == 2, ended.err


# -- files that lie elsewhere, or are none -----------------------------------------------------------------------------


def test_a_cache_is_read_through_its_links(tmp_path: Path, capsys: Any) -> None:
    running.llama(tmp_path / "plain")
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "main", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted((tmp_path / "plain").iterdir())):
        path.rename(blobs / f"sha{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/sha{number}")
    (tmp_path / "out").mkdir()
    with watched(snapshot, blobs, tmp_path / "out"):
        ended = running.call(capsys, "convert", snapshot, tmp_path / "out" / "dest", "--max-mem", "8G")
    assert ended.code == 0, ended.err
    assert {path.name for path in (tmp_path / "out" / "dest").iterdir()} >= running.KEPT


@pytest.mark.parametrize("what", ODD)
def test_companions_that_are_no_files_are_left_and_listed(what: str, tmp_path: Path, capsys: Any) -> None:
    replaced("tokenizer.json", ODD[what], llama())(tmp_path / "model")
    with watched(tmp_path):
        ended = running.call(capsys, "convert", tmp_path / "model", tmp_path / "dest")
    assert ended.code == 0, ended.err
    assert "ignored  tokenizer.json (" in ended.err
    assert not (tmp_path / "dest" / "tokenizer.json").exists()


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".bin", ".yaml"])
def test_a_source_that_is_no_file(what: str, ending: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "in").mkdir()
    odd = tmp_path / "in" / f"x{ending}"
    ODD[what](odd)
    good = tmp_path / "good.safetensors"
    good.write_bytes(honest(""))
    commands: list[tuple[object, ...]] = [("convert", good, tmp_path / "dest", *RAW, "--config", odd)]
    if ending != ".yaml":
        commands += [("inspect", odd), ("convert", odd, tmp_path / "dest", *RAW), ("verify", odd)]
    for words in commands:
        with watched(tmp_path):
            ended = running.call(capsys, *words)
        said_safely(ended)
        assert ended.code in (2, 3), ended.err
        assert odd.name in ended.err
    assert not (tmp_path / "dest").exists()


def test_a_wrong_crc_is_not_checked_and_that_is_said(tmp_path: Path, capsys: Any) -> None:
    source = tmp_path / "x.ckpt"
    source.write_bytes(honest(".ckpt") + b"crc_num" + (zlib.crc32(honest(".ckpt")) ^ 1).to_bytes(10, "big"))
    for words in (("inspect", source), ("convert", source, tmp_path / "dest", *RAW)):
        ended = running.call(capsys, *words)
        assert ended.code == 0, ended.err
        assert "x.ckpt: crc_num (a CRC of the whole file; not checked)" in ended.out + ended.err


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[1 << 40, 0], [0, 1 << 40], [1 << 20, 1 << 20, 0], [1] * 32, [0] * 32])
def test_shapes_of_little_and_many(shape: list[int], tmp_path: Path, capsys: Any) -> None:
    nbytes = int(0 not in shape)
    header = {"t": u8(0, nbytes, shape=shape), "u": u8(nbytes, nbytes + 2)}
    (tmp_path / "x.safetensors").write_bytes(encode(header, b"ab" + bytes(nbytes)))
    for dest in ("a", "b.ckpt", "c.bin"):
        with watched(tmp_path):
            ended = running.call(capsys, "convert", tmp_path / "x.safetensors", tmp_path / dest, *RAW)
        assert ended.code == 0 or (dest == "b.ckpt" and max(shape) > 1 << 31 and ended.code == 4), ended.err


@pytest.mark.parametrize("alpha", ["*l49", "[1, 2]", "x", "true", ".nan", "0x" + "f" * 9000, "-1"])
def test_a_scale_of_an_adapter_that_is_none(alpha: str, tmp_path: Path, capsys: Any) -> None:
    """It would stand in the adapter_config.json, written out in full."""
    layer = "model.layers.0.attention.wq.mindpet_delta_lora_"
    specs = hostile.specs(f"{layer}a", f"{layer}b", shape=(2, 2))
    (tmp_path / "x.ckpt").write_bytes(hostile.assembled(ckpt.lay_out("x.ckpt", specs)))
    text = LAUGHS + f"model:\n  model_config:\n    pet_config:\n      lora_alpha: {alpha}\n"
    (tmp_path / "run.yaml").write_text(text)
    words = ("--model", "llama", "--reverse", "-o", "is_lora=true", "--config", tmp_path / "run.yaml")
    with watched(tmp_path):
        ended = running.call(capsys, "convert", tmp_path / "x.ckpt", tmp_path / "dest", *words)
    said_safely(ended)
    assert ended.code == 3, ended.err
    assert "lora_alpha is not a number between" in ended.err
    assert not (tmp_path / "dest").exists()


# -- memory ------------------------------------------------------------------------------------------------------------

BUDGET = 96 << 20
PEAK = """
import sys
from streamconv.cli import main as cli
from streamconv.storage import memory
sys.argv[0] = "streamconv"
code = cli.run()
print(code, memory.peak_bytes())
"""


def many(unit: str, count: int) -> str:
    return ",".join(unit % number for number in range(count))


def dense(count: int) -> bytes:
    """A pickle of a dictionary of that many pairs."""
    return b"\x80\x02}(" + b"".join(b"M%c%c]" % (n & 255, n >> 8 & 255) for n in range(count)) + b"u."


#: Files of little but values, by how many there are; about two bytes of a budget's header each.
DENSE = {
    "header of objects": ("x.safetensors", lambda n: encode(b"{" + many('"%x":{}', n).encode() + b"}"), 12),
    "header of lists": ("x.safetensors", lambda n: encode(b'{"a":[' + many("[]%.0s", n).encode() + b"]}"), 4),
    "header of tensors": (
        "x.safetensors",
        lambda n: encode(b"{" + many('"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', n).encode() + b"}"),
        56,
    ),
    "index": (shards.HF_INDEX, lambda n: b'{"weight_map":{' + many('"%x":"a"', n).encode() + b"}}", 12),
    "config": ("config.json", lambda n: b'{"x":{' + many('"%x":[]', n).encode() + b"}}", 12),
    "manifest": ("streamconv.json", lambda n: b'{"x":{' + many('"%x":[]', n).encode() + b"}}", 12),
    "yaml": ("run.yaml", lambda n: ("a: [" + "b," * n + "]").encode(), 60),
    "records": ("x.ckpt", lambda n: b"".join(hostile.record(b"%x" % i, (), b"UInt8", b"a") for i in range(n)), 100),
    "pickle": ("x.bin", lambda n: hostile.zipped({"a/data.pkl": dense(n)}), 20),
    "entries": (
        "x.bin",
        lambda n: hostile.zipped({"a/data.pkl": b"\x80\x02}.", **{f"a/{i:x}": b"" for i in range(n)}}),
        60,
    ),
}


@pytest.mark.parametrize("size", [1_000_000, 2_000_000])
@pytest.mark.parametrize("what", DENSE)
def test_what_is_read_fits_the_budget(what: str, size: int, tmp_path: Path) -> None:
    """Below the limit it is read, above it is not, and neither takes more than is allowed."""
    name, make, width = DENSE[what]
    source = tmp_path / "model"
    write(model__safetensors=honest("") if name in ("config.json", "streamconv.json", "run.yaml") else b"")(source)
    if (source / "model.safetensors").stat().st_size == 0:
        (source / "model.safetensors").unlink()
    (source / name).write_bytes(make(size // width))
    words = ["convert", source, tmp_path / "dest", *RAW, "--max-mem", str(BUDGET), "--quiet"]
    words += ["--config", source / name] if name == "run.yaml" else []
    done = peak(*words)
    assert done.code in (0, 3, 4, 6), done.err


def peak(*words: object) -> running.Ended:
    """Run in a process of its own, which has to stay within the budget."""
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, words)],
        capture_output=True,
        text=True,
        env=running.environment(),
        cwd=nowhere(),
        timeout=HANG,
        check=True,
    )
    code, most = map(int, ran.stdout.split()[-2:])
    assert most <= BUDGET, f"{most / 2**20} MiB"
    return running.Ended(code, ran.stdout, ran.stderr)


def test_ten_million_keys_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as target:
        target.write(struct.pack("<Q", 90_000_000) + b"{")
        for _ in range(10):
            target.write(b'"aaaa":0,' * 1_000_000)
    done = peak("convert", path, tmp_path / "dest", *RAW, "--max-mem", str(BUDGET))
    assert done.code == 6
    assert "the header of x.safetensors (90000000 bytes, about 10000000 values) needs 2.794 GiB" in done.err
