"""Results come in the order of the items, whichever thread is ready first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from streamconv.storage.in_order import in_order

THREADS = 3


def slower_at_first(item: int) -> int:
    time.sleep(0.02 / (item + 1))
    return item * item


@pytest.mark.parametrize("count", [0, 1, 2, 50])
@pytest.mark.parametrize("threads", [1, THREADS])
def test_every_result_in_order(count: int, threads: int) -> None:
    assert list(in_order(range(count), [slower_at_first] * threads)) == [n * n for n in range(count)]


def test_the_first_error_is_raised_after_the_results_before_it() -> None:
    """Of two items that fail the later one fails first."""
    later_failed = threading.Event()

    def work(item: int) -> int:
        if item == 5:
            later_failed.set()
            raise ValueError("later")
        if item == 4:
            assert later_failed.wait(60)
            raise ValueError("first")
        return item

    taken = []
    with pytest.raises(ValueError, match="first"):
        for found in in_order(range(100), [work] * THREADS):
            taken.append(found)
    assert taken == [0, 1, 2, 3]


def test_items_that_fail_are_an_error_in_their_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no third")

    taken = []
    with pytest.raises(ValueError, match="no third"):
        for found in in_order(items(), [lambda item: item] * THREADS):
            taken.append(found)
    assert taken == [1, 2]


def test_each_worker_has_a_thread_and_one_item_at_a_time() -> None:
    busy = [threading.Lock() for _ in range(THREADS)]
    together = threading.Barrier(THREADS)

    def worker(number: int, item: int) -> int:
        with busy[number]:
            assert not busy[number].acquire(blocking=False)
            if item < THREADS:
                together.wait(60)
            return threading.get_ident()

    workers = [lambda item, n=n: worker(n, item) for n in range(THREADS)]
    assert len(set(in_order(range(40), workers))) == THREADS


def test_threads_stay_near_who_takes_the_results_and_end_with_it() -> None:
    begun = []
    before = threading.active_count()
    with closing(in_order(iter(range(10_000)), [begun.append] * THREADS)) as found:
        next(found)
        time.sleep(0.05)
        assert len(begun) < 50
    assert threading.active_count() == before


@pytest.mark.parametrize("allowed", range(THREADS))
def test_where_the_system_refuses_threads_fewer_do_it(allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left, start = [allowed], threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    idents = []

    def work(item: int) -> int:
        idents.append(threading.get_ident())
        return item

    assert list(in_order(range(20), [work] * THREADS)) == list(range(20))
    assert len(set(idents)) <= max(1, allowed)
    assert (threading.get_ident() in idents) == (not allowed)
