"""The memory limit on a cluster is each node's, seen from outside of its processes: I1."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from support import found_in_the_tree, running
from support.clusters import Raylets
from support.watching import descendants, number

with found_in_the_tree():
    from benchmarks.checkpoints import mixtral

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

MIB = 1 << 20
#: Stacks of experts of 224 MiB, random and dense, transposed.
WORDS = ("-o", "use_gmm=true", "--dtype", "fp16", "--on", "ray", "--quiet", "--json")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "hf"
    return mixtral(folder, num_hidden_layers=1, num_local_experts=8, vocab_size=2000)


def peaks(process: subprocess.Popen[bytes], workers: Any) -> tuple[int, dict[int, int]]:
    """The most that was resident of a driver, and of each worker, until the driver ends."""
    driver, found = 0, dict[int, int]()
    while process.poll() is None:
        driver = max(driver, number(f"/proc/{process.pid}/status", "VmHWM:") * 1024)
        for pid in workers():
            found[pid] = max(found.get(pid, 0), number(f"/proc/{pid}/status", "VmHWM:") * 1024)
        time.sleep(0.02)
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()
    return driver, found


def of_ray(pid: int) -> list[int]:
    """The workers among the descendants of a process that started a cluster."""
    found = []
    for one in descendants(pid):
        try:
            found += [one] if "ray::Worker" in " ".join(psutil.Process(one).cmdline()) else []
        except psutil.Error:
            continue
    return found


def test_workers_of_nodes(raylets: Raylets, source: Path, tmp_path: Path) -> None:
    words = ("convert", source, tmp_path / "ms", *WORDS, "--max-mem", "208M")
    process = running.start(*words, faults=(), env=raylets.environment)
    driver, workers = peaks(process, lambda: [worker.pid for worker in raylets.workers()])
    assert driver <= 208 * MIB
    assert len(workers) == 2 and max(workers.values()) <= 208 * MIB


def test_the_driver_and_the_workers_of_its_node_together(source: Path, tmp_path: Path) -> None:
    words = ("convert", source, tmp_path / "ms", *WORDS, "--max-mem", "512M", "--workers-per-node", "2")
    process = running.start(*words, faults=(), env={"RAY_ADDRESS": "local"})
    driver, workers = peaks(process, lambda: of_ray(process.pid))
    assert len(workers) == 2 and driver + sum(workers.values()) <= 512 * MIB, (driver, workers)
