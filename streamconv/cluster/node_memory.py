"""What memory a node's workers may have: the limit is the node's, and its workers share it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from ..errors import BudgetError
from ..formats.header_room import limit_hint
from ..storage.memory import resident_bytes
from ..text import counted, format_size, quote
from .nodes import Node


class NodeMemory(Struct, frozen=True):
    """How a node's memory is shared.

    Attributes:
        max_mem: bytes for each node; `None` lets every worker take its share of what its node has available.
        per_node: workers on each node.
    """

    max_mem: int | None
    per_node: int

    def of(self, node: Node) -> dict[str, Any]:
        """Return the share of each of a node's workers, as `worker.Worker.open` takes it."""
        limit = None if self.max_mem is None else max(1, (self.max_mem - _reserved(node)) // self.per_node)
        return {"limit": limit, "workers": self.per_node}

    def refused(self, error: BudgetError, node: Node) -> BudgetError:
        """Return a worker's error about its share as one about the node's limit, with the number that would do."""
        if self.max_mem is None or not error.least:
            return error
        message, _ = error.marked
        least = error.least * self.per_node + _reserved(node)
        drivers = f" and the driver, which takes {format_size(_reserved(node))}" if node.is_drivers else ""
        why = f"{quote(node.name)} has {format_size(self.max_mem)} for {counted(self.per_node, 'worker')}{drivers}"
        return BudgetError(f"{message}\n{why}", limit_hint(least), least)


def _reserved(node: Node) -> int:
    """The bytes that the driver takes of its own node's memory."""
    return resident_bytes() if node.is_drivers else 0
