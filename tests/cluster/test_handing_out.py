"""Every task is handed out just once, and again if it was lost, whoever comes and goes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from streamconv.cluster.handing_out import HandingOut

NAMES = ("a", "b", "c", "d")


@given(
    sizes=st.lists(st.integers(0, 100), max_size=30),
    workers=st.lists(st.sampled_from(NAMES), unique=True),
    moves=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(("take", "fail", "leave", "done"))), max_size=200),
)
def test_every_task_once_and_lost_ones_again(sizes: list[int], workers: list[str], moves: list) -> None:
    handing = HandingOut(dict(enumerate(sizes)), workers)
    present, has, done = set(workers), dict[str, int](), Counter[int]()
    for worker, move in [*moves, *((name, "take") for name in present)]:
        handing.keep(present)
        if move == "take" and worker not in has:
            present.add(worker)
            handing.keep(present)
            number = handing.take(worker)
            if number is not None:
                assert number not in has.values()
                assert not done[number]
                has[worker] = number
        elif move == "done" and worker in has:
            done[has.pop(worker)] += 1
        elif move in ("fail", "leave"):
            if worker in has:
                handing.give_back(has.pop(worker), worker)
            if move == "leave":
                present.discard(worker)
    for worker, number in has.items():
        done[number] += 1
        assert worker
    handing.keep({"e"})
    while (number := handing.take("e")) is not None:
        done[number] += 1
    assert done == Counter(range(len(sizes)))


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=40), count=st.integers(1, 5))
def test_each_begins_with_a_stretch_of_neighbours(sizes: list[int], count: int) -> None:
    workers = [str(number) for number in range(count)]
    handing = HandingOut(dict(enumerate(sizes)), workers)
    begun = [stretch._numbers for stretch in handing._stretches.values()]  # type: ignore[attr-defined]
    assert [number for stretch in begun for number in stretch] == list(range(len(sizes)))
    for stretch in begun:
        assert abs(sum(sizes[number] for number in stretch) - sum(sizes) / count) <= max(sizes)


def test_who_has_none_left_takes_from_the_end_of_the_longest() -> None:
    handing = HandingOut(dict.fromkeys(range(9), 1), ["a", "b", "c"])
    assert [handing.take("a") for _ in range(3)] == [0, 1, 2]
    assert handing.take("b") == 3
    assert [handing.take("a") for _ in range(3)] == [8, 5, 7]
    assert handing.take("late") == 4
    assert [handing.take("c"), handing.take("c")] == [6, None]


def test_a_lost_task_goes_to_another_worker_first() -> None:
    handing = HandingOut({0: 1, 1: 1}, ["a", "b"])
    assert (handing.take("a"), handing.take("b")) == (0, 1)
    handing.give_back(0, "a")
    assert handing.take("a") is None
    assert handing.take("b") == 0
    handing.give_back(0, "b")
    assert handing.take("a") == 0


def test_with_nobody_else_the_same_worker_tries_again() -> None:
    handing = HandingOut({0: 1}, ["a", "b"])
    assert handing.take("a") == 0
    handing.give_back(0, "a")
    handing.keep(["a"])
    assert handing.take("a") == 0
