"""`convert` on a cluster writes what one host writes, whoever dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv.cluster import driver, parts_job
from streamconv.cluster.worker import Worker
from streamconv.errors import BudgetError, DestinationError, SourceChangedError, StorageError, UsageError
from streamconv.parts.work import PartWork
from streamconv.plans import plan
from streamconv.storage import disk
from support import golden, golden_ranks, running
from support.clusters import FakeNodes, Raylets
from support.parts import small_parts
from support.running import StoppedError


def source_of(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A source, and what is asked of its conversion."""
    if name == "llama in shards":
        return running.llama(folder), {"max_shard_size": "30KB"}
    if name == "llama to .ckpt":
        return running.with_large_values(running.llama(folder)), {"dtype": "fp16", "crc": True}
    if name == "mixtral use_gmm":
        return golden.cases("mixtral")[0].write_source(folder), {"options": {"use_gmm": True}, "dtype": "fp32"}
    if name == "deepseek FP8":
        case = next(case for case in golden.cases("deepseek3") if "fp8" in case.name)
        return case.write_source(folder), {"model": "deepseek3"}
    one = golden_ranks.case("d07" if name == "ranks merged" else "d08")
    if name == "ranks merged":
        return one.folder, {"model": "raw"}
    return one.folder, {"model": "raw", "dest_strategy": [*map(str, one.strategy_files)], "verify": True}


CASES = ["llama in shards", "llama to .ckpt", "mixtral use_gmm", "deepseek FP8", "ranks merged", "ranks cut"]


@pytest.mark.parametrize("name", CASES)
def test_the_same_bytes_as_on_one_host(name: str, tmp_path: Path, on_threads: Callable[..., FakeNodes]) -> None:
    on_threads("a", "b", "c")
    source, asked = source_of(name, tmp_path / "hf")
    dest = "out.ckpt" if name.endswith(".ckpt") else "out"
    for place in ("one", "many"):
        (tmp_path / place).mkdir()
    with small_parts(least=1 << 10):
        alone = streamconv.convert(source, tmp_path / "one" / dest, **asked)
        report = streamconv.convert(source, tmp_path / "many" / dest, on="ray", **asked)
        checked = streamconv.verify(tmp_path / "many" / dest, source=source, on="ray")
    assert running.tree(tmp_path / "many") == running.tree(tmp_path / "one")
    assert report.overflowed == alone.overflowed
    assert sum(int(node["tasks"]) for node in report.nodes) >= 3  # type: ignore[call-overload]
    assert checked.tensors == alone.prepared.mapping.tensors and checked.bytes_read == checked.total


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_on_real_nodes(raylets: Raylets, tmp_path: Path) -> None:
    source = running.mixtral(tmp_path / "hf")
    words = ("-o", "use_gmm=true", "--dtype", "fp32", "--max-shard-size", "20MB", "--max-mem", "512M")
    streamconv.convert(source, tmp_path / "one", options={"use_gmm": True}, dtype="fp32", max_shard_size="20MB")
    said = running.run("convert", source, tmp_path / "many", *words, "--on", "ray", "--json", env=raylets.environment)
    assert said.code == 0, said.err
    assert running.tree(tmp_path / "many") == running.tree(tmp_path / "one")
    values = json.loads(said.out)
    assert sum(node["tasks"] for node in values["nodes"]) >= 5
    assert all(node["peak_bytes"] < 512 << 20 for node in values["nodes"])
    assert values["resumed_bytes"] == 0 and values["read_bytes"] >= values["source_bytes"] * 0.95
    proven = running.run("verify", source, tmp_path / "many", "--on", "ray", env=raylets.environment)
    assert proven.code == 0 and "byte-for-byte identical" in proven.out, proven.err


def test_a_part_that_fails_three_times_ends_the_run(tmp_path: Path, on_threads: Any, monkeypatch: Any) -> None:
    on_threads("a", "b")
    convert = PartWork.convert

    def failing(self: Any, number: int, progress: Any = None) -> Any:
        if number == 2:
            raise StorageError("cannot write x: Input/output error")
        return convert(self, number, progress)

    monkeypatch.setattr(PartWork, "convert", failing)
    source = running.llama(tmp_path / "hf")
    with small_parts(), pytest.raises(StorageError, match=r"(?s)cannot write x.*the same work failed 3 times, on"):
        streamconv.convert(source, tmp_path / "ms", on="ray")
    monkeypatch.undo()
    # What the others wrote is resumed, by one host.
    with small_parts():
        report = streamconv.convert(source, tmp_path / "ms")
    assert report.resumed_bytes > 0
    streamconv.verify(tmp_path / "ms", source=source)


