"""The demo keeps its word, and says how each of its steps ended."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from streamconv.cli import demo
from support import golden, running
from support.running import call, run

#: Small enough for every day; the real one has a test of its own.
SMALL = {**demo._CONFIG, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 80, "num_attention_heads": 4}


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(demo, "_CONFIG", SMALL)
    monkeypatch.setattr(demo, "_SHARD", 100_000)


def test_the_demo(tmp_path: Path) -> None:
    ended = run("demo", env={"TMPDIR": str(tmp_path)})
    assert ended.code == 0, ended.err
    assert "each stack of experts has 128 MiB, the memory limit is 112 MiB" in ended.out
    first, second = re.findall(r"xxh3 ([0-9a-f]{32})", ended.out)
    assert first == second
    peaks = [float(number) for number in re.findall(r"peak memory ([0-9.]+) MiB of 112 MiB allowed", ended.out)]
    assert len(peaks) == 4
    assert max(peaks) <= 112
    assert "names, shapes, dtypes and bytes are the same" in ended.out
    assert ended.err == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small")
def test_kept_files(tmp_path: Path, capsys) -> None:
    ended = call(capsys, "demo", "--keep", tmp_path / "a" / "b")
    assert ended.code == 0, ended.err
    kept = tmp_path / "a" / "b"
    assert sorted(p.name for p in kept.iterdir()) == ["mixtral-back", "mixtral-hf", "mixtral-ms"]
    assert golden.found(kept / "mixtral-back") == golden.found(kept / "mixtral-hf")
    for line in ended.out.splitlines():
        if line.startswith("$ streamconv verify"):
            assert run(*line.split()[2:]).code == 0
    ended = call(capsys, "demo", "--keep", kept)
    assert ended.code == 2
    assert "is not empty" in ended.err


@pytest.mark.usefixtures("small")
def test_a_step_that_fails_gives_its_code(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(demo.tempfile, "tempdir", None)
    ended = call(capfd, "demo", "--max-mem", "1M")
    assert ended.code == 6
    assert "give --max-mem" in ended.err
    assert "the step above ended with exit code 6" in ended.err
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    error = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    monkeypatch.setattr(demo, "_CONFIG", SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(demo.subprocess, "Popen", running.failing(error))
        ended = call(capsys, "demo", "--keep", tmp_path / "kept")
    assert ended.code == 6
    assert "error: the system refuses a process for the step above: Resource temporarily unavailable" in ended.err
    assert "hint: raise the limit on processes (ulimit -u" in ended.err


def test_wrong_words(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("precious")
    for words, code, message in (
        (["--keep", tmp_path / "file"], 5, "cannot use "),
        (["--keep", tmp_path / "file" / "x"], 5, "cannot use "),
        (["--max-mem", "much"], 2, "--max-mem 'much' is not a size"),
    ):
        ended = call(capsys, "demo", *words)
        assert ended.code == code
        assert message in ended.err
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.usefixtures("small")
def test_a_disk_that_fails(tmp_path: Path, capsys, monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo.samples, "write_hf", fail)
    ended = call(capsys, "demo", "--keep", tmp_path / "demo")
    assert ended.code == 5
    assert "No space left on device" in ended.err


@pytest.mark.usefixtures("small")
def test_other_bytes_are_noticed(tmp_path: Path, capsys, monkeypatch) -> None:
    digests = iter("ab")
    monkeypatch.setattr(demo, "_digest", lambda path: next(digests))
    ended = call(capsys, "demo", "--keep", tmp_path / "demo")
    assert ended.code == 7
    assert "converting back gave other bytes" in ended.err


@pytest.mark.usefixtures("small")
def test_a_peak_above_the_budget_is_a_fault(tmp_path: Path, capsys, monkeypatch) -> None:
    def watch(process) -> int:
        return 1 << 40

    monkeypatch.setattr(demo, "_watch", watch)
    ended = call(capsys, "demo", "--keep", tmp_path / "demo")
    assert ended.code == 1
    assert "is above the limit" in ended.err


def test_the_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    before = demo._digest(source)
    assert before == demo._digest(running.dealt_again(source, tmp_path / "again", 4))
    shard = max(source.glob("*.safetensors"))
    running.flip(shard, shard.stat().st_size - 1)
    assert demo._digest(source) != before
