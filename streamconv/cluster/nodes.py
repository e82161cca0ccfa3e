"""What the driver asks of a cluster: its nodes, a worker on one of them, and the answers of calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from msgspec import Struct


class Node(Struct, frozen=True):
    """A machine of a cluster that may have workers.

    Attributes:
        key: what the cluster calls it; no two nodes that ever were have the same.
        name: its host name, made different from those of the other nodes.
        is_drivers: whether the driver runs on it, and so shares its memory.
        cpus: processors that the cluster may give to workers.
    """

    key: str
    name: str
    is_drivers: bool = False
    cpus: int = 1 << 20


class LostError(Exception):
    """A worker died, or its node did; the text says why, as far as the cluster knows."""


Call = Any
"""A call that was made and may not be answered yet; hashable."""


class Remote(Protocol):
    """A worker somewhere. Neither method waits for it."""

    def call(self, method: str, *arguments: Any) -> Call:
        """Begin a call of a method of `worker.Worker`."""

    def kill(self) -> None:
        """End the worker's process at once; no error if it has ended already."""


class Nodes(Protocol):
    """A cluster.

    Attributes:
        where: which cluster it is, for people.
    """

    where: str

    def nodes(self) -> Sequence[Node]:
        """Return the nodes that are alive and can have workers."""

    def start(self, node: Node) -> Remote:
        """Begin to start a worker on a node, and nowhere else."""

    def answers(self, calls: Sequence[Call], seconds: float) -> Iterator[tuple[Call, dict[str, Any] | LostError]]:
        """Wait up to `seconds` until a call is answered; yield the answers that are there by then."""

    def close(self) -> None:
        """Leave the cluster; one that was started for this run ends."""
