"""A job on a cluster: every task once, whatever dies or fails; errors, memory, progress. Nodes are threads here."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from streamconv.cluster import crew, worker
from streamconv.cluster.driver import Cluster, Result, Task
from streamconv.cluster.kinds import StoppedError
from streamconv.cluster.nodes import Node
from streamconv.cluster.steps import Job
from streamconv.cluster.worker import Worker
from streamconv.engine.budget import divide
from streamconv.engine.progress import Progress
from streamconv.errors import (
    BudgetError,
    DestinationError,
    InternalError,
    SourceChangedError,
    SourceError,
    StorageError,
    StreamconvError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from streamconv.version import VERSION
from support.clusters import FakeNodes

MIB = 1 << 20
JOB = Job("any", {})
Run = Callable[[Mapping[str, Any], Callable[..., None], Callable[[], bool]], dict[str, Any]]


class Work:
    """A job that a function does."""

    def __init__(self, run: Run, arguments: Mapping[str, Any]) -> None:
        self._run, self.limit = run, arguments["memory_limit"]

    def run(self, task: Any, progress: Any, is_stopped: Any) -> dict[str, Any]:
        return self._run({**task, "limit": self.limit}, progress, is_stopped)


@pytest.fixture
def working(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Let this be what every job does."""
    return lambda run: monkeypatch.setattr(worker, "open_work", lambda kind, arguments: Work(run, arguments))


def echo(task: Any, *_: Any) -> dict[str, Any]:
    return {"task": task["n"]}


def tasks(count: int, nbytes: int = 10) -> list[Task]:
    return [Task(number, {"n": number}, nbytes) for number in range(count)]


def done(nodes: FakeNodes, count: int = 12, per_node: int = 1, **arguments: Any) -> tuple[list[Result], Cluster]:
    with Cluster(nodes, per_node, arguments.pop("max_mem", None)) as cluster:
        results = list(cluster.run(JOB, tasks(count), **arguments))
    assert sorted(result.number for result in results) == list(range(count))
    assert nodes.is_closed
    assert all(remote.is_dead for remote in nodes.remotes)
    return results, cluster


def test_every_task_once_on_all_nodes(working) -> None:
    barrier = threading.Barrier(4)

    def together(task: Any, *_: Any) -> dict[str, Any]:
        barrier.wait(10)
        return echo(task)

    working(together)
    results, cluster = done(FakeNodes("a", "b"), 12, per_node=2)
    assert all(result.values == {"task": result.number} for result in results)
    assert [record["host"] for record in cluster.records] == ["a", "b"]
    assert [record["workers"] for record in cluster.records] == [2, 2]
    assert sum(record["tasks"] for record in cluster.records) == 12
    assert sum(record["bytes"] for record in cluster.records) == 120
    assert all(record["peak_bytes"] > 0 and record["seconds"] >= 0 for record in cluster.records)


def test_several_jobs_follow_each_other(working) -> None:
    working(echo)
    with Cluster(FakeNodes("a", "b")) as cluster:
        assert len(list(cluster.run(JOB, tasks(5)))) == 5
        assert list(cluster.run(JOB, [])) == []
        assert len(list(cluster.run(JOB, tasks(7)))) == 7
    assert sum(record["tasks"] for record in cluster.records) == 12


def test_a_worker_that_dies_is_replaced_and_its_task_done(working) -> None:
    nodes, deaths = FakeNodes("a", "b"), Counter[int]()

    def run(task: Any, *_: Any) -> dict[str, Any]:
        if task["n"] in (0, 7) and not deaths[task["n"]]:
            deaths[task["n"]] += 1
            remote = next(r for r in reversed(nodes.remotes) if r.node.name == ("a" if task["n"] == 0 else "b"))
            remote.kill()
        return echo(task)

    working(run)
    done(nodes)
    assert sum(deaths.values()) >= 1
    assert len(nodes.remotes) == 2 + sum(deaths.values())


def test_a_node_that_dies_is_done_without(working) -> None:
    nodes = FakeNodes("a", "b")

    def run(task: Any, *_: Any) -> dict[str, Any]:
        if task["n"] == 0 and "a" in nodes.there:
            nodes.lose("a")
        return echo(task)

    working(run)
    results, _ = done(nodes)
    assert {result.host for result in results} == {"b"}


