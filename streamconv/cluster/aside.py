"""Calls made in a thread of their own, so that a signal interrupts whoever waits for one.

A library in C may swallow the exception that a signal's handler raises while the library waits; Python's own locks do
not. The thread stays until the process ends: what it starts may be tied to its life.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Aside:
    """A thread that makes calls, one after the other."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        threading.Thread(target=self._run, name="streamconv-cluster", daemon=True).start()

    def __call__(self, function: Callable[[], T]) -> T:
        """Call a function in the thread; return its value, or raise its exception."""
        return self._begun(function).result()

    def within(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function in the thread, and wait so long at most; what it raises is of no interest."""
        with suppress(Exception):
            self._begun(function).result(seconds)

    def _begun(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put((future, function))
        return future

    def _run(self) -> None:
        while True:
            future, function = self._calls.get()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del future, function
