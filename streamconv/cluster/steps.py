"""What every worker does before it works: it says who it is, proves what it sees, and opens the job."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from ..errors import BudgetError, StreamconvError, UsageError
from ..text import quote
from ..version import VERSION
from .members import Member, Step
from .node_memory import NodeMemory
from .sight import Sight


class Job(Struct, frozen=True):
    """A job that is spread over a cluster.

    Attributes:
        kind: a key of `kinds.KINDS`.
        arguments: plain values that the kind takes.
    """

    kind: str
    arguments: Mapping[str, Any]


class Describe(Step):
    """The versions of every worker are the driver's."""

    def begin(self, member: Member) -> tuple[str, tuple[Any, ...]]:
        """Ask who it is."""
        return "describe", ()

    def end(self, member: Member, value: Mapping[str, Any]) -> None:
        """Compare the versions.

        Raises:
            UsageError: one differs.
        """
        own = ".".join(platform.python_version_tuple()[:2])
        for what, here, there in (("Python", own, value["python"]), ("streamconv", VERSION, value["streamconv"])):
            if here != there:
                raise UsageError(
                    f"{quote(member.node.name)} has {what} {quote(there)}, the driver {here}",
                    f"install the same version of {what} on every node",
                )


class See(Step):
    """Every worker sees what the driver sees."""

    leaves_files = True

    def __init__(self, sight: Sight) -> None:
        self._sight = sight

    def begin(self, member: Member) -> tuple[str, tuple[Any, ...]]:
        """Ask what it sees."""
        return "see", (self._sight.request(member.key),)

    def end(self, member: Member, value: Mapping[str, Any]) -> None:
        """Compare it with what the driver sees."""
        self._sight.check(member.key, member.node.name, value)

    def drop(self, member: Member) -> None:
        """Remove its token."""
        self._sight.forget(member.key)


class Open(Step):
    """Every worker opens the job, with its share of its node's memory."""

    def __init__(self, job: Job, memory: NodeMemory) -> None:
        self._job, self._memory = job, memory

    def begin(self, member: Member) -> tuple[str, tuple[Any, ...]]:
        """Let it open the job."""
        return "open", (self._job.kind, dict(self._job.arguments), self._memory.of(member.node))

    def explain(self, member: Member, error: StreamconvError) -> StreamconvError:
        """Say of a share that is too small which limit would do."""
        return self._memory.refused(error, member.node) if isinstance(error, BudgetError) else error