def test_a_node_that_comes_later_works_too(working, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_LOOK_EVERY", 0.01)
    nodes = FakeNodes("a")

    def run(task: Any, *_: Any) -> dict[str, Any]:
        nodes.there["b"] = Node("b", "b")
        time.sleep(0.05)
        return echo(task)

    working(run)
    results, _ = done(nodes, 20)
    assert {result.host for result in results} == {"a", "b"}


@pytest.mark.parametrize("kind", [StorageError, SourceError])
def test_what_may_be_the_node_s_fault_is_tried_elsewhere(kind: type[StreamconvError], working) -> None:
    tried: list[str] = []

    def run(task: Any, *_: Any) -> dict[str, Any]:
        tried.append(threading.current_thread().name)
        if task["n"] == 3 and len([n for n in tried if n == "failed"]) == 0:
            tried.append("failed")
            raise kind("this disk is bad")
        return echo(task)

    working(run)
    done(FakeNodes("a", "b"))
    assert "failed" in tried


@pytest.mark.parametrize(
    ("error", "kind"),
    [(StorageError("full"), StorageError), (SourceError("bad"), SourceError), (KeyError("x"), InternalError)],
)
def test_three_attempts_are_enough(error: Exception, kind: type[StreamconvError], working) -> None:
    attempts = Counter[int]()

    def run(task: Any, *_: Any) -> dict[str, Any]:
        attempts[task["n"]] += 1
        if task["n"] == 1:
            raise error
        return echo(task)

    working(run)
    with pytest.raises(kind) as caught:
        done(FakeNodes("a", "b"), 4)
    assert attempts[1] == 3
    assert "the same work failed 3 times, on " in caught.value.message
    assert {"a", "b"} <= set(caught.value.message.split("on ")[-1].split(", ")), caught.value.message


@pytest.mark.parametrize(
    "kind", [SourceChangedError, VerificationError, BudgetError, UsageError, UnsupportedError, DestinationError]
)
def test_what_no_node_does_better_ends_the_run(kind: type[StreamconvError], working) -> None:
    attempts = Counter[int]()

    def run(task: Any, *_: Any) -> dict[str, Any]:
        attempts[task["n"]] += 1
        raise kind("it is so", "do this")

    working(run)
    nodes = FakeNodes("a")
    with pytest.raises(kind, match=r"^it is so\nreported by a\nhint: do this"):
        done(nodes, 4)
    assert sum(attempts.values()) == 1
    assert nodes.is_closed


def test_workers_that_die_again_and_again_end_the_run(working) -> None:
    nodes = FakeNodes("a")

    def run(task: Any, *_: Any) -> dict[str, Any]:
        nodes.remotes[-1].kill()
        return echo(task)

    working(run)
    with pytest.raises(
        StorageError, match=r"a worker on a died: its worker process has died\nthe same work failed 3 times"
    ):
        done(nodes)


def test_workers_that_die_before_they_work_are_started_three_times_more() -> None:
    class Dying(Worker):
        def describe(self) -> Any:
            nodes.remotes[-1].kill()
            return super().describe()

    nodes = FakeNodes("a", make=lambda name: Dying())
    with pytest.raises(StorageError, match="no worker is left on 1 node: a: its worker process has died\nhint: look"):
        done(nodes)
    assert len(nodes.remotes) == 4


def test_no_node_at_all() -> None:
    with pytest.raises(StorageError, match="no node with a processor"):
        done(FakeNodes())


def test_workers_that_never_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_SECONDS_TO_START", 0.05)
    monkeypatch.setattr(Worker, "describe", lambda self: time.sleep(1))
    with pytest.raises(
        StorageError, match=r"no worker started within 0 seconds on a, b\nhint: each worker needs a CPU"
    ):
        done(FakeNodes("a", "b"))


def test_nodes_where_none_starts_are_done_without(monkeypatch: pytest.MonkeyPatch, working) -> None:
    monkeypatch.setattr(crew, "_SECONDS_TO_START", 0.3)
    working(echo)

    class Slow(Worker):
        def describe(self) -> Any:
            time.sleep(2)
            return super().describe()

    results, _ = done(FakeNodes("a", "busy", make=lambda name: Slow() if name == "busy" else Worker()))
    assert {result.host for result in results} == {"a"}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"python": "2.7", "streamconv": VERSION}, "b has Python 2.7, the driver 3."),
        ({"python": None, "streamconv": "0.0.1"}, f"b has streamconv 0.0.1, the driver {VERSION}"),
    ],
)
def test_another_version(what: dict[str, Any], message: str, working) -> None:
    class Other(Worker):
        def describe(self) -> Any:
            own = super().describe()["value"]
            return {"value": {**own, **{name: value for name, value in what.items() if value}}}

    working(echo)
    with pytest.raises(UsageError) as caught:
        done(FakeNodes("a", "b", make=lambda name: Other() if name == "b" else Worker()))
    assert caught.value.message.startswith(message)
    assert caught.value.hint.startswith("install the same version of ")


def test_a_late_node_of_another_version_is_left_out(working, monkeypatch, caplog) -> None:
    monkeypatch.setattr(crew, "_LOOK_EVERY", 0.01)

    class Other(Worker):
        def describe(self) -> Any:
            return {"value": {**super().describe()["value"], "streamconv": "0.0.1"}}

    nodes = FakeNodes("a", make=lambda name: Other() if name == "b" else Worker())

    def run(task: Any, *_: Any) -> dict[str, Any]:
        nodes.there["b"] = Node("b", "b")
        time.sleep(0.05)
        return echo(task)

    working(run)
    results, _ = done(nodes, 5)
    assert {result.host for result in results} == {"a"}
    assert "b is left out: b has streamconv 0.0.1" in caplog.text
    assert len(nodes.remotes) == 2


