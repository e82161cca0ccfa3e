"""Several threads that each work on another item, and their results in the order of the items.

While one thread looks at what it read, others wait for their reads: the device has several requests at all times.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Items that are worked on, or whose results wait for an earlier one, for each thread: enough for different sizes.
AHEAD = 4


def in_order(items: Iterable[Item], workers: Sequence[Callable[[Item], Result]]) -> Generator[Result, None, None]:
    """Yield what is made of items, in their order, whichever is ready first.

    Close it (`contextlib.closing`) where not all results are taken: the threads end with it.

    Args:
        items: what is worked on; taken by several threads, one at a time.
        workers: what makes a result of an item. Each is called in a thread of its own, with one item at a time; where
            the system refuses threads, fewer are, or in the end the first of them in this one.

    Raises:
        BaseException: whatever the first item that fails met, after the results of all before it.
    """
    shared: _Shared[Item, Result] = _Shared(items, AHEAD * len(workers))
    threads: list[threading.Thread] = []
    try:
        for worker in workers if len(workers) > 1 else ():
            thread = threading.Thread(target=shared.work, args=(worker,), name="streamconv", daemon=True)
            if not _has_started(thread):
                break
            threads.append(thread)
        if not threads:
            yield from map(workers[0], items)
            return
        for number in count():
            found = shared.result(number)
            if found is None:
                return
            yield found()
    finally:
        shared.stop()
        for thread in threads:
            thread.join()


def _has_started(thread: threading.Thread) -> bool:
    """Start a thread; return whether the system allowed it."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


class _Shared(Generic[Item, Result]):
    """Items that are handed out to threads, and the results that nobody took yet."""

    def __init__(self, items: Iterable[Item], most: int) -> None:
        self._items, self._most = iter(items), most
        self._changed = threading.Condition()
        # A result is a function, which returns it or raises the error that there was instead.
        self._results: dict[int, Callable[[], Result]] = {}
        self._begun = self._taken = 0
        self._ended = False

    def work(self, worker: Callable[[Item], Result]) -> None:
        """Work on items until there are no more, or one failed."""
        for number, item in self:
            try:
                found = _returning(worker(item))
            except BaseException as error:  # handed to whoever takes the results
                self._fail(number, error)
                return
            with self._changed:
                self._results[number] = found
                self._changed.notify_all()

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._begun - self._taken < self._most)
                if self._ended:
                    return
                number = self._begun
                try:
                    item = next(self._items)
                except StopIteration:
                    self._end()
                    return
                except BaseException as error:  # handed to whoever takes the results
                    self._fail(number, error)
                    return
                self._begun += 1
            yield number, item

    def result(self, number: int) -> Callable[[], Result] | None:
        """Wait for the result of an item, the next one; return `None` where there are no more items."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._results or (self._ended and number >= self._begun))
            if number not in self._results:
                return None
            self._taken = number + 1
            self._changed.notify_all()
            return self._results.pop(number)

    def stop(self) -> None:
        """Hand out no more items."""
        with self._changed:
            self._end()

    def _fail(self, number: int, error: BaseException) -> None:
        """Note an error: items after it need not be worked on."""

        def failed() -> Result:
            raise error

        with self._changed:
            self._begun = max(self._begun, number + 1)
            self._results[number] = failed
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._changed.notify_all()


def _returning(made: Result) -> Callable[[], Result]:
    return lambda: made
