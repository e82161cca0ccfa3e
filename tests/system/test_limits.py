"""Limits of the process, as batch systems and containers set them: kept to, or a message; never a leftover."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import streamconv
from support import nowhere, running, strategies
from support.faults import SLOW
from support.running import Ended, run, tree

KIB, MIB = 1 << 10, 1 << 20


def limited(**limits: int) -> Callable[[], None]:
    """What sets limits in the child, such as `AS=…` for RLIMIT_AS."""

    def prepare() -> None:
        for name, number in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (number, number))

    return prepare


def few_processes(number: int) -> Callable[[], None]:
    """What leaves the child so many threads, itself included: as a user of its own, for root has no such limit."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        if os.geteuid() == 0:
            drop_capability, sys_admin, sys_resource = 24, 21, 24
            for capability in (sys_admin, sys_resource):
                libc.prctl(drop_capability, capability, 0, 0, 0)
            limited(NPROC=number)()
            os.setresuid(54321, 0, 0)
        else:
            limited(NPROC=0)()

    return prepare


@pytest.fixture
def threads_can_be_refused() -> None:
    code = "import threading\ntry: threading.Thread().start()\nexcept RuntimeError: raise SystemExit(3)"
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=few_processes(1), check=False)
    if done.returncode != 3:
        pytest.skip("this host refuses no thread")


def is_whole(dest: Path, source: Path) -> bool:
    streamconv.verify(dest, source=source)
    return not list(dest.parent.glob(f"{dest.name}.*"))


