"""The kinds of jobs that a worker knows, and what each of them is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

from ..errors import InternalError

#: Kind → the module of this room, and the class in it. A kind is loaded where it is used first.
KINDS = {
    "verify": ("blocks_job", "BlocksJob"),
    "diff": ("tensors_job", "TensorsJob"),
    "convert": ("parts_job", "ConvertJob"),
    "compare": ("parts_job", "CompareJob"),
}

OnWork = Callable[[int, int, str], None]
"""Takes the bytes of the task that are done, the bytes read for that, and the file read or written last."""

IsStopped = Callable[[], bool]


class Work(Protocol):
    """A job as a worker has it: opened once, then given its tasks one by one."""

    def run(self, task: Mapping[str, Any], progress: OnWork, is_stopped: IsStopped) -> dict[str, Any]:
        """Do a task, and return its result as plain values.

        Args:
            task: plain values.
            progress: to be called now and then; raises `StoppedError` once the run has ended.
            is_stopped: whether it has, for what calls `progress` seldom.
        """


class StoppedError(Exception):
    """The run has ended elsewhere: the task is left as it is."""


def open_work(kind: str, arguments: Mapping[str, Any]) -> Work:
    """Return the job of this kind, opened with these plain values."""
    if kind not in KINDS:
        raise InternalError(f"unknown kind of job: {kind}")
    module, name = KINDS[kind]
    work: Work = getattr(import_module(f".{module}", __package__), name)(arguments)
    return work
