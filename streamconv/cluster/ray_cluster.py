"""Ray: a cluster is found or started, its nodes are listed, and workers become actors, each pinned to its node.

The only module that imports Ray, and only when it is used. What crosses is plain values and the worker's class, by its
name. Whether a token is needed, and which, Ray reads itself from its environment (`RAY_AUTH_MODE`, `RAY_AUTH_TOKEN`).
"""

from __future__ import annotations

import logging
import os
import platform
import re
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from ..errors import InternalError, UsageError
from ..storage.memory import cores
from ..text import quote, setting
from . import addresses
from .aside import Aside
from .nodes import Call, LostError, Node
from .worker import Worker

_OBJECT_STORE = 80 << 20
# A worker answers while it works: work, status, stop, and one to spare.
_CALLS_AT_A_TIME = 4
_SECONDS_TO_LEAVE = 1.0
_TRIES = 5
# Lines of logs that match are not printed; Ray reads it once, when it is imported.
_SILENCE = "RAY_DEDUP_LOGS_SKIP_REGEX"
_BECAUSE = re.compile(r"because (.+?)(?:\. |\.?$)")
_NO_PACKAGE = "No module named 'streamconv"

# One for the process: the cluster that Ray starts ends with the thread that started it.
_aside: list[Aside] = []