def ended_well(ended: Ended, source: Path, dest: Path) -> None:
    """It worked, or it says why not, and leaves nothing."""
    assert "internal error" not in ended.err, ended.err
    if ended.code == 0:
        assert is_whole(dest, source)
    else:
        assert "error: " in ended.err and "hint: " in ended.err
        assert not list(dest.parent.glob(f"{dest.name}*")), ended.err


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [(1,), (2,), (0,), (0, 1, 2)], ids=str)
def test_without_standard_streams_the_work_is_done(closed: tuple[int, ...], tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"

    def close() -> None:
        for number in closed:
            os.close(number)

    for words in (("convert", source, dest), ("verify", source, dest), ("diff", dest, dest), ("inspect", source)):
        ended = run(*words, prepare=close)
        assert ended.code == 0, ended.err
    # What was meant for a stream went into no file.
    assert is_whole(dest, source)


def test_without_standard_streams_and_devices_the_work_is_done(tmp_path: Path) -> None:
    """As in a chroot."""
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    for words in (("convert", source, dest), ("verify", source, dest), ("inspect", source)):
        ended = run(*words, prepare=lambda: os.closerange(0, 3), before="import os; os.devnull = '/missing/null'")
        assert ended.code == 0
    assert is_whole(dest, source)


def test_a_failure_without_standard_streams_has_its_exit_code(tmp_path: Path) -> None:
    assert run("convert", tmp_path / "missing", tmp_path / "dest", prepare=lambda: os.closerange(0, 3)).code == 3


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kib", [40_000, 60_000, 80_000, 100_000, 150_000, 300_000, 600_000])
def test_limited_address_space(kib: int, tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    ended = run("convert", source, dest, "--quiet", prepare=limited(AS=kib * KIB))
    assert ended.code in (0, 6), ended.err
    assert ended.code == 0 or kib < 300_000
    ended_well(ended, source, dest)


def test_memory_that_the_memory_limit_allows_and_the_system_refuses(tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    prepare = limited(AS=300 * MIB)
    ended = run("convert", source, dest, "--max-mem", "2G", "--quiet", prepare=prepare)
    assert ended.code == 6
    assert "the system refused memory that the memory limit allows" in ended.err
    assert "hint: give a smaller --max-mem, or raise the limit on the process's memory (ulimit -v)" in ended.err
    ended_well(ended, source, dest)
    assert run("convert", source, dest, "--max-mem", "128M", "--quiet", prepare=prepare).code == 0
    for words in (("verify", source, dest), ("diff", source, source)):
        assert run(*words, "--max-mem", "2G", prepare=prepare).code == 6, words
        assert run(*words, "--max-mem", "128M", prepare=prepare).code == 0, words


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("threads_can_be_refused")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 3])
def test_refused_threads(threads: int, workers: int, tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    ended = run("convert", source, dest, "--workers", workers, "--quiet", prepare=few_processes(threads))
    assert ended.code == 0, ended.err
    assert is_whole(dest, source)
    works = min(workers, max(1, threads - 2))
    said = (
        "the system refuses threads (ulimit -u or -v, or the container's pids limit): "
        f"running {works} instead of {workers} workers\n"
    )
    assert ended.err == (said if works < workers else "")


@pytest.mark.usefixtures("threads_can_be_refused")
def test_a_run_without_threads_is_stopped_and_resumed(tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    words = ("convert", source, dest, "--quiet")
    process = subprocess.Popen(
        running.command(*words, faults=(SLOW,)),
        stderr=subprocess.PIPE,
        preexec_fn=few_processes(1),  # noqa: PLW1509
        cwd=nowhere(),
        env=running.environment(),
    )
    journal = tmp_path / "dest.partial.streamconv"
    running.wait_until(lambda: journal.exists() and b'["outputs"' in journal.read_bytes(), process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert b"saved in" in said
    ended = run(*words, prepare=few_processes(1))
    assert ended.code == 0, ended.err
    assert is_whole(dest, source)


# -- /proc -----------------------------------------------------------------------------------------------------------

NO_PROC = """
from streamconv.storage import memory
memory.{} = "/nowhere"
"""


@pytest.mark.parametrize("lack", ["_STATM", "_MEMINFO"])
def test_without_proc_the_work_is_done(lack: str, tmp_path: Path) -> None:
    """In a chroot, or where /proc/meminfo is hidden."""
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    # What is left then to go by is the most that was resident, and that of the process that it was forked from counts.
    limit = ("--max-mem", "16G")
    for words in (
        ["convert", source, dest, "--verify", *limit],
        ["verify", source, dest, *limit],
        ["diff", dest, dest, *limit],
    ):
        ended = run(*words, "--quiet", before=NO_PROC.format(lack))
        assert ended.code == 0, ended.err


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [6, 8, 16])
def test_few_descriptors(number: int, tmp_path: Path) -> None:
    source = running.dealt_again(running.tiny(tmp_path / "one", shard=1 << 30), tmp_path / "source", 20)
    dest = tmp_path / "dest"
    ended = run("convert", source, dest, "--io", "direct", "--quiet", prepare=limited(NOFILE=number))
    if ended.code:
        assert number < 16
        assert "Too many open files" in ended.err
        assert "hint: raise the limit on open files (ulimit -n)" in ended.err
    else:
        assert is_whole(dest, source)


@pytest.mark.parametrize("words", [["--workers", 4, "--verify"], []], ids=str)
@pytest.mark.parametrize("cut", ["shards", "ranks", "copies"])
def test_16_descriptors_do_for_any_number_of_workers(cut: str, words: list[object], tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    planned = streamconv.plan(source, tmp_path / "no")
    more: list[object] = ["--max-shard-size", planned.layout.total // 20]
    if cut != "shards":
        devices = (16,) if cut == "ranks" else (2, 32)
        more = ["--strategy", strategies.write(tmp_path / "strategy", planned, devices)]
        more += ["--no-links"] if cut == "copies" else []
    ended = run("convert", source, dest, "--quiet", "--io", "direct", *more, *words, prepare=limited(NOFILE=16))
    assert ended.code == 0, ended.err
    assert len(list(dest.rglob("*.safetensors"))) >= 16


@pytest.mark.parametrize("words", [["convert", "--verify"], ["verify"]], ids=" ".join)
def test_more_files_of_a_result_than_descriptors_are_verified(words: list[str], tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    size = ("--max-shard-size", 300)
    assert run("convert", source, dest, *size, "--quiet").code == 0
    assert len(list(dest.glob("*.safetensors"))) == 17
    more = (*size, "--overwrite") if words[0] == "convert" else ()
    ended = run(*words, source, dest, *more, "--quiet", prepare=limited(NOFILE=16))
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("size", [0, 1000, 10_000])
@pytest.mark.parametrize("name", ["dest", "dest.ckpt"])
def test_limited_sizes_of_files(name: str, size: int, tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    before = tree(tmp_path)
    ended = run("convert", source, tmp_path / name, "--quiet", prepare=limited(FSIZE=size))
    assert ended.code == 5
    assert "hint: raise the limit on file sizes (ulimit -f), or write smaller shards" in ended.err
    assert tree(tmp_path) == before
