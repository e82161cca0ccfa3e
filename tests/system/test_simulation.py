"""The model of a conversion on a cluster: cases whose answer is known, and bounds that none may beat."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support import ROOT, found_in_the_tree
from support.running import environment

with found_in_the_tree():
    from benchmarks.simulation import (
        BANDWIDTH,
        IDLE,
        PARTS,
        PROCESSOR,
        SHARED,
        Load,
        Machines,
        clock,
        fair,
        predict,
    )

FAST = float("inf")
#: A node reads and writes 300 bytes a second; its processor, which alone would write 400, does not limit it.
ONE = Machines(nodes=1, processor=400, bandwidth=300, shared=FAST)
EQUAL = [Load(600, 300)] * 24


def uneven(count: int, seed: int) -> list[Load]:
    chosen = random.Random(seed)
    return [Load(cost, cost * chosen.uniform(0.3, 0.8)) for cost in (chosen.randint(1, 1000) for _ in range(count))]


def test_one_node_takes_as_long_as_all_parts() -> None:
    assert predict(EQUAL, ONE).seconds == pytest.approx(24 * 600 / 300)
    by_parts = predict(EQUAL, replace(ONE, per_part=0.5, start=3, end=4))
    assert by_parts.seconds == pytest.approx(24 * (600 / 300 + 0.5) + 3 + 4)
    assert by_parts.spent[PARTS] == pytest.approx(12)


def test_equal_parts_on_equal_nodes_leave_nobody_idle() -> None:
    for nodes in (1, 2, 3, 4, 6, 8, 12, 24):
        found = predict(EQUAL, replace(ONE, nodes=nodes))
        assert found.seconds == pytest.approx(48 / nodes)
        assert found.idle == pytest.approx(0)


def test_more_nodes_than_parts_are_idle() -> None:
    found = predict(EQUAL, replace(ONE, nodes=48))
    assert found.seconds == pytest.approx(2)
    assert found.idle == pytest.approx(0.5)
    assert replace(found, spent={**found.spent, IDLE: 5.0}).limit == IDLE


def test_what_limits_is_named() -> None:
    assert predict(EQUAL, ONE).limit == BANDWIDTH
    assert predict(EQUAL, replace(ONE, processor=100)).limit == PROCESSOR
    assert predict(EQUAL, replace(ONE, processor=100)).seconds == pytest.approx(24 * 300 / 100)
    assert predict(EQUAL, replace(ONE, nodes=2, shared=100)).limit == SHARED
    assert predict(EQUAL, replace(ONE, start=40, end=40)).limit == "start and end"


def test_a_shared_bandwidth_is_divided() -> None:
    assert predict(EQUAL, replace(ONE, nodes=2, shared=600)).seconds == pytest.approx(24)
    for nodes in (2, 4, 8):
        assert predict(EQUAL, replace(ONE, nodes=nodes, shared=300)).seconds == pytest.approx(48)
        assert predict(EQUAL, replace(ONE, nodes=nodes, shared=150)).seconds == pytest.approx(96)


def test_nobody_gets_more_than_wanted() -> None:
    assert fair(np.array([1.0, 2.0, 9.0]), 20).tolist() == [1, 2, 9]
    assert fair(np.array([9.0, 1.0, 2.0]), 6).tolist() == [3, 1, 2]
    assert fair(np.array([9.0, 1.0, 8.0]), 9).tolist() == [4, 1, 4]
    assert fair(np.array([5.0, 5.0]), 4).tolist() == [2, 2]


@pytest.mark.parametrize("seed", range(6))
def test_no_prediction_is_faster_than_its_bounds(seed: int) -> None:
    parts = uneven(count=70, seed=seed)
    alone = [max(part.cost / 300, part.written / 90) for part in parts]
    before = FAST
    for nodes in (1, 2, 5, 16, 100):
        found = predict(parts, Machines(nodes, processor=90, bandwidth=300, shared=900))
        least = max(sum(alone) / nodes, sum(part.cost for part in parts) / 900, *alone)
        assert least <= found.seconds * (1 + 1e-9)
        # Whoever is free takes a part: no more than one part is late.
        assert found.seconds <= sum(alone) / nodes + sum(part.cost for part in parts) / 900 + max(alone)
        assert sum(found.spent.values()) == pytest.approx(found.seconds)
        assert found.seconds <= before
        before = found.seconds


def test_nothing_takes_no_time() -> None:
    assert predict([], replace(ONE, start=1, end=2)).seconds == 3
    assert predict([], ONE).idle == 0


def test_a_time_is_readable() -> None:
    assert [clock(seconds) for seconds in (4, 59.6, 61, 3600, 7325)] == ["0:04", "1:00", "1:01", "1:00:00", "2:02:05"]


def test_predictions_for_a_cluster_of_ones_own(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    model = {"parts": [[6e9, 3e9]] * 24, "start": 5, "end": 5, "per_part": 0}
    results.write_text(json.dumps({"benchmarks": {"cluster": {"model": model}}}))
    words = [results, "--processor", "9", "--bandwidth", "3", "--shared", "6", "--nodes", "1", "2", "4"]
    command = [sys.executable, "-m", "benchmarks.simulation", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["1", "0:58"], ["2", "0:34"], ["4", "0:34"]]
    assert [row[-1] for row in rows] == [BANDWIDTH, BANDWIDTH, SHARED]