class RayCluster:
    """A cluster of Ray; see `nodes.Nodes`."""

    def __init__(self, on: str, workers_per_node: int) -> None:
        """Connect, or start a cluster on this machine where there is none.

        Args:
            on: `ray`, or the address of a Ray client's server: `ray://HOST:PORT`.
            workers_per_node: so many a cluster that is started here must be able to have.

        Raises:
            UsageError: Ray is not installed, or it is not an address.
            StorageError: the cluster does not answer, or refuses.
        """
        addresses.check(on)
        self._names: dict[str, str] = {}
        self.where = "that this process is connected to"
        self._aside = _thread()
        self._ray = self._aside(_import_ray)
        self._is_ours = not self._aside(self._ray.is_initialized)
        if self._is_ours:
            self._connect(on, workers_per_node)
            _restore_signals()
        self._is_client = bool(self._aside(self._ray.util.client.ray.is_connected))
        self._own_node = "" if self._is_client else self._aside(self._ray.get_runtime_context().get_node_id)
        self._actor = self._aside(lambda: self._ray.remote(Worker))

    def nodes(self) -> Sequence[Node]:
        """Return the nodes that are alive and have a processor for workers: a head node may have none."""
        found = self._aside(self._ray.nodes)
        able = [node for node in found if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        return [
            Node(node["NodeID"], self._name(node), self._is_drivers(node), int(node["Resources"]["CPU"]))
            for node in able
        ]

    def start(self, node: Node) -> _Actor:
        """Begin to start a worker on a node, and nowhere else."""
        pinned = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy(node.key, soft=False)
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": _CALLS_AT_A_TIME}
        actor = self._aside(lambda: self._actor.options(scheduling_strategy=pinned, **options).remote())
        return _Actor(self._ray, self._aside, actor)

    def answers(self, calls: Sequence[Call], seconds: float) -> Iterator[tuple[Call, dict[str, Any] | LostError]]:
        """Wait up to `seconds` until a call is answered; yield the answers that are there by then."""
        yield from self._aside(lambda: self._answers(list(calls), seconds))

    def close(self) -> None:
        """Leave the cluster, unless the caller of the library had connected to it; one that was started here ends."""
        if self._is_ours:
            self._aside.within(_SECONDS_TO_LEAVE, self._ray.shutdown)

    def _connect(self, on: str, workers_per_node: int) -> None:
        """Connect to the cluster that is meant, or start one."""
        address = addresses.meant(on)
        self.where = "started on this machine" if address == addresses.LOCAL else f"at {quote(address)}"
        try:
            self._aside(lambda: _connect(self._ray, address, workers_per_node))
        except (OSError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            raise addresses.refused(address, error) from error
        except BaseException as error:
            self.close()
            # Ray raises the base of all exceptions for what it waited for without success.
            if type(error) is Exception:
                raise addresses.refused(address, error) from error
            raise

    def _answers(self, calls: list[Call], seconds: float) -> list[tuple[Call, dict[str, Any] | LostError]]:
        if self._ray.wait(calls, num_returns=1, timeout=seconds)[0]:
            return [(call, self._answer(call)) for call in self._ray.wait(calls, num_returns=len(calls), timeout=0)[0]]
        return []

    def _answer(self, call: Call) -> dict[str, Any] | LostError:
        try:
            answer: dict[str, Any] = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            return _without_package() if _NO_PACKAGE in str(error) else LostError(_reason(error))
        return answer

    def _name(self, node: Mapping[str, Any]) -> str:
        """A node's host name, with the beginning of its identity where another node has the same."""
        key, host = node["NodeID"], node["NodeManagerHostname"]
        if key not in self._names:
            self._names[key] = f"{host} ({key[:8]})" if host in self._names.values() else host
        return self._names[key]

    def _is_drivers(self, node: Mapping[str, Any]) -> bool:
        if self._is_client:
            return bool(node["NodeManagerHostname"] == platform.node())
        return bool(node["NodeID"] == self._own_node)


class _Actor:
    """A worker that is an actor; see `nodes.Remote`."""

    def __init__(self, ray: Any, aside: Aside, actor: Any) -> None:
        self._ray, self._aside, self._actor = ray, aside, actor

    def call(self, method: str, *arguments: Any) -> Call:
        """Begin a call."""
        # A signal that arrives just then may leave Ray without a reference to the answer.
        for _ in range(_TRIES):
            begun = self._aside(lambda: getattr(self._actor, method).remote(*arguments))
            if begun is not None:
                return begun
        raise InternalError("Ray begins no call of a worker")

    def kill(self) -> None:
        """End the worker's process at once."""
        self._aside.within(_SECONDS_TO_LEAVE, lambda: self._ray.kill(self._actor))


def _restore_signals() -> None:
    """Set the handlers of signals again that Python knows of: Ray put its own before them, which print the stack."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


def _thread() -> Aside:
    if not _aside:
        _aside.append(Aside())
    return _aside[0]


def _import_ray() -> Any:
    """Import Ray, and keep it from writing to our standard output what raylets report."""
    is_set = _SILENCE in os.environ
    os.environ.setdefault(_SILENCE, "^")
    try:
        return import_module("ray")
    except ImportError as error:
        raise UsageError(
            f"{setting('on', addresses.RAY)} needs Ray, which cannot be imported: {quote(error)}",
            "pip install 'streamconv[ray]'",
        ) from error
    finally:
        if not is_set:
            del os.environ[_SILENCE]


def _connect(ray: Any, address: str, workers_per_node: int) -> None:
    """Connect to a cluster; start one where it is to be one that runs here, and none does."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if address == addresses.LOCAL:
            _start(ray, max(workers_per_node, cores()), quiet)
            return
        addresses.reach(address)
        ray.init(address=address, **quiet)


def _start(ray: Any, count: int, quiet: Mapping[str, Any]) -> None:
    """Start a cluster of this machine alone, which ends with this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # By default Ray's workers give way to all other processes; without a cluster a conversion does not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(address="local", num_cpus=count, include_dashboard=False, object_store_memory=_OBJECT_STORE, **quiet)


def _reason(error: Exception) -> str:
    """What Ray says of a dead worker, without its advice: `its worker process has died`."""
    text = " ".join(str(error).split()) or type(error).__name__
    found = _BECAUSE.search(text)
    return quote(found[1] if found else text.split(". ")[0])


def _without_package() -> dict[str, Any]:
    message, hint = "streamconv is not installed", "install the same version of streamconv on every node"
    return {"error": {"class": "UsageError", "message": message, "hint": hint}}
