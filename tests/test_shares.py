"""N equal processes that share a conversion: at the same time or one after the other, killed or not, locks or not."""

from __future__ import annotations

import json
import random
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv.errors import DestinationError, StorageError, UsageError, VerificationError
from streamconv.storage import disk
from support import running
from support.parts import small_parts
from support.running import StoppedError, run

#: Seven files, and so at least as many parts.
ASKED: dict[str, Any] = {"dtype": "fp32", "max_shard_size": "25MB"}
WORDS = ("--dtype", "fp32", "--max-shard-size", "25MB", "--max-mem", "256M", "--quiet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("made")
    streamconv.convert(running.mixtral(root / "hf"), root / "one", **ASKED)
    return root / "hf", root / "one"


def test_one_after_the_other(tmp_path: Path) -> None:
    source = running.with_large_values(running.llama(tmp_path / "hf"))
    asked: dict[str, Any] = {"dtype": "fp16", "max_shard_size": "30KB", "verify": True}
    with small_parts():
        streamconv.convert(source, tmp_path / "one", **asked)
        reports = [streamconv.convert(source, tmp_path / "ms", part=f"{n}/5", **asked) for n in (3, 1, 2, 5, 4)]
    assert [report.waiting.partition(" not")[0] for report in reports] == [
        "parts 1, 2, 4, 5 of 5 are",
        "parts 2, 4, 5 of 5 are",
        "parts 4, 5 of 5 are",
        "part 4 of 5 is",
        "",
    ]
    assert running.tree(tmp_path / "ms") == running.tree(tmp_path / "one")
    last = reports[-1]
    assert last.overflowed and last.is_shared and 0 < last.resumed_bytes < last.tally.total
    assert "by other processes" in str(last) and "is not complete: part 4 of 5 is not done" in str(reports[-2])
    assert json.loads(json.dumps(reports[0].to_json()))["complete"] is False


@pytest.mark.slow
def test_all_at_the_same_time(made: tuple[Path, Path], tmp_path: Path) -> None:
    source, one = made
    places = [{"SLURM_PROCID": str(n), "SLURM_NTASKS": "3"} for n in range(3)]
    words = ("convert", source, tmp_path / "ms", "--part", "auto", *WORDS)
    processes = [running.start(*words, faults=(), env=place) for place in places]
    ended = [(process.communicate(timeout=100), process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, 0, 0], ended
    assert running.tree(tmp_path / "ms") == running.tree(one)
    assert [path.name for path in tmp_path.iterdir()] == ["ms"]


@pytest.mark.slow
def test_killed_at_random_moments(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Two shares, each killed and started again until both are done; `finish` puts together what the last did not."""
    source, one = made
    luck = random.Random(7)
    for number in (1, 2):
        words = ("convert", source, tmp_path / "ms", "--part", f"{number}/2", *WORDS)
        for _ in range(3):
            process = running.start(*words, faults=())
            time.sleep(luck.uniform(0.3, 1.2))
            process.kill()
            process.wait()
        said = run(*words) if (tmp_path / "ms.partial").exists() or number == 1 else None
        assert said is None or said.code == 0, said
    if not (tmp_path / "ms").exists():
        assert run("finish", tmp_path / "ms", "--max-mem", "256M", "--quiet").code == 0
    assert running.tree(tmp_path / "ms") == running.tree(one)
    assert [path.name for path in tmp_path.iterdir()] == ["ms"]


@pytest.mark.slow
def test_without_locks(made: tuple[Path, Path], tmp_path: Path) -> None:
    """At the same time, on a file system that has none: who makes the journal is decided by who creates it."""
    source, one = made
    before = "import fcntl\nfrom streamconv.storage import disk\ndisk.lock = lambda descriptor, shared=False: None"
    words = [("convert", source, tmp_path / "ms", "--part", f"{n}/3", *WORDS) for n in (1, 2, 3)]
    processes = [
        subprocess.Popen(running.command(*one_of, before=before), stderr=subprocess.PIPE, env=running.environment())
        for one_of in words
    ]
    ended = [(process.communicate(timeout=100), process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, 0, 0], ended
    assert running.tree(tmp_path / "ms") == running.tree(one)
    assert [path.name for path in tmp_path.iterdir()] == ["ms"]


def test_the_process_that_msrun_starts_as_its_scheduler_does_nothing(tmp_path: Path) -> None:
    """It is started with the same words and the same number as the first worker."""
    said = run(
        *("convert", running.tiny(tmp_path / "hf"), tmp_path / "ms", "--part", "auto"),
        env={"MS_ROLE": "MS_SCHED", "RANK_ID": "0", "RANK_SIZE": "2"},
    )
    assert said.code == 0 and said.out == "" and "part     none: msrun started this process" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_the_same_share_twice_ends_the_first(tmp_path: Path) -> None:
    """As when a scheduler starts a task again that it took for dead."""
    source, seen = running.llama(tmp_path / "hf"), []
    with small_parts():

        def again(progress: streamconv.Progress) -> None:
            if not seen:
                seen.append(1)
                streamconv.convert(source, tmp_path / "ms", part="1/2", max_shard_size="30KB")

        with pytest.raises(DestinationError, match="was given to another process"):
            streamconv.convert(source, tmp_path / "ms", part="1/2", max_shard_size="30KB", progress=again)
        streamconv.convert(source, tmp_path / "ms", part="2/2", max_shard_size="30KB")
    streamconv.verify(tmp_path / "ms", source=source)


def test_a_whole_run_waits_for_shares_and_shares_for_it(tmp_path: Path, monkeypatch: Any) -> None:
    from streamconv import shares

    monkeypatch.setattr(shares, "_PATIENCE", 0.1)
    source, seen = running.llama(tmp_path / "hf"), []

    def refused(*words: str) -> Any:
        def look(progress: streamconv.Progress) -> None:
            for part in words if not seen else ():
                with pytest.raises(DestinationError, match="is being written by"):
                    streamconv.convert(source, tmp_path / "ms", **({"part": part} if part else {}))
            seen.append(1)

        return look

    with small_parts():
        streamconv.convert(source, tmp_path / "ms", part="1/2", progress=refused(""))
        assert seen
        seen.clear()
        # It takes over what the shares wrote.
        report = streamconv.convert(source, tmp_path / "ms", progress=refused("1/2", "2/2"))
    assert seen and report.resumed_bytes > 0
    streamconv.verify(tmp_path / "ms", source=source)


def test_finish_says_what_is_missing(tmp_path: Path) -> None:
    source = running.llama(tmp_path / "hf")
    with pytest.raises(UsageError, match=r"nothing unfinished lies at .*ms, which does not exist"):
        streamconv.finish(tmp_path / "ms")
    with small_parts():
        streamconv.convert(source, tmp_path / "ms", part="2/2")
        with pytest.raises(DestinationError, match=r"cannot be put together: .* of .* are not converted yet"):
            streamconv.finish(tmp_path / "ms")
        streamconv.convert(source, tmp_path / "ms", part="1/2")
    with pytest.raises(UsageError, match="which is complete"):
        streamconv.finish(tmp_path / "ms")
    running.stopped(source, tmp_path / "alone")
    with pytest.raises(UsageError, match="begun by a single run"):
        streamconv.finish(tmp_path / "alone")


@pytest.mark.parametrize("verify", [False, True])
def test_finish_puts_together_what_the_last_process_left(verify: bool, tmp_path: Path) -> None:
    source, asked = running.llama(tmp_path / "hf"), {"max_shard_size": "30KB", "verify": verify}

    def stop(progress: streamconv.Progress) -> None:
        if progress.done == progress.total and not progress.file.startswith("verifying"):
            raise StoppedError

    with small_parts():
        streamconv.convert(source, tmp_path / "one", max_shard_size="30KB")
        streamconv.convert(source, tmp_path / "ms", part="1/2", **asked)  # type: ignore[arg-type]
        with pytest.raises(StoppedError):
            streamconv.convert(source, tmp_path / "ms", part="2/2", progress=stop, **asked)  # type: ignore[arg-type]
        streamconv.convert(source, tmp_path / "ms", part="2/2", **asked)  # type: ignore[arg-type]
    assert running.tree(tmp_path / "ms") == running.tree(tmp_path / "one")


@pytest.mark.parametrize("part", ["", "1/2", "2/2"])
def test_a_crash_of_the_last_process_is_finished(part: str, tmp_path: Path, monkeypatch: Any) -> None:
    """While it puts the result together, the journals of the parts are gone already; any process may end it."""
    from streamconv.output.staging import Staging

    source = running.llama(tmp_path / "hf")
    with small_parts():
        streamconv.convert(source, tmp_path / "one")
        streamconv.convert(source, tmp_path / "ms", part="1/2")

        def crash(self: Any, text: bytes) -> None:
            raise StoppedError

        with monkeypatch.context() as patch, pytest.raises(StoppedError):
            patch.setattr(Staging, "commit", crash)
            streamconv.convert(source, tmp_path / "ms", part="2/2")
        report = streamconv.convert(source, tmp_path / "ms", part=part) if part else streamconv.finish(tmp_path / "ms")
    assert running.tree(tmp_path / "ms") == running.tree(tmp_path / "one")
    assert report.resumed_bytes == report.tally.total and not report.waiting
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "one", "ms"}


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_crash_of_the_last_process_leaves_what_is_compared(
    is_damaged: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    """That its parts were is forgotten then, so `finish` compares all of it."""
    from streamconv.output.staging import Staging

    source = running.llama(tmp_path / "hf")
    asked: dict[str, Any] = {"max_shard_size": "30KB", "verify": True}

    def crash(self: Any, text: bytes) -> None:
        raise StoppedError

    with small_parts():
        streamconv.convert(source, tmp_path / "ms", part="1/2", **asked)
        with monkeypatch.context() as patch, pytest.raises(StoppedError):
            patch.setattr(Staging, "commit", crash)
            streamconv.convert(source, tmp_path / "ms", part="2/2", **asked)
        assert "is not done" in streamconv.convert(source, tmp_path / "ms", part="2/2", **asked).waiting
        if is_damaged:
            damaged = max((tmp_path / "ms.partial").glob("*.safetensors"), key=lambda path: path.stat().st_size)
            whole = damaged.read_bytes()
            damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(VerificationError) if is_damaged else nullcontext():
            streamconv.finish(tmp_path / "ms")
    assert (tmp_path / "ms").exists() != is_damaged


def test_it_is_put_together_when_all_have_ended_also_those_without_parts(tmp_path: Path) -> None:
    """Whoever starts late must not begin again what is complete."""
    source = running.tiny(tmp_path / "hf")
    reports = [streamconv.convert(source, tmp_path / "ms", part=part, overwrite=True) for part in ("2/3", "3/3", "1/3")]
    assert [bool(report.waiting) for report in reports] == [True, True, False]
    assert reports[0].waiting == "parts 1, 3 of 3 are not done; the last to end puts it together"
    with pytest.raises(DestinationError, match="ms exists"):
        streamconv.convert(source, tmp_path / "ms", part="1/3")


def test_all_have_to_want_the_same(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "hf")
    streamconv.convert(source, tmp_path / "ms", part="1/2")
    with pytest.raises(UsageError, match=r"the other parts of .* are converted without verify=True"):
        streamconv.convert(source, tmp_path / "ms", part="2/2", verify=True)
    with pytest.raises(DestinationError, match=r"(?s)dtype was not given.*run the whole conversion with restart=True"):
        streamconv.convert(source, tmp_path / "ms", part="2/2", dtype="fp32")


def test_a_link_in_place_of_a_part_is_refused(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "hf", vocab_size=12)
    with small_parts():
        streamconv.convert(source, tmp_path / "ms", part="1/2", max_shard_size="2KB")
        (tmp_path / "victim").mkdir()
        for number in range(20):
            place = tmp_path / "ms.partial.parts" / f"{number:05}"
            if not place.exists():
                place.symlink_to(tmp_path / "victim")
        with pytest.raises(DestinationError, match="is a link"):
            streamconv.convert(source, tmp_path / "ms", part="2/2", max_shard_size="2KB")
    assert not [*(tmp_path / "victim").iterdir()]


def test_a_file_that_is_gone_is_written_again_by_a_whole_run(tmp_path: Path) -> None:
    source, asked = running.tiny(tmp_path / "hf"), {"max_shard_size": "2KB"}
    streamconv.convert(source, tmp_path / "ms", part="1/2", **asked)  # type: ignore[arg-type]
    for file in (tmp_path / "ms.partial").iterdir():
        file.unlink()
    with pytest.raises(StorageError, match=r"(?s)is gone, or has another size.*run the whole conversion once"):
        streamconv.convert(source, tmp_path / "ms", part="2/2", **asked)  # type: ignore[arg-type]
    streamconv.convert(source, tmp_path / "ms", **asked)  # type: ignore[arg-type]
    streamconv.verify(tmp_path / "ms", source=source)


@pytest.mark.parametrize("end", ["killed", "ended"])
def test_without_locks_a_share_that_runs_again_blocks_nobody(end: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(disk, "lock", lambda descriptor, shared=False: None)
    source, asked = running.llama(tmp_path / "hf"), {"max_shard_size": "30KB"}

    def stop(progress: streamconv.Progress) -> None:
        raise StoppedError

    with small_parts():
        if end == "killed":
            with pytest.raises(StoppedError):
                streamconv.convert(source, tmp_path / "ms", part="1/2", progress=stop, **asked)  # type: ignore[arg-type]
        else:
            streamconv.convert(source, tmp_path / "ms", part="1/2", **asked)  # type: ignore[arg-type]
        for part in ("1/2", "2/2"):
            report = streamconv.convert(source, tmp_path / "ms", part=part, **asked)  # type: ignore[arg-type]
    assert not report.waiting
    streamconv.verify(tmp_path / "ms", source=source)


def test_a_result_in_place_that_was_not_cleaned_up_is(tmp_path: Path, monkeypatch: Any) -> None:
    from streamconv.output.staging import Staging

    source = running.llama(tmp_path / "hf")

    def crash(self: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Staging, "_clean_up", crash)
        streamconv.convert(source, tmp_path / "ms", part="1/1")
    assert "is already complete" in str(streamconv.convert(source, tmp_path / "ms", part="1/1"))
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "ms"}
