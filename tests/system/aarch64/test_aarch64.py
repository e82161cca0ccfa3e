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


OURS = Findings("x86_64", {"Llama: one": "a", "Llama: two": "b", "FP8: one": "c"}, 0)


@pytest.mark.parametrize(
    ("machine", "digests", "wrong"),
    [
        ("aarch64 (neon)", OURS.digests, []),
        ("", OURS.digests, []),
        ("aarch64", {**OURS.digests, "Llama: two": "c"}, ["a64fx: Llama: two"]),
        ("aarch64", {}, ["a64fx: a step did not run"]),
        ("x86_64", OURS.digests, ["a64fx: ran on x86_64"]),
    ],
)
def test_a_difference_and_the_wrong_machine_are_noticed(
    machine: str, digests: dict[str, str], wrong: list[str], tmp_path: Path
) -> None:
    side = sides.emulated(tmp_path / "python", "a64fx", tmp_path)
    assert run.faults(side, OURS, Findings(machine, digests, 0)) == wrong
    assert run.faults(side, OURS, None) == ["a64fx: a step did not run"]


def test_the_table_shows_what_differs() -> None:
    table = run.Table(["host", "a64fx"])
    table.add([OURS, Findings("aarch64", {**OURS.digests, "Llama: two": "c"}, 0)])
    llama, fp8 = ([word.strip() for word in line.split("|")[1:-1]] for line in str(table).splitlines()[2:])
    assert llama[:2] == ["Llama", "2"] and llama[2] != llama[3]
    assert fp8[:2] == ["FP8", "1"] and fp8[2] == fp8[3]


def test_a_case_that_only_one_side_has_is_a_difference() -> None:
    assert sides.differences(Findings("", {"a": "1"}, 0), Findings("", {"b": "1"}, 0)) == ["a", "b"]


def test_a_side_that_fails_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails = sides.emulated(Path(shutil.which("false") or "false"), "a64fx", tmp_path)
    assert run._found(fails, "--help", run.help_) is None
    assert "a64fx: -m ended with 1" in capsys.readouterr().out


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
