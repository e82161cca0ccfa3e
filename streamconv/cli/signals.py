"""SIGINT, SIGTERM, SIGHUP: stop cleanly if there is time, at once if not. A conversion can be resumed either way."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from ..errors import InterruptedRunError

#: Seconds in which a run may stop cleanly after a signal; one on a cluster has workers that stop, too.
_PATIENCE, _PATIENCE_WITH_A_CLUSTER = 1.5, 4.5

#: What a run says that a signal stopped.
STOPPED: dict[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "hung up",
}


def install() -> None:
    """Handle these signals, except where the parent ignores them: under nohup, in background jobs."""
    stop = Stop()
    for number in STOPPED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


@contextlib.contextmanager
def patience(cluster: str | None) -> Iterator[None]:
    """Give a run in the block more time to stop where it is on a cluster."""
    Stop.patience = _PATIENCE_WITH_A_CLUSTER if cluster else _PATIENCE
    try:
        yield
    finally:
        Stop.patience = _PATIENCE


def ignore() -> None:
    """Ignore the signals that are handled: all is done, and the exit code says what was."""
    for number in STOPPED:
        if isinstance(signal.getsignal(number), Stop):
            signal.signal(number, signal.SIG_IGN)


class Stop:
    """The handler: the first signal stops the run cleanly, or forcibly after 1.5 s; a second stops it at once.

    Attributes:
        patience: those seconds.
    """

    patience = _PATIENCE

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self._asked:
            self._end(number, "stopped at once")
        self._asked = True
        self._end_later(number)
        raise InterruptedRunError(STOPPED[number], number)

    def _end_later(self, number: int) -> None:
        last = threading.Timer(self.patience, self._end, (number, f"{STOPPED[number]} during a slow operation"))
        last.daemon = True
        # Where the system refuses threads, a second signal ends the run.
        with contextlib.suppress(RuntimeError):
            last.start()

    @staticmethod
    def _end(number: int, what: str) -> None:
        with contextlib.suppress(OSError):
            text = f"error: {what}\nhint: completed work is saved; run the same command to resume\n"
            os.write(sys.stderr.fileno(), text.encode())
        os._exit(128 + number)
