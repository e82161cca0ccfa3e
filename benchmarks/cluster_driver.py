"""The driver of a conversion on a cluster, alone: its workers do nothing, but leave the journals of their parts.

    python -m benchmarks.cluster_driver fill SOURCE DEST JOURNALS OUT [COUNT]    what workers would record
    python -m benchmarks.cluster_driver drive SOURCE DEST JOURNALS OUT [COUNT]   a conversion with these records

`fill` converts nothing: it takes the lease of every part in turn, and records every box that a worker would convert,
and every block, with a digest that is made up. `drive` runs the driver's code on a cluster of `NODES` nodes that is not
there: a worker that gets a part moves its journals to where they belong. The files of the result stay holes. Both write
what they counted and measured to OUT, as JSON. COUNT is the number of parts; by default it is the plan's.
"""

from __future__ import annotations

import functools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamconv import plans
from streamconv.cluster import convert
from streamconv.cluster.driver import Cluster
from streamconv.cluster.nodes import Call, Node
from streamconv.cluster.sight import look
from streamconv.conversion import Plan
from streamconv.engine import workers
from streamconv.output import built_files, fingerprint, manifest, staging
from streamconv.output.destination import Destination
from streamconv.output.journal import DoneBoxes
from streamconv.output.writer import FileSink
from streamconv.parts import cutting, leases, left
from streamconv.parts.cutting import Part
from streamconv.parts.scopes import PartScope, Scopes
from streamconv.version import VERSION

NODES = 256

_MAX_MEM = "1G"
_DIGEST = "0123456789abcdef" * 2
_STATUS = {"done": 0, "read": 0, "file": "", "resident": 0, "peak": 0}


