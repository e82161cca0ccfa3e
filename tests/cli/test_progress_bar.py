"""Progress for people: a bar on a terminal with rate and memory, a line now and then elsewhere."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import termios
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from streamconv.cli import progress_bar as progress
from streamconv.cli.progress_bar import ProgressBar, line
from streamconv.engine.progress import Progress
from support import golden, running
from support.faults import SLOWER

MIB = 1 << 20


def event(done: int, seconds: float = 2.0, limit: int = 64 * MIB, total: int = 100 * MIB) -> Progress:
    return Progress(done, total, seconds, 50 * MIB, limit, "ms-model-00001-of-00002.safetensors")


def on_a_terminal(
    *words: object, number: signal.Signals | None = None, columns: int = 150, **arguments: Any
) -> tuple[int, str]:
    """Run with stderr on a terminal; what is drawn there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    process = running.start(*words, stderr=theirs, **arguments)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            drawn += os.read(ours, 4096)
        except OSError:  # a terminal that nobody holds any more
            break
        if number and b"%|" in drawn:
            process.send_signal(number)
            number = None
    os.close(ours)
    process.communicate(timeout=60)
    return process.returncode, drawn.decode()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [150, 0], ids=["", "a terminal that does not know its size"])
def test_a_bar_on_a_terminal(columns: int, tmp_path: Path) -> None:
    words = ("convert", running.llama(tmp_path / "source"), tmp_path / "dest")
    code, drawn = on_a_terminal(*words, columns=columns)
    assert code == 0
    assert "\r" in drawn
    assert re.search(r"100%\|.*B/s", drawn), drawn
    assert re.search(r"mem [0-9.]+ MiB/[0-9.]+ [MG]iB", drawn), drawn
    assert "left " in drawn
    assert "ms-model-00001-of-00001.safetensors" in drawn
    assert golden.found(tmp_path / "dest")


@pytest.mark.slow
def test_quiet_draws_nothing_on_a_terminal(tmp_path: Path) -> None:
    assert on_a_terminal("convert", running.tiny(tmp_path / "source"), tmp_path / "dest", "--quiet") == (0, "")


@pytest.mark.slow
def test_a_message_after_the_bar_has_a_line_of_its_own(tmp_path: Path) -> None:
    words = ("convert", running.mixtral(tmp_path / "source"), tmp_path / "dest", "--workers", 1)
    code, drawn = on_a_terminal(*words, number=signal.SIGTERM, faults=(SLOWER,))
    assert code == 143
    assert drawn.rstrip().split("\n")[-2].strip() == "error: terminated"


def test_lines_now_and_then_elsewhere(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with ProgressBar(stream) as bar:
        for second in range(35):
            clock[0] = float(second)
            bar(event(second * MIB, max(second, 1)))
    lines = stream.getvalue().splitlines()
    assert [text.split(" of ")[0].strip() for text in lines] == ["10% 10 MiB", "20% 20 MiB", "30% 30 MiB"]
    assert "\r" not in stream.getvalue()


def test_a_line_says_all() -> None:
    assert line(event(40 * MIB)) == (
        " 40% 40 MiB of 100 MiB, 20 MiB/s, 3 s left, memory 50 MiB/64 MiB, ms-model-00001-of-00002.safetensors"
    )
    assert "time left unknown" in line(event(0))
    assert "memory 50 MiB, " in line(event(0, limit=0))
    assert "time left unknown" in line(event(0, seconds=0))
    assert line(event(0, total=0)).startswith("100%")


def test_a_line_on_a_cluster_says_which_node_is_slow(monkeypatch) -> None:
    text = line(replace(event(40 * MIB), nodes=3, slowest="host-7 12 MiB/s"))
    assert "3 s left, 3 nodes, slowest host-7 12 MiB/s, memory 50 MiB/64 MiB, ms-model" in text
    assert "1 node, memory" in line(replace(event(40 * MIB), nodes=1))
    assert "\x1b" not in line(replace(event(1), nodes=2, slowest="\x1b[31m"))
    for name, size in (("COLUMNS", "150"), ("LINES", "24")):
        monkeypatch.setenv(name, size)
    stream = Terminal()
    with ProgressBar(stream) as bar:
        bar(replace(event(40 * MIB), nodes=2, slowest="b 1 MiB/s"))
    assert "2 nodes, slowest b 1 MiB/s, mem 50" in stream.getvalue()


def test_a_file_name_is_escaped() -> None:
    assert "\x1b" not in line(Progress(1, 2, 1, 1, 1, "\x1b[31m"))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_bar_ends_at_the_total(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # what older versions of tqdm go by
    monkeypatch.setenv("LINES", "50")
    stream = Terminal()
    with ProgressBar(stream) as bar:
        for done in (0, 30, 30, 100):
            bar(event(done * MIB))
    assert "100%" in stream.getvalue()
    assert "mem 50 MiB/64 MiB ms-model-00001-of-00002.safetensors" in stream.getvalue()
    with ProgressBar(Terminal()) as bar:
        bar(event(0, total=0))
    with ProgressBar(Terminal()):
        pass


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stream_that_fails_stops_no_work(terminal: bool, monkeypatch) -> None:
    class Broken(io.StringIO):
        def isatty(self) -> bool:
            return terminal

        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(progress, "_EVERY", 0.0)
    with ProgressBar(Broken()) as bar:
        bar(event(1))
        bar(event(2))