def test_a_worker_that_seems_dead_and_is_not_changes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """Its node is given up while it is at work: another takes its part, and the worker notices when it comes back."""
    dest, answers, lost = tmp_path / "ms", [], []

    class Zombie(Worker):
        """The first of them to be at work is cut off, and does not hear that it should stop."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def work(self, task: Any) -> Any:
            answers.append((self.name, super().work(task)))
            return answers[-1][1]

        def stop(self) -> Any:
            return {"value": None} if self.name in lost else super().stop()

        def _progress(self, *values: Any) -> None:
            if not lost:
                lost.append(self.name)
                nodes.lose(self.name)
                end = time.monotonic() + 20
                while time.monotonic() < end and not any(dest.with_name("ms.partial.parts").glob("*/2")):
                    time.sleep(0.01)
            super()._progress(*values)

    nodes = FakeNodes("a", "b", "c", make=Zombie)
    monkeypatch.setattr(driver, "RayCluster", lambda on, workers_per_node: nodes)
    source = running.llama(tmp_path / "hf")
    with small_parts():
        streamconv.convert(source, tmp_path / "one")
        report = streamconv.convert(source, dest, on="ray")
        end = time.monotonic() + 20
        while lost[0] not in dict(answers) and time.monotonic() < end:
            time.sleep(0.01)
    error = next(answer["error"] for name, answer in answers if name == lost[0])
    assert error["class"] == "DestinationError" and "was given to another process" in error["message"]
    assert lost[0] not in {node["host"] for node in report.nodes}
    assert running.tree(dest) == running.tree(tmp_path / "one")


def test_a_run_that_is_stopped_goes_on_anywhere(tmp_path: Path, on_threads: Any) -> None:
    """On a cluster of another size, then on one host."""
    source = running.llama(tmp_path / "hf")

    def stop(progress: streamconv.Progress) -> None:
        if progress.done - progress.resumed > progress.total // 5:
            raise StoppedError

    with small_parts(least=1 << 10):
        streamconv.convert(source, tmp_path / "one", max_shard_size="30KB")
        for names in (("a", "b", "c"), ("d",)):
            on_threads(*names)
            with pytest.raises(StoppedError):
                streamconv.convert(source, tmp_path / "ms", on="ray", progress=stop, max_shard_size="30KB")
        report = streamconv.convert(source, tmp_path / "ms", max_shard_size="30KB")
    assert running.tree(tmp_path / "ms") == running.tree(tmp_path / "one")
    assert report.resumed_bytes > report.prepared.mapping.nbytes // 5


def test_what_only_waits_to_be_put_in_place_needs_no_worker(tmp_path: Path, on_threads: Any) -> None:
    on_threads("a")
    source = running.llama(tmp_path / "hf")
    running.stopped(source, tmp_path / "ms")
    report = streamconv.convert(source, tmp_path / "ms", on="ray")
    assert report.resumed_bytes == report.tally.total and not report.nodes
    streamconv.verify(tmp_path / "ms", source=source)


def test_two_drivers_are_kept_apart(tmp_path: Path, on_threads: Any) -> None:
    source, seen = running.llama(tmp_path / "hf"), []

    def again(progress: streamconv.Progress) -> None:
        if not seen:
            seen.append(1)
            for extra in ({"on": "ray"}, {}):
                with pytest.raises(DestinationError, match="is being written by process"):
                    streamconv.convert(source, tmp_path / "ms", **extra)

    on_threads("a", "b")
    with small_parts():
        streamconv.convert(source, tmp_path / "ms", on="ray", progress=again)
    assert seen


def test_a_source_that_differs_on_one_node(tmp_path: Path, monkeypatch: Any) -> None:
    """Same names and sizes, so the first look does not tell; another file than the driver's."""
    source = running.llama(tmp_path / "hf")
    other = running.llama(tmp_path / "other")
    here, looked = threading.local(), threading.Event()

    class Elsewhere(Worker):
        def open(self, *words: Any) -> Any:  # type: ignore[override]
            here.is_elsewhere = True
            try:
                return super().open(*words)  # type: ignore[operator]
            finally:
                here.is_elsewhere = False
                looked.set()

    class Later(Worker):
        def open(self, *words: Any) -> Any:  # type: ignore[override]
            assert looked.wait(20)
            return super().open(*words)  # type: ignore[operator]

    nodes = FakeNodes("a", "b", make=lambda name: Elsewhere() if name == "b" else Later())
    monkeypatch.setattr(driver, "RayCluster", lambda on, workers_per_node: nodes)
    monkeypatch.setattr(
        parts_job,
        "plan",
        lambda one, dest, **asked: plan(other if getattr(here, "is_elsewhere", False) else one, dest, **asked),
    )
    with pytest.raises(SourceChangedError, match=r"(?s)the source is not the same here.*model.*b"):
        streamconv.convert(source, tmp_path / "ms", on="ray")
    assert not (tmp_path / "ms").exists()


