"""Shared by tests of clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from streamconv.cluster import driver, worker
from support.clusters import FakeNodes, Raylets


@pytest.fixture
def on_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeNodes]:
    """Let `on="ray"` mean nodes of these names, which are threads."""

    def use(*names: str) -> FakeNodes:
        nodes = FakeNodes(*names)
        monkeypatch.setattr(driver, "RayCluster", lambda on, workers_per_node: nodes)
        monkeypatch.setattr(worker, "default_limit", lambda: 16 << 30)
        return nodes

    return use


@pytest.fixture(scope="session")
def raylets() -> Iterator[Raylets]:
    """A cluster of Ray with two nodes, and a head that does not work."""
    pytest.importorskip("ray")
    cluster = Raylets(2)
    yield cluster
    cluster.close()
