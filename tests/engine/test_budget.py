"""The arithmetic of budgets, and control groups as fake folders show them."""

from __future__ import annotations

import mmap
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.engine import budget as memory
from streamconv.engine.budget import MAX_REGION, MIB, MIN_REGION, WORKER_OVERHEAD, Budget, divide
from streamconv.errors import BudgetError
from streamconv.units import parse_size


def peak(budget: Budget) -> int:
    """The most that will be resident: windows, boxes and overhead of all workers at once."""
    return budget.base + budget.workers * (2 * budget.region_bytes + WORKER_OVERHEAD)


NO_LIMIT_V1 = 9223372036854771712


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
    one = memory.least_limit(divide(8 << 30, 1, 100, resident=20 * MIB).base)
    assert divide(one, None, 100, resident=20 * MIB).workers == 1
    assert 1 <= divide(8 << 30, None, 100, resident=20 * MIB).workers <= 4


def test_many_tensors_need_more() -> None:
    few, many = (divide(8 << 30, 1, count, count, resident=20 * MIB).base for count in (1, 50_000))
    assert many - few >= 49_999 * 500


def test_more_tensors_than_can_be_planned_are_refused_with_the_number_that_would_do() -> None:
    memory.check_planning(memory.resident_bytes() + 20 * MIB, 1000)
    with pytest.raises(
        BudgetError, match=r'(?s)planning 500000 tensors alone needs .*hint: give max_mem="\d+M" or more'
    ) as caught:
        memory.check_planning(memory.resident_bytes() + 100 * MIB, 500_000)
    named = re.search(r'max_mem="(\d+M)"', str(caught.value))
    assert named
    memory.check_planning(parse_size(named[1]), 500_000)


def test_the_error_says_how_many_workers_it_is_for() -> None:
    with pytest.raises(BudgetError, match="with 64 workers"):
        divide(200 * MIB, 64, 1, resident=20 * MIB)
    with pytest.raises(BudgetError, match="a memory limit of 1 KiB is too low"):
        divide(1024, None, 1, resident=20 * MIB)


def test_what_is_resident_now_is_measured() -> None:
    assert 0 < memory.resident_bytes() <= memory.peak_bytes() + 16 * MIB
    assert divide(64 << 30, 1, 1).base > memory.resident_bytes() // 2


def test_the_default_is_a_quarter_of_what_is_there(monkeypatch) -> None:
    for available, limit in ((1 << 30, 1 << 28), (7 << 30, 7 << 28), (1 << 40, 2 << 30)):
        monkeypatch.setattr(memory, "available_bytes", lambda a=available: a)
        assert memory.default_limit() == limit


def test_headers_may_grow_with_the_budget() -> None:
    assert memory.header_room(1).nbytes == MIB
    assert MIB <= memory.header_room(96 * MIB).nbytes < memory.header_room(16 << 30).nbytes <= 1 << 30


def test_what_is_resident_already_leaves_less_room_for_headers() -> None:
    limit = memory.resident_bytes() + 100 * MIB
    before = memory.header_room(limit).nbytes
    with mmap.mmap(-1, 40 * MIB) as ballast:  # memory of its own: an allocator may have some that is resident already
        ballast.write(b"x" * (40 * MIB))
        assert memory.header_room(limit).nbytes < before - MIB


# Control groups -------------------------------------------------------------------------------------------------------


def v2(folder, most: object, used: object, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file 7\n")


def v1(folder, most: int, used: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{most}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {inactive}\n")


def rooms(tmp_path, own: str) -> list[int]:
    (tmp_path / "own").write_text(own)
    return memory._cgroup_rooms(tmp_path / "fs", tmp_path / "own")


def test_v2_is_limit_less_use_but_for_the_page_cache(tmp_path) -> None:
    v2(tmp_path / "fs" / "a", 1000, 700, 200)
    assert rooms(tmp_path, "0::/a\n") == [500]


def test_v2_groups_around_count_too(tmp_path) -> None:
    v2(tmp_path / "fs" / "a" / "b" / "c", "max", 10)
    v2(tmp_path / "fs" / "a" / "b", 2000, 100)
    v2(tmp_path / "fs" / "a", 500, 100)
    assert rooms(tmp_path, "0::/a/b/c\n") == [1900, 400]


def test_in_a_container_the_own_group_is_the_root(tmp_path) -> None:
    v2(tmp_path / "fs", 1000, 400)
    assert rooms(tmp_path, "0::/docker/abc\n") == [600]
    assert rooms(tmp_path, "0::/\n") == [600]


def test_v2_without_a_limit_says_nothing(tmp_path) -> None:
    v2(tmp_path / "fs" / "a", "max", 10)
    assert rooms(tmp_path, "0::/a\n") == []


def test_a_group_above_its_limit_leaves_nothing(tmp_path) -> None:
    v2(tmp_path / "fs" / "a", 100, 400)
    assert rooms(tmp_path, "0::/a\n") == [0]


def test_v1_reads_the_memory_controller_alone(tmp_path) -> None:
    v1(tmp_path / "fs" / "memory" / "a" / "b", NO_LIMIT_V1, 300)
    v1(tmp_path / "fs" / "memory" / "a", 1000, 300, 50)
    v1(tmp_path / "fs" / "cpu" / "a", 1, 1)
    own = "12:cpu,cpuacct:/a\n7:hugetlb,memory:/a/b\n3:name=systemd:/a\n1:memoryless:/a\n"
    assert rooms(tmp_path, own) == [NO_LIMIT_V1 - 300, 750]


def test_both_at_once(tmp_path) -> None:
    v1(tmp_path / "fs" / "memory" / "a", 1000, 300)
    v2(tmp_path / "fs" / "b", 50, 20)
    assert rooms(tmp_path, "7:memory:/a\n0::/b\n") == [700, 30]


@pytest.mark.parametrize("name", ["memory.max", "memory.current"])
@pytest.mark.parametrize("broken", [None, "", "lots"])
def test_a_file_that_is_missing_or_odd_is_passed_over(tmp_path, name, broken) -> None:
    v2(tmp_path / "fs" / "a" / "b", 1000, 300)
    v2(tmp_path / "fs" / "a", 800, 300)
    file = tmp_path / "fs" / "a" / "b" / name
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    assert rooms(tmp_path, "0::/a/b\n") == [500]


def test_without_control_groups_there_is_nothing_to_say(tmp_path) -> None:
    assert memory._cgroup_rooms(tmp_path, tmp_path / "none") == []
    assert rooms(tmp_path, "") == []


def test_here_and_now_there_is_some_memory() -> None:
    assert memory.available_bytes() > 0