def main() -> None:
    """Do what the command line says."""
    way, source, dest, journals, out, *count = sys.argv[1:]
    steps = Steps()
    planned = steps.timed("plan", plans.plan)(source, dest, max_mem=_MAX_MEM)
    if count:
        cutting.PART_BYTES = -(-sum(part.cost for part in _parts(planned)) // int(count[0]))
        cutting.FEW_PARTS = 0
    found = _fill(planned, Path(journals)) if way == "fill" else _drive(planned, Path(journals), steps)
    Path(out).write_text(json.dumps(found))


def _parts(planned: Plan) -> Sequence[Part]:
    return cutting.cut_parts(planned.mapping, planned.layout)


# -- what workers would record -----------------------------------------------------------------------------------------


def _fill(planned: Plan, journals: Path) -> dict[str, Any]:
    """Record every part as converted; return the parts and the number of records."""
    numbers = {file.name: number for number, file in enumerate(planned.layout.files)}
    scopes, parts = Scopes(planned.mapping, planned.layout), _parts(planned)
    journals.mkdir()
    loads, boxes, blocks = [], 0, 0
    for part in parts:
        scope = scopes.of(part)
        of_boxes = list(_boxes(planned, scope))
        of_blocks = [["block", r.file, n, _DIGEST, 0] for r in part.blocks for n in range(r.first, r.stop)]
        with leases.taken(journals, part.number) as lease:
            lease.journal.append([*of_boxes, *of_blocks, ["done", False]])
        loads.append((part.cost, scope.nbytes))
        boxes, blocks = boxes + len(of_boxes), blocks + len(of_blocks)
    return {"parts": loads, "boxes": boxes, "blocks": blocks, "files": len(numbers)}


def _boxes(planned: Plan, scope: PartScope) -> Iterator[object]:
    for number, box in scope.boxes():
        yield ["box", number, box, 0]


# -- the driver --------------------------------------------------------------------------------------------------------


class Steps:
    """Times functions; what one spends in another that is timed too is counted for that alone.

    Attributes:
        seconds: by the step's name, in the order in which they ended first: seconds, and those of the processor.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._inner = [np.zeros(2)]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        @functools.wraps(function)
        def timed(*arguments: Any, **words: Any) -> Any:
            self._inner.append(np.zeros(2))
            started = _clocks()
            try:
                return function(*arguments, **words)
            finally:
                took = _clocks() - started
                own = took - self._inner.pop()
                self.seconds[name] = (np.array(self.seconds.get(name, [0, 0])) + own).tolist()
                self._inner[-1] += took

        return timed

    def watch(self, name: str, owner: Any, attribute: str) -> None:
        """Time a function wherever it is called from now on."""
        setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))


def _clocks() -> NDArray[np.float64]:
    return np.array([time.monotonic(), time.process_time()])


def _watch(steps: Steps) -> None:
    for name, owner, attribute in (
        ("write and read tokens", Cluster, "prove"),
        ("fingerprint", fingerprint, "describe"),
        ("cut parts", left, "cut_parts"),
        ("scopes of parts", Scopes, "of"),
        ("make files", built_files, "make_files"),
        ("hand out", convert, "_results"),
        ("workers that do nothing", Idle, "call"),
        ("copy the parts' journals", leases, "absorb"),
        ("read the journal", DoneBoxes, "load"),
        ("look for boxes that are left", workers, "run"),
        ("finish files", FileSink, "finish"),
        ("manifest", manifest, "write"),
        ("put in place", staging.Staging, "commit"),
    ):
        steps.watch(name, owner, attribute)


def _drive(planned: Plan, journals: Path, steps: Steps) -> dict[str, Any]:
    """Run the driver; return the seconds of its steps."""
    _watch(steps)
    # The files are holes, and take no space.
    setattr(Destination, "check_free_space", lambda *_: None)  # noqa: B010
    steps.timed("import Ray", _import_ray)()
    nodes = NoNodes(journals, planned.destination.paths.parts)
    steps.timed("all else", _run)(nodes, planned)
    return {"seconds": steps.seconds}


def _import_ray() -> None:
    # Without it, its time and memory are not counted.
    try:
        import ray  # noqa: F401, PLC0415
    except ImportError:
        return


def _run(nodes: NoNodes, planned: Plan) -> None:
    with Cluster(nodes) as cluster:
        cluster.prove([planned.catalog.files[0].path.parent], planned.destination.path)
        convert.convert_on(cluster, planned)


class NoNodes:
    """`NODES` nodes that are not there (`streamconv.cluster.nodes.Nodes`).

    Args:
        journals: what the workers left, as `fill` made it.
        parts: where they belong.
    """

    where = "nowhere"

    def __init__(self, journals: Path, parts: Path) -> None:
        self._journals, self._parts = journals, parts
        self._answers: dict[Call, dict[str, Any]] = {}

    def nodes(self) -> Sequence[Node]:
        """Return all nodes."""
        return [Node(str(number), f"node-{number}") for number in range(NODES)]

    def start(self, node: Node) -> Idle:
        """Start nothing."""
        return Idle(self._journals, self._parts, self._answers)

    def answers(self, calls: Sequence[Call], seconds: float) -> Iterator[tuple[Call, Any]]:
        """Yield all answers: nobody has to be waited for."""
        yield from ((call, self._answers.pop(call)) for call in calls)

    def close(self) -> None:
        """Leave nothing."""


class Idle:
    """A worker that does nothing (`streamconv.cluster.nodes.Remote`): its calls are answered when they are made."""

    def __init__(self, journals: Path, parts: Path, answers: dict[Call, dict[str, Any]]) -> None:
        self._journals, self._parts, self._answers = journals, parts, answers

    def call(self, method: str, *arguments: Any) -> Call:
        """Answer a call."""
        call = object()
        self._answers[call] = {"value": getattr(self, f"_{method}")(*arguments)}
        return call

    def kill(self) -> None:
        """Kill nothing."""

    def _describe(self) -> dict[str, str]:
        return {"python": ".".join(platform.python_version_tuple()[:2]), "streamconv": VERSION}

    def _see(self, request: Any) -> dict[str, Any]:
        return look(request)

    def _open(self, *_: Any) -> None:
        return None

    def _status(self) -> dict[str, Any]:
        return _STATUS

    def _stop(self) -> None:
        return None

    def _work(self, task: dict[str, Any]) -> dict[str, Any]:
        place = f"{task['part']:05}"
        (self._journals / place).rename(self._parts / place)
        return {"result": {"written": 0, "read": 0}, "status": _STATUS}


if __name__ == "__main__":
    main()
