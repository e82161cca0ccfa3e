"""The arithmetic of budgets."""

from __future__ import annotations

import mmap
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.engine import budget as budgets
from streamconv.engine.budget import MAX_REGION, MIB, MIN_REGION, WORKER_OVERHEAD, Budget, default_limit, divide
from streamconv.errors import BudgetError
from streamconv.storage.memory import resident_bytes
from streamconv.units import parse_size


def peak(budget: Budget) -> int:
    """The most that will be resident: windows, boxes and overhead of all workers at once."""
    return budget.base + budget.workers * (2 * budget.region_bytes + WORKER_OVERHEAD)


@settings(deadline=None)
@given(
    st.integers(1, 64 << 30), st.integers(0, 4 << 30), st.one_of(st.none(), st.integers(1, 256)), st.integers(1, 10**6)
)
def test_a_budget_is_kept_or_refused_with_the_number_that_does(limit, resident, workers, tensors) -> None:
    try:
        budget = divide(limit, workers, tensors, resident=resident)
    except BudgetError as error:
        named = re.search(r'hint: give max_mem="(\d+M)" or more', str(error))
        assert named
        budget = divide(parse_size(named[1]), workers, tensors, resident=resident)
        with pytest.raises(BudgetError):
            divide(parse_size(named[1]) - 6 * MIB, workers, tensors, resident=resident)
    assert budget.base > resident
    assert peak(budget) <= budget.memory_limit
    assert workers in (None, budget.workers)
    assert MIN_REGION <= budget.region_bytes <= MAX_REGION
    assert budget.region_bytes % mmap.PAGESIZE == 0


@settings(deadline=None)
@given(st.integers(100 * MIB, 8 << 30))
def test_no_memory_lies_idle_below_the_largest_region(limit) -> None:
    budget = divide(limit, 3, 100, resident=20 * MIB)
    idle = budget.memory_limit - peak(budget)
    assert budget.region_bytes == MAX_REGION or idle < budget.workers * 2 * (mmap.PAGESIZE + 1)


def test_workers_that_are_not_asked_for_are_as_many_as_fit() -> None:
    one = budgets.least_limit(divide(8 << 30, 1, 100, resident=20 * MIB).base)
    assert divide(one, None, 100, resident=20 * MIB).workers == 1
    assert 1 <= divide(8 << 30, None, 100, resident=20 * MIB).workers <= 4


def test_small_regions_are_for_limits_that_leave_no_more() -> None:
    small = budgets.SMALL_REGION
    base = divide(8 << 30, 1, 100, resident=20 * MIB).base
    least = budgets.least_limit(base, region=small)
    assert least == budgets.least_limit(base) - 2 * (MIN_REGION - small)
    with pytest.raises(BudgetError):
        divide(least, None, 100, resident=20 * MIB)
    budget = divide(least, None, 100, resident=20 * MIB, least_region=small)
    assert budget.workers == 1
    assert small <= budget.region_bytes < MIN_REGION
    assert peak(budget) <= least
    # Two workers with small ones are not preferred to one.
    wide = base + WORKER_OVERHEAD + 2 * MIN_REGION
    assert divide(wide, None, 100, resident=20 * MIB, least_region=small).workers == 1


def test_many_tensors_need_more() -> None:
    few, many = (divide(8 << 30, 1, count, count, resident=20 * MIB).base for count in (1, 50_000))
    assert many - few >= 49_999 * 500


def test_more_tensors_than_can_be_planned_are_refused_with_the_number_that_would_do() -> None:
    budgets.check_planning(resident_bytes() + 20 * MIB, 1000)
    with pytest.raises(
        BudgetError, match=r'(?s)planning 500000 tensors alone needs .*hint: give max_mem="\d+M" or more'
    ) as caught:
        budgets.check_planning(resident_bytes() + 100 * MIB, 500_000)
    named = re.search(r'max_mem="(\d+M)"', str(caught.value))
    assert named
    budgets.check_planning(parse_size(named[1]), 500_000)


def test_the_error_says_how_many_workers_it_is_for() -> None:
    with pytest.raises(BudgetError, match="with 64 workers"):
        divide(200 * MIB, 64, 1, resident=20 * MIB)
    with pytest.raises(BudgetError, match="a memory limit of 1 KiB is too low"):
        divide(1024, None, 1, resident=20 * MIB)


def test_what_is_resident_now_is_measured() -> None:
    assert divide(64 << 30, 1, 1).base > resident_bytes() // 2


def test_the_default_is_a_quarter_of_what_is_there(monkeypatch) -> None:
    for available, limit in ((1 << 30, 1 << 28), (7 << 30, 7 << 28), (1 << 40, 2 << 30)):
        monkeypatch.setattr(budgets, "available_bytes", lambda a=available: a)
        assert default_limit() == limit


def test_headers_may_grow_with_the_budget() -> None:
    assert budgets.header_room(1).nbytes == MIB
    assert MIB <= budgets.header_room(96 * MIB).nbytes < budgets.header_room(16 << 30).nbytes <= 1 << 30


def test_what_is_resident_already_leaves_less_room_for_headers() -> None:
    limit = resident_bytes() + 100 * MIB
    before = budgets.header_room(limit).nbytes
    with mmap.mmap(-1, 40 * MIB) as ballast:  # memory of its own: an allocator may have some that is resident already
        ballast.write(b"x" * (40 * MIB))
        assert budgets.header_room(limit).nbytes < before - MIB


@pytest.mark.parametrize(("left", "raised"), [(None, False), (1 << 40, False), (8 << 20, True)])
def test_a_limit_of_the_system_is_named_where_it_has_to_be_raised(left, raised, monkeypatch) -> None:
    """Where `ulimit -v` leaves less than is needed, no `max_mem` helps."""
    monkeypatch.setattr(budgets, "address_space_left", lambda: left)
    with pytest.raises(BudgetError) as caught:
        divide(1 << 20, None, 10)
    raising = "raise the limit on the process's memory (ulimit -v or -d), and give max_mem="
    assert caught.value.hint.startswith(raising if raised else "give max_mem=")