def test_every_node_proves_what_it_sees(working, tmp_path: Path) -> None:
    working(echo)
    nodes = FakeNodes("a", "b")
    with Cluster(nodes) as cluster:
        cluster.prove([tmp_path], tmp_path / "dest")
        assert not [*tmp_path.iterdir()]

    class Blind(Worker):
        def see(self, request: Any) -> Any:
            return {"value": {"differ": [], "token": None, "why": "No such file or directory"}}

    blind = FakeNodes("a", "b", make=lambda name: Blind() if name == "b" else Worker())
    with (
        pytest.raises(StorageError, match=f"b does not share {tmp_path} with the driver: No such"),
        Cluster(blind) as c,
    ):
        c.prove([tmp_path], tmp_path / "dest")
    assert not [*tmp_path.iterdir()]


def test_the_memory_of_a_node_is_shared(working) -> None:
    limits: list[int] = []

    def run(task: Any, *_: Any) -> dict[str, Any]:
        limits.append(task["limit"])
        return echo(task)

    working(run)
    done(FakeNodes("a"), 4, per_node=2, max_mem=1 << 30)
    assert set(limits) == {1 << 29}
    limits.clear()
    done(FakeNodes("a"), 4, per_node=2)
    assert max(limits) <= 1 << 30
    nodes = FakeNodes("a")
    nodes.there["a"] = Node("a", "a", is_drivers=True)
    limits.clear()
    done(nodes, 4, max_mem=1 << 34)
    assert (1 << 34) - (4 << 30) < min(limits) < (1 << 34) - (20 << 20)


@pytest.mark.parametrize("at", ["open", "work"])
def test_a_share_that_is_too_small_is_refused_with_the_number_that_would_do(at: str, monkeypatch) -> None:
    def opened(kind: str, arguments: Any) -> Any:
        if at == "open":
            divide(arguments["memory_limit"], 1, 1, resident=100 * MIB)
        return Work(lambda task, *_: divide(task["limit"], 1, 1, resident=100 * MIB) and echo(task), arguments)

    monkeypatch.setattr(worker, "open_work", opened)
    with pytest.raises(BudgetError, match="a has 100 MiB for 2 workers\n") as caught:
        done(FakeNodes("a"), 4, per_node=2, max_mem=100 * MIB)
    assert f'give max_mem="{caught.value.least >> 20}M" or more' in caught.value.hint
    done(FakeNodes("a"), 4, per_node=2, max_mem=caught.value.least)


def test_progress_counts_what_is_done_and_what_is_being_done(working) -> None:
    seen: list[Progress] = []

    def run(task: Any, progress: Any, *_: Any) -> dict[str, Any]:
        for _ in range(20):
            progress(3, 3, "a file")
            time.sleep(0.03)
        return echo(task)

    working(run)
    done(FakeNodes("a", "b"), 4, on_progress=seen.append, total=60, resumed=20)
    counts = [event.done for event in seen]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (20, 60)
    assert any(count % 10 for count in counts)
    assert {event.resumed for event in seen} == {20}
    assert max(event.nodes for event in seen) == 2
    assert any(event.slowest.startswith(("a ", "b ")) and event.slowest.endswith("B/s") for event in seen)
    assert seen[-2].file == "a file"
    assert seen[-2].resident > 0


def test_an_exception_stops_all_workers_in_good_order(working) -> None:
    stopped: list[int] = []

    def run(task: Any, progress: Any, _: Any) -> dict[str, Any]:
        try:
            while True:
                progress(1, 1, "")
                time.sleep(0.01)
        except StoppedError:
            stopped.append(task["n"])
            raise

    def stop(progress: Progress) -> None:
        if progress.done:
            raise KeyError("stop")

    working(run)
    nodes = FakeNodes("a", "b")
    with pytest.raises(KeyError, match="stop"):
        done(nodes, 4, on_progress=stop)
    assert sorted(stopped) == [0, 2]
    assert nodes.is_closed


def test_a_worker_that_does_not_stop_is_killed(working, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_SECONDS_TO_STOP", 0.1)
    ended = threading.Event()

    def run(task: Any, progress: Any, _: Any) -> dict[str, Any]:
        ended.wait(20)
        return echo(task)

    def stop(_: Progress) -> None:
        raise KeyError("stop")

    working(run)
    began = time.monotonic()
    with pytest.raises(KeyError, match="stop"):
        done(FakeNodes("a"), 4, on_progress=stop)
    ended.set()
    assert time.monotonic() - began < 5


def test_a_consumer_that_stops_stops_the_workers(working) -> None:
    working(echo)
    nodes = FakeNodes("a")
    with pytest.raises(KeyError), Cluster(nodes) as cluster:
        for _ in cluster.run(JOB, tasks(100)):
            raise KeyError
    assert nodes.is_closed


def test_the_worker_says_who_it_is() -> None:
    assert Worker().describe()["value"]["pid"] == os.getpid()
