"""Pickles: published tricks, each refused by name, and nothing of them executed."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.errors import SourceError, StreamconvError, UnsupportedError
from streamconv.formats import pickle_machine, pickles
from streamconv.formats.catalog import open_catalog
from streamconv.formats.header_room import HeaderRoom
from support.helpers import text_of
from support.running import run

MARK = "executed"
TOUCH = f"touch {MARK}"


class _Reduced:
    """An object that unpickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def opcodes(text: bytes) -> bytes:
    return b"\x80\x02" + text + b"."


def by_global(module: str, name: str, argument: str = TOUCH) -> bytes:
    """`module.name(argument)`, as a pickle of protocol 2."""
    text = argument.encode()
    return opcodes(b"c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(text)) + text + b"\x85R")


def by_stack(module: str, name: str, argument: str = TOUCH) -> bytes:
    """The same through STACK_GLOBAL, which hides the name from who looks for lines."""
    words = b"".join(b"\x8c" + bytes([len(w)]) + w.encode() for w in (module, name))
    return b"\x80\x04" + words + b"\x93\x8c" + bytes([len(argument)]) + argument.encode() + b"\x85R."


TRICKS: dict[str, bytes] = {
    "os.system": pickle.dumps(_Reduced(os.system, TOUCH), protocol=2),
    "posix.system": by_global("posix", "system"),
    "subprocess.Popen": by_global("subprocess", "Popen"),
    "builtins.eval": by_global("builtins", "eval", f"open('{MARK}', 'w')"),
    "builtins.exec": by_stack("builtins", "exec", f"open('{MARK}', 'w')"),
    "__builtin__.eval": by_global("__builtin__", "eval", f"open('{MARK}', 'w')"),
    "builtins.__import__": by_stack("builtins", "__import__", "os"),
    "builtins.getattr": by_stack("builtins", "getattr", "os"),
    "a dotted name": by_stack("builtins", "exec.__call__", f"open('{MARK}', 'w')"),
    "operator.attrgetter": by_global("operator", "attrgetter", "system"),
    "runpy._run_code": by_global("runpy", "_run_code"),
    "importlib.import_module": by_stack("importlib", "import_module", "antigravity"),
    "pickle.loads": by_global("pickle", "loads"),
    "_pickle.loads": by_stack("_pickle", "loads"),
    "numpy runstring": by_global("numpy.testing._private.utils", "runstring"),
    "torch.load": by_global("torch.serialization", "load"),
    "torch.hub.load": by_global("torch.hub", "load"),
    "torch._dynamo": by_global("torch._dynamo.guards", "GuardBuilder.get"),
    "webbrowser.open": by_global("webbrowser", "open"),
    "bdb.Bdb.run": by_stack("bdb", "Bdb.run"),
    "timeit.timeit": by_global("timeit", "timeit"),
    "asyncio": by_global("asyncio.unix_events", "_UnixSubprocessTransport._start"),
    "INST": b"\x80\x02(X" + struct.pack("<I", len(TOUCH)) + TOUCH.encode() + b"ios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nX" + struct.pack("<I", len(TOUCH)) + TOUCH.encode() + b"o.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\nX" + struct.pack("<I", len(TOUCH)) + TOUCH.encode() + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93)}\x92.",
    "EXT1": opcodes(b"\x82\x01"),
    "BUILD on a name": opcodes(b"ctorch\nFloatStorage\n}b"),
    "BUILD on a call": opcodes(b"ctorch\nSize\n)R}X\x05\0\0\0__a__K\x01sb"),
    "__setstate__ by BUILD": opcodes(b"ccollections\nOrderedDict\n(X\x0c\0\0\0__setstate__cos\nsystem\ntRb"),
    "REDUCE of a call": opcodes(b"ctorch\nSize\n)R)R"),
    "persistent id": opcodes(b"cos\nsystem\nQ"),
    "PERSID": b"\x80\x02Pos.system\n.",
    "copyreg": by_global("copyreg", "_reconstructor"),
    "shelve": by_stack("shelve", "open"),
    "LONG4": opcodes(b"\x8b" + struct.pack("<i", 1 << 30)),
}


