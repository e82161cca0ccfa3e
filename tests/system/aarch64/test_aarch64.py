"""The short form of `run.py`: an emulated aarch64 processor gives the bits that this machine gives."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from system.aarch64 import conversions, emulator, run, sides
from system.aarch64.sides import Findings


def test_an_emulated_processor_gives_the_same_bits(tmp_path: Path) -> None:
    """Every kernel, and a conversion in four ways; all the rest is in the long form."""
    try:
        python = emulator.prepare(emulator.default_folder())
    except emulator.NotAvailableError as error:
        pytest.skip(str(error))
    assert run.compare(python, tmp_path, short=True) == []


class _Fake(sides.Side):
    """A side that finds what it is given."""

    def findings(self, script: str, *words: object) -> Findings:
        digests = {"one": "a", "two": "a" if self.name == "host" else "b"}
        return Findings(self.emulator.get("machine", "x86_64"), digests, 0)


@pytest.mark.parametrize(
    ("machine", "wrong"),
    [("aarch64 (neon)", ["guest: two"]), ("x86_64", ["guest: ran on x86_64"])],
)
def test_a_difference_and_the_wrong_machine_are_noticed(machine: str, wrong: list[str], tmp_path: Path) -> None:
    step = run.steps(tmp_path, short=True)["kernels"]
    expected = step(_Fake("host", Path("python"), tmp_path))
    assert run._compared(_Fake("guest", Path("python"), tmp_path, {"machine": machine}), step, expected) == wrong


def test_a_case_that_only_one_side_has_is_a_difference() -> None:
    assert sides.differences(Findings("", {"a": "1"}, 0), Findings("", {"b": "1"}, 0)) == ["a", "b"]


def test_a_side_that_fails_is_noticed(tmp_path: Path) -> None:
    fails = sides.emulated(Path(shutil.which("false") or "false"), "a64fx", tmp_path)
    assert run._compared(fails, run.help_, Findings("", {"a": "1"}, 0)) == ["a64fx: a step did not run"]


def test_where_there_is_no_emulator_the_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package python3\n")

    monkeypatch.setattr(emulator.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(emulator.shutil, "which", lambda program: program)
    monkeypatch.setattr(emulator.subprocess, "run", failing)
    with pytest.raises(emulator.NotAvailableError, match="ended with 100: E: Unable to locate package python3"):
        emulator.prepare(tmp_path / "cache")
    monkeypatch.setattr(emulator.shutil, "which", lambda program: None)
    with pytest.raises(emulator.NotAvailableError, match="there is no apt-get"):
        emulator.prepare(tmp_path / "cache")


def test_the_digest_of_a_result_sees_names_and_bytes(tmp_path: Path) -> None:
    digests = set()
    for name, content in (("a.ckpt", b"1"), ("a.ckpt", b"2"), ("b.ckpt", b"2")):
        (tmp_path / name).write_bytes(content)
        digests.add(conversions.digest_of(tmp_path / name))
    assert len(digests) == 3
