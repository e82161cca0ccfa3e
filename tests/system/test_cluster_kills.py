"""kill -9 of workers, nodes and drivers at random moments, in short."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("ray")


@pytest.mark.xdist_group("ray")
def test_whoever_dies_the_result_is_the_same(tmp_path: Path) -> None:
    from system import sweep_cluster_kills

    kills = sweep_cluster_kills.sweep(tmp_path, 15, random.Random(1))
    print(dict(kills))
    assert kills.total() >= 15 and set(kills) == {"worker", "node", "driver"}