def archive(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_trick_is_refused_and_nothing_is_executed(tmp_path, monkeypatch, trick, name) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: Path(MARK).touch())
    path = archive(tmp_path / name, TRICKS[trick])
    for source in (path, tmp_path):
        with pytest.raises((UnsupportedError, SourceError)) as caught:
            open_catalog(source)
        assert text_of(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("trick", ["os.system", "builtins.exec", "INST", "NEWOBJ"])
def test_by_hand_the_tricks_do_work(tmp_path, trick) -> None:
    """Else the test above would prove nothing: what Python's own unpickler does with them, in a process of its own."""
    (tmp_path / "trick").write_bytes(TRICKS[trick])
    before = """
import pickle, time
try:
    pickle.load(open('trick', 'rb'))
except Exception:
    pass
time.sleep(0.3)
"""
    run("--version", before=before, cwd=tmp_path)
    done = (tmp_path / MARK).exists() or trick == "NEWOBJ"  # Popen without a shell finds no program of that name
    assert done


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "convert", "plan"])
def test_the_command_line_says_what_it_wanted(tmp_path, command) -> None:
    archive(tmp_path / "m.bin", TRICKS["os.system"])
    words = ("m.bin",) if command == "inspect" else ("m.bin", "out", "--model", "raw")
    ended = run(command, *words, cwd=tmp_path)
    assert ended.code == 4
    assert "its pickle asks for posix.system, which is not part of a checkpoint" in ended.err
    assert "nothing was executed" in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin"]


def test_no_name_is_ever_imported(monkeypatch) -> None:
    import builtins

    asked: list[str] = []
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: asked.append(name) or real(name, *rest))
    value = pickles.load(by_global("torch", "FloatStorage"), {"torch.FloatStorage"}, "m", HeaderRoom(1 << 20))
    monkeypatch.undo()
    assert isinstance(value, pickle_machine.Call)
    assert "torch" not in asked


def test_containers_as_pickle_makes_them() -> None:
    value = {"a": [1, -2, 3.5, None, True], "b": ("x", (1, 2, 3, 4)), "c": {"d": 1 << 40}}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert plain(pickles.load(pickle.dumps(value, protocol), {"_codecs.encode"}, "m", HeaderRoom(1 << 20))) == value


def plain(value: Any) -> Any:
    if isinstance(value, pickle_machine.Pairs):
        return {plain(key): plain(one) for key, one in value.pairs}
    if isinstance(value, list | tuple):
        return type(value)(plain(one) for one in value)
    return value


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60), st.sampled_from((b"", b"\x80\x02", b"\x80\x04", b"\x80\x02}q\0(X\x01\0\0\0a")))
def test_any_bytes_are_an_error_or_a_value(data, head) -> None:
    try:
        pickles.load(head + data + b".", {"torch.FloatStorage"}, "m", HeaderRoom(1 << 16))
    except StreamconvError as error:
        assert text_of(error)


def test_a_pickle_that_unfolds_without_end_costs_what_its_opcodes_do() -> None:
    """`a = (a, a)` two hundred times over; and a text that is put in a list a hundred thousand times."""
    fold = b"]" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200))
    assert len(pickles.load(opcodes(fold), set(), "m", HeaderRoom(1 << 20))) == 2
    value = b"X\x10\x27\0\0" + b"a" * 10_000 + b"q\x00]"
    long = opcodes(value + b"h\x00a" * 100_000)
    with pytest.raises(SourceError, match=r"the pickle of m .* 100000 are allowed"):
        pickles.load(long, set(), "m", HeaderRoom(100_000))


def test_deep_nesting_is_no_recursion() -> None:
    deep = io.BytesIO()
    deep.write(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")
    assert isinstance(pickles.load(deep.getvalue(), set(), "m", HeaderRoom(1 << 22)), list)
