"""How long a run may take to stop after a signal."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from streamconv.cli import signals
from streamconv.errors import InterruptedRunError


@pytest.mark.parametrize(("cluster", "seconds"), [(None, 1.5), ("ray", 4.5)])
def test_a_run_on_a_cluster_has_more_time(cluster: str | None, seconds: float, monkeypatch: Any) -> None:
    timers: list[float] = []

    class Timer(threading.Timer):
        def start(self) -> None:
            timers.append(self.interval)

    monkeypatch.setattr(threading, "Timer", Timer)
    with pytest.raises(InterruptedRunError), signals.patience(cluster):
        signals.Stop()(signal.SIGTERM, None)
    assert timers == [seconds]
    assert signals.Stop.patience == 1.5
