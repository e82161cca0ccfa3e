"""Workers are stopped in good order, whenever the signal comes."""

from __future__ import annotations

from typing import Any

import pytest

from streamconv.cluster.crew import Crew
from streamconv.errors import InterruptedRunError
from support.clusters import FakeNodes


def test_a_signal_while_a_task_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = FakeNodes("a", "b")
    crew = Crew(nodes, 1)
    crew.admit()
    first = crew.members[0]

    def interrupted(method: str, *arguments: Any) -> Any:
        raise InterruptedRunError("terminated", 15)

    with monkeypatch.context() as patch:
        patch.setattr(first.remote, "call", interrupted)
        with pytest.raises(InterruptedRunError):
            crew.give(first, 0, {})
    crew.stop()
    crew.end()
    assert not crew.members
    assert all(remote.is_dead for remote in nodes.remotes)
