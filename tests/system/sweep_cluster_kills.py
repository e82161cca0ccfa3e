"""kill -9 of workers, of nodes and of drivers at random moments of a conversion on a cluster of real raylets.

    python tests/system/sweep_cluster_kills.py [--kills N] [--seed S]

A Mixtral whose experts are stacked and transposed is converted on three nodes of one machine. A run whose workers and
nodes are killed has to end well by itself; one whose driver is killed is resumed: by the same command, on fewer nodes,
or by one host. Every result is compared with that of one host, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # of a script, its own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from streamconv import testing as samples
from streamconv.families import find
from support import running
from support.clusters import Raylets

CONFIG = {**running.MIXTRAL, "num_hidden_layers": 2, "vocab_size": 8000}
WORDS = ("--dtype", "fp32", "-o", "use_gmm=true", "--max-shard-size", "12MB", "--max-mem", "512M", "--quiet")
NODES = 3
#: A node's workers are started again three times, and a part may fail twice: many more would end a run rightly.
WORKERS_PER_RUN, NODES_PER_RUN = 4, 2
KINDS = ("worker", "node", "driver")
#: Of each kind, at least.
LEAST = 3
_SECONDS = 120.0


class Arena:
    """A source, the result of one host, and three nodes."""

    def __init__(self, root: Path, luck: random.Random) -> None:
        self.root, self.luck, self.kills = root, luck, Counter[str]()
        self.source, self.one, self.dest = root / "hf", root / "one", root / "many" / "ms"
        samples.write_hf(self.source, CONFIG, samples.hf_specs(find("mixtral"), CONFIG), 100_000_000)
        said = running.run("convert", self.source, self.one, *WORDS)
        assert said.code == 0, said
        self.expected = running.tree(self.one)
        self.dest.parent.mkdir()
        self.raylets = Raylets(NODES)
        self.seconds = 2.0

    def start(self, *words: object) -> subprocess.Popen[bytes]:
        every = ("convert", self.source, self.dest, *WORDS, *words)
        return running.start(*every, faults=(), env=self.raylets.environment)

    def run_and_kill(self, kill: Callable[[subprocess.Popen[bytes]], bool], count: int, *words: object) -> int:
        """Begin a run, kill at random moments of its work, and return its exit code."""
        process = self.start("--on", "ray", *words)
        running.wait_until(lambda: self.is_at_work or self.dest.exists(), process, _SECONDS)
        began = time.monotonic()
        for _ in range(count):
            time.sleep(self.luck.uniform(0, 0.4 * self.seconds / count))
            if process.poll() is not None or not kill(process):
                break
        try:
            _, said = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        self.seconds = 0.5 * self.seconds + 0.5 * min(5.0, time.monotonic() - began)
        assert process.returncode in (0, -9), said.decode()
        return process.returncode

    @property
    def is_at_work(self) -> bool:
        return any(self.dest.with_name("ms.partial.parts").glob("*/*"))

    def kill_worker(self, process: subprocess.Popen[bytes]) -> bool:
        found = self.raylets.workers()
        if not found or self.dest.exists():
            return False
        try:
            self.luck.choice(found).kill()
        except psutil.Error:
            return False
        self.kills["worker"] += 1
        return True

    def kill_node(self, process: subprocess.Popen[bytes]) -> bool:
        if self.dest.exists():
            return False
        self.raylets.lose()
        self.kills["node"] += 1
        return True

    def kill_driver(self, process: subprocess.Popen[bytes]) -> bool:
        if self.dest.exists():
            return False
        process.kill()
        self.kills["driver"] += 1
        return False

    def check(self, what: str) -> None:
        """Compare what there is with the result of one host, and remove it."""
        assert running.tree(self.dest) == self.expected, what
        assert [path.name for path in self.dest.parent.iterdir()] == ["ms"], what
        subprocess.run(["rm", "-rf", self.dest], check=True)
        for _ in range(NODES - len(self.raylets.nodes)):
            self.raylets.add()

    def workers_die(self) -> None:
        assert self.run_and_kill(self.kill_worker, WORKERS_PER_RUN) == 0
        self.check("workers")

    def nodes_die(self) -> None:
        assert self.run_and_kill(self.kill_node, NODES_PER_RUN) == 0
        self.check("nodes")

    def driver_dies(self) -> None:
        for _ in range(3):
            if self.run_and_kill(self.kill_driver, 1) == 0:
                break
            if self.luck.random() < 0.3:
                self.raylets.lose() if len(self.raylets.nodes) > 1 else self.raylets.add()
        if not self.dest.exists():
            words = ("--on", "ray", "--verify") if self.luck.random() < 0.5 else ()
            self._resume(*words)
        self.check("driver")

    def _resume(self, *words: object) -> None:
        """The workers of a dead driver end by themselves, a moment later; nobody waits for them."""
        process = self.start(*words)
        _, said = process.communicate(timeout=_SECONDS)
        assert process.returncode == 0, said.decode()

    def close(self) -> None:
        self.raylets.close()


def sweep(root: Path, kills: int, luck: random.Random) -> Counter[str]:
    """Kill so often, of each kind in turn; return how often each was."""
    arena = Arena(root, luck)
    ways = [arena.driver_dies, arena.workers_die, arena.nodes_die, arena.driver_dies, arena.workers_die]
    try:
        number = 0
        while arena.kills.total() < kills or min(map(arena.kills.__getitem__, KINDS)) < LEAST:
            ways[number % len(ways)]()
            number += 1
    finally:
        arena.close()
    return arena.kills


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as folder:
        kills = sweep(Path(folder), arguments.kills, random.Random(arguments.seed))
    said = ", ".join(f"{count} of {what}s" for what, count in kills.items())
    print(f"{kills.total()} kills: {said}; all results the same; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
