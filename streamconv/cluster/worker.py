"""The worker: it answers who it is and what it sees, opens a job once, and does the tasks that it is given.

Everything that it takes and returns is plain values. A method returns `{"value": …}`, or `{"error": …}` for what went
wrong: an exception never leaves this process as an object. Nothing here knows how the calls arrive.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from ..engine.budget import default_limit
from ..errors import InternalError
from ..storage.memory import peak_bytes, roughly_resident_bytes
from ..version import VERSION
from . import sight, wire
from .kinds import StoppedError, Work, open_work

Answer = dict[str, Any]


def _answering(method: Callable[..., Any]) -> Callable[..., Answer]:
    """Wrap a method: its value or its error goes back as plain values."""

    @wraps(method)
    def answer(*arguments: Any) -> Answer:
        try:
            return {"value": method(*arguments)}
        except BaseException as error:
            return {"error": wire.to_values(error)}

    return answer


class Worker:
    """A worker on a node. `status` and `stop` answer while `work` runs in another thread."""

    def __init__(self) -> None:
        self._work: Work | None = None
        self._stop = threading.Event()
        self._done, self._read, self._file = 0, 0, ""

    @_answering
    def describe(self) -> Answer:
        """Return who this is: versions, host, process."""
        return {
            "python": ".".join(platform.python_version_tuple()[:2]),
            "streamconv": VERSION,
            "host": platform.node(),
            "pid": os.getpid(),
        }

    @_answering
    def see(self, request: Mapping[str, Any]) -> Any:
        """Return what of some paths is to be seen from here; see `sight.look`."""
        return sight.look(request)

    @_answering
    def open(self, kind: str, arguments: Mapping[str, Any], share: Mapping[str, Any]) -> None:
        """Open a job; one that was open before is forgotten.

        Args:
            kind: a key of `kinds.KINDS`.
            arguments: what the job takes; it gets `memory_limit` as well, the bytes that this process may have.
            share: `limit`, bytes of memory for this worker, or `None` for its share of the default, and `workers`,
                how many there are on the node.
        """
        limit = share["limit"] or default_limit() // share["workers"]
        self._stop.clear()
        self._work = None
        self._work = open_work(kind, {**arguments, "memory_limit": limit})

    @_answering
    def work(self, task: Mapping[str, Any]) -> Answer:
        """Do a task of the open job; return its result, or that it was stopped."""
        if self._work is None:
            raise InternalError("no job is open")
        self._done, self._read, self._file = 0, 0, ""
        try:
            result = self._work.run(task, self._progress, self._stop.is_set)
        except StoppedError:
            return {"stopped": True}
        return {"result": result, "status": self._status()}

    @_answering
    def status(self) -> Answer:
        """Return how far the task is, and what memory this process has and had."""
        return self._status()

    @_answering
    def stop(self) -> None:
        """Make the task that runs end soon, in good order."""
        self._stop.set()

    def _status(self) -> Answer:
        memory = {"resident": roughly_resident_bytes(), "peak": peak_bytes()}
        return {"done": self._done, "read": self._read, "file": self._file, **memory}

    def _progress(self, done: int, read: int, file: str) -> None:
        self._done, self._read, self._file = done, read, file
        if self._stop.is_set():
            raise StoppedError
