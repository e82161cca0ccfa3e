"""The workers: started on every node, led through the steps before work, watched, and started again where they die.

a node is there → a worker is started → it takes the steps: describe, see, open → it works, or waits for work
                      ↑ at most 3 times again for each node ← it dies
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import StorageError, StreamconvError
from ..text import counted, first_few, quote
from . import wire
from .members import Event, Member, Step
from .nodes import LostError, Node, Nodes

_RESTARTS = 3
_SECONDS_TO_START = 60.0
_SECONDS_TO_STOP = 2.8
_LOOK_EVERY = 2.0
_ASK_EVERY = 0.25
_ASKED_AT_ONCE = 400
_PAUSE = 0.02

_log = logging.getLogger("streamconv")


class Crew:
    """All workers of a run.

    Args:
        cluster: where they run.
        per_node: workers on each node.

    Attributes:
        steps: what each takes before it works.
        members: those that there are.
        is_running: whether work has begun: who comes now is late.
    """

    def __init__(self, cluster: Nodes, per_node: int) -> None:
        self._cluster, self._per_node = cluster, per_node
        self.steps: list[Step] = []
        self.members: list[Member] = []
        self._started: Counter[str] = Counter()
        self._left_out: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._looked = self._asked = -math.inf
        self.is_running = False

    def admit(self) -> None:
        """Wait until every worker has taken all steps; do without those that do not start within a minute.

        Raises:
            StreamconvError: a step's, or no worker started.
        """
        end = time.monotonic() + _SECONDS_TO_START
        self._look()
        while waiting := [member for member in self.members if not (self._is_ready(member) or member.is_late)]:
            list(self.turn(_ASK_EVERY))
            if time.monotonic() > end:
                self._do_without(waiting)

    def ready(self) -> list[Member]:
        """Return the workers that have taken all steps: they work, or wait for work."""
        return [member for member in self.members if self._is_ready(member)]

    def give(self, member: Member, number: int, values: Mapping[str, Any]) -> None:
        """Let an idle worker do a task; `turn` yields what it answers."""
        member.task, member.status = number, {**member.status, "done": 0, "read": 0, "file": ""}
        member.call = member.remote.call("work", dict(values))

    def turn(self, seconds: float) -> Iterator[Event]:
        """Begin what can begin, wait up to `seconds` for an answer, and yield those to tasks.

        Raises:
            StreamconvError: a step's; or no worker is left.
        """
        self._look()
        self._ask()
        for member in self.members:
            self._advance(member)
        waiting = {member.call: member for member in self.members if member.call is not None}
        asked = {member.asked: member for member in self.members if member.asked is not None}
        if not waiting:
            time.sleep(_PAUSE)
        for call, answer in self._cluster.answers([*waiting, *asked], seconds) if waiting else ():
            if call in asked:
                _note(asked[call], answer)
            else:
                yield from self._settled(waiting[call], answer)

    def stop(self) -> None:
        """Let all workers end what they do in good order, within 2.8 s; those that do not are killed."""
        end = time.monotonic() + _SECONDS_TO_STOP
        busy = {member.call: member for member in self.members if _is_busy(member)}
        stops = {member.remote.call("stop"): member for member in busy.values()}
        while busy and time.monotonic() < end:
            for call, answer in self._cluster.answers([*busy, *stops], _ASK_EVERY):
                stops.pop(call, None)
                if member := busy.pop(call, None):
                    step, member.step, member.call, member.task = member.step, None, None, None
                    if step is not None:
                        step.drop(member)
                    if isinstance(answer, LostError):
                        self._remove(member)
        for member in busy.values():
            self._remove(member)

    def end(self) -> None:
        """End all workers at once."""
        for member in list(self.members):
            self._remove(member)

    def _is_ready(self, member: Member) -> bool:
        return all(step in member.passed for step in self.steps)

    def _look(self) -> None:
        """Start workers on the nodes that have too few; forget those whose node is gone."""
        if time.monotonic() - self._looked < _LOOK_EVERY:
            return
        nodes = {node.key: node for node in self._cluster.nodes()}
        for member in [member for member in self.members if member.node.key not in nodes and member.call is None]:
            self._remove(member)
        there = Counter(member.node.key for member in self.members)
        for key, node in nodes.items():
            for _ in range(self._wanted(node) - there[key] if key not in self._left_out else 0):
                self._start(node)
        self._looked = time.monotonic()
        if not self.members:
            raise self._nobody()

    def _wanted(self, node: Node) -> int:
        """How many workers a node is to have: more than it has processors would wait forever."""
        if node.cpus < self._per_node and not self._started[node.key]:
            _log.warning("%s has %s: it gets no more workers", quote(node.name), counted(node.cpus, "CPU"))
        return min(self._per_node, node.cpus)

    def _start(self, node: Node) -> None:
        number = self._started[node.key]
        if number < self._per_node + _RESTARTS:
            self._started[node.key] += 1
            key = f"{node.name} #{number + 1}"
            self.members.append(Member(key, node, self._cluster.start(node), self.is_running))

    def _ask(self) -> None:
        """Ask those that work for their status, some 4 times a second; of hundreds less often."""
        now = time.monotonic()
        if now - self._asked < _ASK_EVERY * max(1, len(self.members) / _ASKED_AT_ONCE):
            return
        self._asked = now
        for member in self.members:
            if member.task is not None and member.asked is None:
                member.asked = member.remote.call("status")

    def _advance(self, member: Member) -> None:
        """Begin the next step of a worker that waits for it."""
        missing = next((step for step in self.steps if step not in member.passed), None)
        if member.call is None and missing is not None:
            member.step = missing
            method, arguments = missing.begin(member)
            member.call = member.remote.call(method, *arguments)

    def _settled(self, member: Member, answer: dict[str, Any] | LostError) -> Iterator[Event]:
        """Take the answer to a step or to a task."""
        step, task = member.step, member.task
        member.step = member.call = member.task = None
        if isinstance(answer, LostError):
            self._lose(member, step, answer)
        elif step is not None:
            self._end_step(member, step, answer)
        if task is not None:
            yield member, task, answer

    def _end_step(self, member: Member, step: Step, answer: Mapping[str, Any]) -> None:
        try:
            if "error" in answer:
                raise step.explain(member, wire.from_values(answer["error"], member.node.name))
            step.end(member, answer["value"])
        except StreamconvError as error:
            step.drop(member)
            if not member.is_late:
                raise
            _log.warning("%s is left out: %s", quote(member.node.name), error.message)
            self._reasons[member.node.name] = error.message
            self._left_out.add(member.node.key)
            self._remove(member)
        else:
            member.passed.append(step)

    def _lose(self, member: Member, step: Step | None, why: LostError) -> None:
        _log.warning("a worker on %s died: %s", quote(member.node.name), why)
        self._reasons[member.node.name] = str(why)
        if step is not None:
            step.drop(member)
        self._remove(member)
        self._looked = -math.inf

    def _remove(self, member: Member) -> None:
        self.members.remove(member)
        member.remote.kill()
        if member.step is not None:
            member.step.drop(member)

    def _nobody(self) -> StorageError:
        """The error for a cluster that has no workers, or no longer."""
        if not self._started:
            return StorageError("the cluster has no node with a processor for a worker", "add a node with a CPU")
        reasons = [f"{quote(name)}: {why}" for name, why in self._reasons.items()]
        return StorageError(
            f"no worker is left on {counted(len(self._started), 'node')}: {first_few(reasons, separator='; ')}",
            "look into Ray's logs of these nodes, then run again",
        )

    def _do_without(self, waiting: list[Member]) -> None:
        """Begin without those workers that did not start in time, if there are others."""
        for member in waiting:
            member.is_late = True
        if all(member.is_late for member in self.members):
            names = sorted({member.node.name for member in self.members})
            raise StorageError(
                f"no worker started within {_SECONDS_TO_START:.0f} seconds on {first_few(names, show=quote)}",
                "each worker needs a CPU of the cluster: wait until other work there has ended, or add nodes",
            )


def _is_busy(member: Member) -> bool:
    """Whether a worker is at something that should not be cut off; a signal may come before its call is known."""
    is_in_files = member.task is not None or (member.step is not None and member.step.leaves_files)
    return is_in_files and member.call is not None


def _note(member: Member, answer: Mapping[str, Any] | LostError) -> None:
    """Take the answer to a question for a worker's status; one that died is noticed by its task."""
    member.asked = None
    if not isinstance(answer, LostError) and "value" in answer and member.task is not None:
        member.status = answer["value"]