@pytest.mark.slow
def test_a_node_with_half_the_memory_writes_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    class Half(Worker):
        def open(self, kind: str, arguments: Any, share: Any) -> Any:
            return super().open(kind, arguments, {**share, "limit": 8 << 30})

    nodes = FakeNodes("a", "b", make=lambda name: Half() if name == "b" else Worker())
    monkeypatch.setattr(driver, "RayCluster", lambda on, workers_per_node: nodes)
    source = running.mixtral(tmp_path / "hf")
    streamconv.convert(source, tmp_path / "one", dtype="fp32", max_shard_size="40MB")
    report = streamconv.convert(source, tmp_path / "ms", dtype="fp32", max_shard_size="40MB", max_mem="16G", on="ray")
    assert {node["host"] for node in report.nodes} == {"a", "b"}
    assert running.tree(tmp_path / "ms") == running.tree(tmp_path / "one")


def test_without_locks_it_is_the_same(tmp_path: Path, on_threads: Any, monkeypatch: Any) -> None:
    """Leases need none. The next driver waits only for one that still writes."""
    monkeypatch.setattr(disk, "lock", lambda descriptor, shared=False: None)
    on_threads("a", "b")
    source = running.llama(tmp_path / "hf")

    def stop(progress: streamconv.Progress) -> None:
        raise StoppedError

    with small_parts():
        streamconv.convert(source, tmp_path / "one")
        with pytest.raises(StoppedError):
            streamconv.convert(source, tmp_path / "ms", on="ray", progress=stop)
        streamconv.convert(source, tmp_path / "ms", on="ray")
    assert running.tree(tmp_path / "ms") == running.tree(tmp_path / "one")


@pytest.mark.slow
def test_a_budget_that_is_too_small_for_a_worker_is_refused_with_one_that_does(tmp_path: Path, on_threads: Any) -> None:
    on_threads("a")
    source = running.llama(tmp_path / "hf")
    with pytest.raises(BudgetError) as caught:
        streamconv.convert(source, tmp_path / "ms", on="ray", workers_per_node=256, max_mem="16G")
    assert caught.value.least > 16 << 30
    assert "a has 16 GiB for 256 workers" in caught.value.message


def test_nothing_of_a_cluster_is_loaded_for_a_run_without_one(tmp_path: Path) -> None:
    code = (
        "import sys, streamconv\nstreamconv.convert(*sys.argv[1:])\nstreamconv.verify(sys.argv[2])\n"
        "streamconv.diff(sys.argv[2], sys.argv[2])\n"
        "assert not [name for name in sys.modules if name.startswith(('ray', 'streamconv.cluster'))]"
    )
    source = running.tiny(tmp_path / "hf")
    done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "ms"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"on": "ray", "part": "1/2"}, "exclude each other"),
        ({"on": "dask"}, "on"),
        ({"workers_per_node": 2}, "has no effect without a cluster"),
        ({"part": "1/2", "restart": True}, "would discard what the other parts wrote"),
    ],
)
def test_what_does_not_go_together(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        streamconv.convert(running.tiny(tmp_path / "hf"), tmp_path / "ms", **asked)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_driver_stops_all_in_good_order(number: int, raylets: Raylets, tmp_path: Path) -> None:
    source = running.mixtral(tmp_path / "hf")
    words = ("--dtype", "fp32", "--max-shard-size", "10MB", "--max-mem", "512M", "--on", "ray", "--quiet", "--verify")
    process = running.start("convert", source, tmp_path / "ms", *words, faults=(), env=raylets.environment)
    parts = tmp_path / "ms.partial.parts"
    running.wait_until(lambda: any(parts.glob("*/*")), process)
    process.send_signal(number)
    began = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number and time.monotonic() - began < 5, said
    assert b"run the same conversion again to resume" in said
    streamconv.convert(source, tmp_path / "ms", dtype="fp32", max_shard_size="10MB")
    streamconv.verify(tmp_path / "ms", source=source)
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "ms"}
