"""A cluster that is threads of this process, and one of real raylets on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import xxhash

from streamconv.cluster.nodes import LostError, Node
from streamconv.cluster.worker import Worker
from streamconv.units import BLOCK
from streamconv.version import VERSION

PLAIN = (str, int, float, bool, type(None))


def check_plain(value: object) -> None:
    """Nothing but these crosses to another host."""
    if type(value) is dict:
        for key, inner in value.items():
            assert type(key) is str
            check_plain(inner)
    elif type(value) is list:
        for inner in value:
            check_plain(inner)
    else:
        assert type(value) in PLAIN, value


class FakeRemote:
    """A worker in threads of this process."""

    def __init__(self, nodes: FakeNodes, node: Node, worker: Any) -> None:
        self.nodes, self.node, self.worker = nodes, node, worker
        self.pending: set[Future[Any]] = set()
        self.is_dead = False

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        check_plain(list(arguments))
        future: Future[Any] = Future()
        self.pending.add(future)
        if self.is_dead:
            future.set_result(LostError("its worker process has died"))
        else:
            threading.Thread(target=self._run, args=(future, method, arguments), daemon=True).start()
        return future

    def kill(self) -> None:
        """As kill -9 does: what is asked of it is never answered."""
        self.is_dead = True
        for future in self.pending:
            with suppress(Exception):
                future.set_result(LostError("its worker process has died"))
        self.worker.stop()

    def _run(self, future: Future[Any], method: str, arguments: Sequence[Any]) -> None:
        answer = getattr(self.worker, method)(*arguments)
        check_plain(answer)
        with suppress(Exception):
            future.set_result(answer)


class FakeNodes:
    """Nodes of these names; `make` makes the worker of a node."""

    def __init__(self, *names: str, make: Callable[[str], Any] = lambda name: Worker()) -> None:
        self.there = {name: Node(name, name) for name in names}
        self.make, self.remotes = make, list[FakeRemote]()
        self.is_closed, self.where = False, "of threads"

    def nodes(self) -> Sequence[Node]:
        return list(self.there.values())

    def start(self, node: Node) -> FakeRemote:
        self.remotes.append(FakeRemote(self, node, self.make(node.name)))
        return self.remotes[-1]

    def answers(self, calls: Sequence[Any], seconds: float) -> Iterator[tuple[Any, dict[str, Any] | LostError]]:
        done, _ = wait(calls, seconds, FIRST_COMPLETED)
        yield from ((call, call.result()) for call in calls if call in done)

    def close(self) -> None:
        self.is_closed = True

    def lose(self, name: str) -> None:
        """The node is gone, and its workers with it."""
        del self.there[name]
        for remote in self.remotes:
            if remote.node.name == name:
                remote.kill()


def sparse(folder: Path, blocks: int, files: int = 2) -> Path:
    """A checkpoint of `files` files of zeros that take no space, with its manifest."""
    folder.mkdir()
    digest = xxhash.xxh3_128_hexdigest(bytes(BLOCK))
    entries: Mapping[str, Any] = {
        f"ms-model-{number}.safetensors": {"size": blocks * BLOCK, "blocks": [digest] * blocks}
        for number in range(files)
    }
    for name, entry in entries.items():
        with (folder / name).open("wb") as file:
            file.truncate(entry["size"])
    values = {"streamconv": VERSION, "manifest": 1, "files": entries, "tensors": {}}
    (folder / "streamconv.json").write_text(json.dumps(values))
    return folder


def title(process: psutil.Process) -> str:
    """What a process calls itself; nothing once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Raylets:
    """A cluster of Ray on this machine: a head without processors, and nodes of one processor each."""

    SMALL: Mapping[str, Any] = {"object_store_memory": 80 << 20, "include_dashboard": False}

    def __init__(self, count: int) -> None:
        head = {"num_cpus": 0, **self.SMALL}
        self._cluster: Any = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._cluster.add_node(num_cpus=1, **self.SMALL) for _ in range(count)]

    @property
    def environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": str(self._cluster.address)}

    def add(self) -> None:
        self.nodes.append(self._cluster.add_node(num_cpus=1, **self.SMALL))

    def lose(self) -> None:
        """As a host that is switched off."""
        self._cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def workers(self) -> list[psutil.Process]:
        """The processes of our workers."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.nodes]
        found: list[psutil.Process] = []
        for raylet in raylets:
            with suppress(psutil.Error):
                found += [p for p in psutil.Process(raylet).children() if "ray::Worker" in title(p)]
        return found

    def are_working(self) -> bool:
        """Whether each node's worker has a task."""
        titles = [title(worker) for worker in self.workers()]
        return len(titles) == len(self.nodes) and all("ray::Worker.work" in title for title in titles)

    def close(self) -> None:
        self._cluster.shutdown()
