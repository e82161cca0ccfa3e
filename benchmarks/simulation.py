"""A model of a conversion on a cluster: how long it takes on so many nodes, and what limits it.

The parts are those of a real plan, and `streamconv.cluster.handing_out` hands them out. A node converts one part at a
time: first what each part costs whatever its size, then its bytes, at the lowest of three rates: that of the node's
processor, that of its own bandwidth, and its fair share of the bandwidth that all nodes share. Start and end are the
driver's alone.

    python -m benchmarks.simulation RESULTS [--bandwidth 2.5] [--processor 8] [--shared 40] [--nodes 1 2 4 8]

predicts DeepSeek-V3 for a cluster of your own, in GB/s, with the parts and the overhead that RESULTS has: the
`results.json` of `python -m benchmarks cluster`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamconv.cluster.handing_out import HandingOut

from .results import Table

GB = 10**9

#: What a node's time goes into; all but the last four are bytes, and what limits them.
PROCESSOR, BANDWIDTH, SHARED = "processor", "node's bandwidth", "shared bandwidth"
PARTS, IDLE, START, END = "parts", "idle", "start", "end"

_LIMITS = np.array([PROCESSOR, BANDWIDTH])
_NEARLY = 1 + 1e-9


class Load(NamedTuple):
    """A part: bytes read and written for it, and those written."""

    cost: float
    written: float


@dataclass(frozen=True)
class Machines:
    """A cluster, and what was measured of the program. All rates are bytes a second.

    Attributes:
        nodes: their number.
        processor: bytes written by one node if nothing but its processor limits it.
        bandwidth: bytes that one node reads and writes.
        shared: bytes that all nodes together read and write.
        start, end: seconds of the driver alone, before the first part and after the last.
        per_part: seconds that a part takes besides its bytes.
    """

    nodes: int
    processor: float
    bandwidth: float
    shared: float
    start: float = 0.0
    end: float = 0.0
    per_part: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """What a conversion takes.

    Attributes:
        seconds: from the start to the end.
        spent: what the time of the nodes goes into: seconds, averaged over all nodes; they add up to `seconds`.
    """

    seconds: float
    spent: Mapping[str, float]

    @property
    def idle(self) -> float:
        """The share of the time between start and end in which a node has no part."""
        working = self.seconds - self.spent.get(START, 0) - self.spent.get(END, 0)
        return self.spent.get(IDLE, 0) / working if working else 0.0

    @property
    def limit(self) -> str:
        """What most of the time goes into, start and end together."""
        ends = self.spent.get(START, 0) + self.spent.get(END, 0)
        found = {name: seconds for name, seconds in self.spent.items() if name not in (START, END)}
        return max({**found, "start and end": ends}.items(), key=lambda one: one[1])[0]


def predict(parts: Sequence[Load], machines: Machines) -> Prediction:
    """Play a conversion.

    Args:
        parts: the plan's parts, in its order.
        machines: what converts them.
    """
    play = _Play(parts, machines)
    while play.step():
        pass
    spent = {name: seconds / machines.nodes for name, seconds in play.spent.items()}
    spent |= {START: machines.start, END: machines.end}
    return Prediction(machines.start + play.now + machines.end, spent)


def fair(wanted: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """Divide a rate among those who want some: nobody gets more than wanted, and who wants more gets the same."""
    if wanted.sum() <= total:
        return wanted
    ascending = np.sort(wanted)
    taken = np.concatenate([[0.0], np.cumsum(ascending)[:-1]])
    levels = (total - taken) / np.arange(len(wanted), 0, -1)
    return np.minimum(wanted, levels[np.argmax(levels <= ascending)])


class _Play:
    """The time between start and end, from event to event: a node begins with the bytes of its part, or ends it.

    Attributes:
        now: seconds that have passed.
        spent: node seconds by what they went into.
    """

    def __init__(self, parts: Sequence[Load], machines: Machines) -> None:
        self._parts, self._machines = parts, machines
        self._names = [str(number) for number in range(machines.nodes)]
        sizes = {number: int(part.written) for number, part in enumerate(parts)}
        self._handing_out = HandingOut(sizes, self._names)
        # Of each node: seconds until its bytes begin, bytes that are left, and the rate that it could have alone.
        self._waits, self._left, self._rates = np.zeros((3, machines.nodes))
        self._limits = np.full(machines.nodes, IDLE, dtype=object)
        self.now = 0.0
        self.spent: dict[str, float] = defaultdict(float)
        for node in range(machines.nodes):
            self._take(node)

    def step(self) -> bool:
        """Go to the next event; return whether there was one."""
        is_waiting, is_moving = self._waits > 0, (self._waits <= 0) & (self._left > 0)
        if not (is_waiting | is_moving).any():
            return False
        rates = np.zeros(len(self._left))
        rates[is_moving] = fair(self._rates[is_moving], self._machines.shared)
        lasts = np.where(is_waiting, self._waits, np.inf)
        lasts[is_moving] = self._left[is_moving] / rates[is_moving]
        seconds = float(lasts.min())
        self._spend(seconds, is_waiting, is_moving, rates)
        self._waits[is_waiting] -= seconds
        self._left -= rates * seconds
        self._settle(lasts <= seconds * _NEARLY, is_waiting)
        return True

    def _spend(
        self, seconds: float, is_waiting: NDArray[np.bool_], is_moving: NDArray[np.bool_], rates: NDArray[np.float64]
    ) -> None:
        self.now += seconds
        is_slowed = is_moving & (rates * _NEARLY < self._rates)
        whys = np.where(is_waiting, PARTS, np.where(is_slowed, SHARED, np.where(is_moving, self._limits, IDLE)))
        for why, count in Counter(whys.tolist()).items():
            self.spent[why] += seconds * count

    def _settle(self, is_over: NDArray[np.bool_], is_waiting: NDArray[np.bool_]) -> None:
        """Let nodes begin with the bytes of their parts, or with the next part."""
        self._waits[is_over & is_waiting] = 0
        for node in np.flatnonzero(is_over & ~is_waiting):
            self._take(int(node))

    def _take(self, node: int) -> None:
        number = self._handing_out.take(self._names[node])
        if number is None:
            self._waits[node] = self._left[node] = 0
            return
        part, machines = self._parts[number], self._machines
        alone = np.array([machines.processor * part.cost / (part.written or part.cost), machines.bandwidth])
        self._waits[node], self._left[node], self._rates[node] = machines.per_part, max(1, part.cost), alone.min()
        self._limits[node] = _LIMITS[alone.argmin()]


def predictions(parts: Sequence[Load], machines: Machines, counts: Sequence[int]) -> dict[int, Prediction]:
    """Predict for each number of nodes."""
    return {count: predict(parts, replace(machines, nodes=count)) for count in counts}


def table(title: str, found: Mapping[int, Prediction]) -> Table:
    """Return predictions as a table: time, speed-up over the least number of nodes, idle share, what limits."""
    first = next(iter(found.values()))
    rows = [
        (str(count), clock(one.seconds), f"{first.seconds / one.seconds:.1f}", f"{one.idle:.1%}", one.limit)
        for count, one in found.items()
    ]
    return Table((title, "predicted time", "times as fast", "nodes idle", "most time for"), rows)


def clock(seconds: float) -> str:
    """Return a time as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def main() -> None:
    """Print predictions for what the command line says of a cluster."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, metavar="RESULTS", help="results.json of `python -m benchmarks cluster`")
    parser.add_argument("--bandwidth", type=float, default=2.5, help="GB/s that a node reads and writes")
    parser.add_argument("--processor", type=float, default=8.0, help="GB/s that a node's processor could write")
    parser.add_argument("--shared", type=float, default=40.0, help="GB/s that all nodes read and write together")
    parser.add_argument("--nodes", type=int, nargs="+", default=[2**n for n in range(9)], help="how many nodes")
    words = parser.parse_args()
    model = json.loads(words.results.read_text())["benchmarks"]["cluster"]["model"]
    processor, bandwidth, shared = (one * GB for one in (words.processor, words.bandwidth, words.shared))
    machines = Machines(0, processor, bandwidth, shared, model["start"], model["end"], model["per_part"])
    parts = [Load(*part) for part in model["parts"]]
    print(table("nodes", predictions(parts, machines, words.nodes)).markdown())


if __name__ == "__main__":
    main()
