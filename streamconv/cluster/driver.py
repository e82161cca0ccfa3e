"""One job on all nodes of a cluster: connect → who is there → what do they see → hand out, collect, hand out again.

with Cluster.open("ray", workers_per_node=1, max_mem=None) as cluster:
    cluster.prove([source], dest)                       # every node sees what the driver sees
    for result in cluster.run(Job("verify", arguments), tasks, on_progress):
        ...                                             # plain values, in the order in which they come
cluster.records                                         # what every node did
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from msgspec import Struct

from ..engine.progress import OnProgress
from ..errors import BudgetError, InternalError, SourceError, StorageError, StreamconvError
from ..text import counted, first_few, quote
from . import wire
from .crew import Crew
from .handing_out import HandingOut
from .members import Member
from .meter import Meter, Reporter
from .node_memory import NodeMemory
from .nodes import LostError, Nodes
from .ray_cluster import RayCluster
from .sight import Sight
from .steps import Describe, Job, Open, See

_ATTEMPTS = 3
_TICK = 0.25
#: What may be one node's fault: another may do better. A class that is derived from these says more.
_TRIED_ELSEWHERE = (StorageError, SourceError, InternalError)


class Task(Struct, frozen=True):
    """A part of a job.

    Attributes:
        number: its number in the job; neighbours read neighbouring bytes.
        values: what a worker is given, as plain values.
        nbytes: how much work it is, in bytes.
    """

    number: int
    values: Mapping[str, Any]
    nbytes: int


class Result(Struct, frozen=True):
    """What a worker made of a task: its number, plain values, and the node."""

    number: int
    values: Mapping[str, Any]
    host: str


class Cluster:
    """Workers on all nodes of a cluster. A context manager: it ends the workers, and what it started."""

    def __init__(self, nodes: Nodes, workers_per_node: int = 1, max_mem: int | None = None) -> None:
        self._nodes, self._memory = nodes, NodeMemory(max_mem, workers_per_node)
        self._crew = Crew(nodes, workers_per_node)
        self._meter = Meter()

    @classmethod
    def open(cls, on: str, workers_per_node: int = 1, max_mem: int | None = None) -> Cluster:
        """Connect to a cluster, or start one; its workers are started where the context is entered.

        Args:
            on: `ray`, or the address of a Ray client's server: `ray://HOST:PORT`.
            workers_per_node: worker processes on each node.
            max_mem: bytes of memory for each node's workers and the driver; by default what each node has available.

        Raises:
            UsageError: Ray is not installed, or `on` is no address.
            StorageError: the cluster cannot be connected to.
        """
        return cls(RayCluster(on, workers_per_node), workers_per_node, max_mem)

    def __enter__(self) -> Cluster:
        """Start the workers, and wait until they say who they are.

        Raises:
            UsageError: a node has another version of Python or streamconv, or no streamconv.
            StorageError: no worker starts.
        """
        try:
            self._crew.steps.append(Describe())
            self._crew.admit()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def records(self) -> list[dict[str, Any]]:
        """What every node did, as plain values: host, workers, tasks, bytes, seconds, peak_bytes."""
        return self._meter.records()

    @property
    def where(self) -> str:
        """Which cluster it is, for people."""
        return self._nodes.where

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        return len(self._crew.members)

    def prove(self, sources: Sequence[Path], dest: Path | None = None) -> None:
        """Let every node prove that it sees the same files, also those that come later.

        Args:
            sources: files or directories that are read.
            dest: where a result is written; `None` where nothing is.

        Raises:
            StorageError: a node does not see them; the message names it, and the path.
        """
        self._crew.steps.append(See(Sight(sources, dest)))
        self._crew.admit()

    def run(
        self, job: Job, tasks: Sequence[Task], on_progress: OnProgress | None = None, total: int = 0, resumed: int = 0
    ) -> Iterator[Result]:
        """Do all tasks of a job; yield their results as they come.

        A task whose worker died, or that failed for what may be the node's fault, is given to another worker; after 3
        attempts its error ends the run.

        Args:
            job: the job; every worker opens it once.
            tasks: its tasks, neighbours next to each other.
            on_progress: called a few times a second. An exception that it raises stops all workers.
            total: bytes of the whole job; by default those of the tasks.
            resumed: bytes that earlier runs did, which are in `total`, but not in the tasks.

        Raises:
            StreamconvError: what a task failed with; or no worker is left.
        """
        reporter = Reporter(
            on_progress, self._meter, total or sum(task.nbytes for task in tasks), resumed, self._memory.max_mem or 0
        )
        opening = Open(job, self._memory)
        self._crew.steps.append(opening)
        self._crew.is_running = True
        run = _Run(self._crew, self._meter, self._memory, tasks)
        try:
            while run.left:
                run.hand_out()
                yield from run.collected()
                reporter.report(run.done, self._crew.ready())
        finally:
            self._crew.steps.remove(opening)
            if run.left:
                self._crew.stop()

    def dismiss(self) -> None:
        """End all workers: nothing is left for them to do."""
        self._crew.end()

    def _end(self) -> None:
        try:
            self._crew.stop()
            self._crew.end()
        finally:
            self._nodes.close()


class _Run:
    """The tasks of a job, and who has them."""

    def __init__(self, crew: Crew, meter: Meter, memory: NodeMemory, tasks: Sequence[Task]) -> None:
        self._crew, self._meter, self._memory = crew, meter, memory
        self._tasks = {task.number: task for task in tasks}
        sizes = {task.number: task.nbytes for task in tasks}
        self._handing_out = HandingOut(sizes, [member.key for member in crew.members])
        self._hosts: dict[int, list[str]] = {}
        self.left, self.done = len(tasks), 0

    def hand_out(self) -> None:
        """Give a task to every worker that has none, as far as there are any."""
        ready = self._crew.ready()
        # What failed on one worker waits for those that still open the job, too: the fault may be the node's.
        self._handing_out.keep(member.key for member in self._crew.members if member in ready or not member.is_late)
        for member in (member for member in ready if member.task is None):
            number = self._handing_out.take(member.key)
            if number is not None:
                self._meter.begin(member)
                self._crew.give(member, number, self._tasks[number].values)

    def collected(self) -> Iterator[Result]:
        """Wait a moment for answers; yield the results that are among them."""
        for member, number, answer in self._crew.turn(_TICK):
            failure = self._failure(member, answer)
            if failure is not None:
                self._give_back(member, number, failure)
            elif not isinstance(answer, LostError):
                yield self._result(member, number, answer["value"])

    def _result(self, member: Member, number: int, value: Mapping[str, Any]) -> Result:
        nbytes = self._tasks[number].nbytes
        member.status = value["status"]
        self._meter.add(member, nbytes)
        self.left -= 1
        self.done += nbytes
        return Result(number, value["result"], member.node.name)

    def _failure(self, member: Member, answer: Mapping[str, Any] | LostError) -> StreamconvError | None:
        """Return what may go better on another node; raise what may not."""
        if isinstance(answer, LostError):
            return StorageError(f"a worker on {quote(member.node.name)} died: {answer}", "look into Ray's logs there")
        if "error" not in answer:
            return None
        error = wire.from_values(answer["error"], member.node.name)
        if type(error) not in _TRIED_ELSEWHERE:
            raise self._memory.refused(error, member.node) if isinstance(error, BudgetError) else error
        return error

    def _give_back(self, member: Member, number: int, error: StreamconvError) -> None:
        """Let another worker have the task; raise the error where enough had it.

        Raises:
            StreamconvError: the error.
        """
        self._handing_out.give_back(number, member.key)
        hosts = self._hosts.setdefault(number, [])
        hosts.append(member.node.name)
        if len(hosts) >= _ATTEMPTS:
            error.add(f"the same work failed {counted(len(hosts), 'time')}, on {first_few(hosts, show=quote)}")
            raise error
