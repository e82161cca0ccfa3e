"""A worker as the driver knows it, and the steps that it takes before it works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from ..errors import StreamconvError
from .nodes import Call, LostError, Node, Remote

_STATUS: Mapping[str, Any] = {"done": 0, "read": 0, "file": "", "resident": 0, "peak": 0}


class Member(Struct, eq=False):
    """A worker that was started.

    Attributes:
        key: its name, which no other worker ever has.
        node, remote: where it is, and how it is called.
        is_late: whether the run had begun without it: what is wrong with it does not end the run.
        passed: the steps that it has taken.
        step: the step that it takes now.
        call: that step's call, or that of its task, if it is not answered.
        task: the number of the task that it does.
        asked: the call for its status, if that is not answered.
        status: what it answered last.
    """

    key: str
    node: Node
    remote: Remote
    is_late: bool
    passed: list[Step] = field(default_factory=list)
    step: Step | None = None
    call: Call | None = None
    task: int | None = None
    asked: Call | None = None
    status: Mapping[str, Any] = field(default_factory=lambda: _STATUS)


class Step:
    """A call that every worker has to answer well before it works.

    Attributes:
        leaves_files: whether a worker that takes it writes files, which `drop` removes.
    """

    leaves_files = False

    def begin(self, member: Member) -> tuple[str, tuple[Any, ...]]:
        """Return the method to call, and its arguments."""
        raise NotImplementedError

    def end(self, member: Member, value: Any) -> None:
        """Look at the answer; raises `StreamconvError` if it is not good."""

    def drop(self, member: Member) -> None:
        """Clean up after a worker that failed to answer, or answered that it failed."""

    def explain(self, member: Member, error: StreamconvError) -> StreamconvError:
        """Return the error for a worker's error."""
        return error


Event = tuple[Member, int, dict[str, Any] | LostError]
"""A worker, the task that it had, and its answer."""
