"""The benchmarks run by their one command; what they measure is not a test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, found_in_the_tree
from support.running import environment

with found_in_the_tree():
    from benchmarks import device_time, machine
    from benchmarks.measuring import BenchmarkError, Run, interleaved, measure, ratios, spread
    from benchmarks.results import Table

MIB = 1 << 20


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_peak_memory_is_seen_from_outside_and_of_all_processes() -> None:
    hold = "import time; held = bytearray(b'1' * (100 << 20)); time.sleep(0.3)"
    both = f"import subprocess, sys; one = subprocess.Popen([sys.executable, '-c', {hold!r}]); {hold}; one.wait()"
    alone, together = measure(python(hold), synced=False), measure(python(both), synced=False)
    assert 100 * MIB < alone.peak < 260 * MIB
    assert together.peak > alone.peak + 100 * MIB
    assert alone.seconds > 0.3
    assert max(resident for _, resident in alone.memory) <= alone.peak


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(BenchmarkError, match=r"exit code 3(.|\n)*no such luck"):
        measure(python("import sys; print('no such luck'); sys.exit(3)"))


def test_contestants_run_once_a_round() -> None:
    order: list[str] = []

    def contestant(name: str) -> Run:
        order.append(name)
        return Run(1.0, 0)

    runs = interleaved({name: lambda name=name: contestant(name) for name in "abc"}, 4)
    assert {name: len(some) for name, some in runs.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(set(order[i : i + 3]) == set("abc") for i in range(0, 12, 3))


def test_ratios_are_of_pairs() -> None:
    ours, theirs = ([Run(seconds, 0) for seconds in some] for some in ((1, 2, 9), (2, 2, 3)))
    assert ratios(ours, theirs) == spread([0.5, 1.0, 3.0])
    assert f"{spread([3, 1, 2]):.1f}" == "2.0 (1.0-3.0)"


def test_a_table_is_markdown() -> None:
    table = Table(("case", "s"), [("a", "1.00"), ("longer", "2")])
    assert table.markdown() == "| case   |    s |\n| ------ | ---: |\n| a      | 1.00 |\n| longer |    2 |"


def test_the_device_reads_all_of_every_file_and_writes_what_is_asked(tmp_path: Path) -> None:
    if machine.mount(tmp_path).kind == "tmpfs":
        pytest.skip("needs a disk")
    (tmp_path / "folder").mkdir()
    sizes = {
        tmp_path / "folder" / "large": 2 * device_time.READING.nbytes + 5,
        tmp_path / "small": 3,
        tmp_path / "empty": 0,
    }
    for path, size in sizes.items():
        path.write_bytes(bytes(size))
    paths = [tmp_path / "folder", tmp_path / "small", tmp_path / "empty"]
    assert device_time.move(paths)[1] == sum(sizes.values())
    request = device_time.READING_AND_WRITING.nbytes
    seconds, moved = device_time.move(paths, tmp_path / "dest", request + 7)
    assert (tmp_path / "dest" / "bytes").stat().st_size == request + 7
    assert moved == sum(sizes.values()) + 2 * request
    assert seconds > 0


def test_the_one_command(tmp_path: Path) -> None:
    if machine.mount(tmp_path).kind == "tmpfs":
        pytest.skip("needs a disk")
    names = ["copies", "ranks", "memory", "operations", "reading", "proof", "journal", "cluster"]
    out = tmp_path / "out"
    words = [*names, "--quick", "--rounds", "1", "--folder", tmp_path, "--out", out]
    command = [sys.executable, "-m", "benchmarks", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert list(results["benchmarks"]) == names
    assert not results["failed"]
    assert (out / "tables.md").read_text().count("\n## ") == len(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
