"""Tasks are large enough to be worth their call, and several for each worker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamconv.cluster.portions import gathered, portion_bytes

MIB, GIB = 1 << 20, 1 << 30


def test_a_64th_within_limits() -> None:
    assert [portion_bytes(size) for size in (0, GIB, 6 * GIB, 64 * GIB, 689 * GIB)] == [
        16 * MIB,
        16 * MIB,
        96 * MIB,
        GIB,
        GIB,
    ]


@given(sizes=st.lists(st.integers(0, 30)), most=st.integers(1, 20))
def test_neighbours_stay_together(sizes: list[int], most: int) -> None:
    groups = list(gathered(enumerate(sizes), most))
    assert [number for group, _ in groups for number in group] == list(range(len(sizes)))
    for group, total in groups:
        assert total == sum(sizes[number] for number in group)
        assert total <= most or len(group) == 1
