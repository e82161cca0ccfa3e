"""SIGINT and SIGTERM: stop cleanly if there is time, and at once if not. A conversion can be resumed either way."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType

from ..errors import InterruptedRunError

#: Seconds in which a run may stop cleanly after a signal.
_PATIENCE = 1.5

#: What a run says that a signal stopped.
STOPPED: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def install() -> None:
    """Handle SIGINT and SIGTERM, except where the parent ignores them: under nohup, in background jobs."""
    stop = Stop()
    for number in STOPPED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


class Stop:
    """The handler: the first signal stops the run cleanly, or forcibly after 1.5 s; a second stops it at once."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self._asked:
            self._end(number, "stopped at once")
        self._asked = True
        last = threading.Timer(_PATIENCE, self._end, (number, f"{STOPPED[number]} during a slow operation"))
        last.daemon = True
        last.start()
        raise InterruptedRunError(STOPPED[number], number)

    @staticmethod
    def _end(number: int, what: str) -> None:
        with contextlib.suppress(OSError):
            text = f"error: {what}\nhint: completed work is saved; run the same command to resume\n"
            os.write(sys.stderr.fileno(), text.encode())
        os._exit(128 + number)
