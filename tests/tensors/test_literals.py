"""Literals of a file: where they are, cut where blocks begin, without the places of checksums."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamconv.tensors.literals import Literals
from streamconv.tensors.refs import ChecksumSlot, OutputFile

SIZE = 120


@given(
    places=st.sets(st.integers(0, SIZE), max_size=20),
    at=st.integers(0, SIZE - 4) | st.none(),
    block=st.integers(1, 50),
    begin=st.integers(0, SIZE),
    end=st.integers(0, SIZE),
)
def test_every_byte_of_them_and_no_other(places: set[int], at: int | None, block: int, begin: int, end: int) -> None:
    content = bytes(number + 1 for number in range(SIZE))
    slot = {*range(at, at + 4)} if at is not None else set()
    edges = sorted(places)
    held = {place for low, high in zip(edges[::2], edges[1::2], strict=False) for place in range(low, high)} | slot
    ends = sorted(place for place in range(SIZE + 1) if (place in held) != (place - 1 in held))
    texts = tuple((low, content[low:high]) for low, high in zip(ends[::2], ends[1::2], strict=True))
    slots = (ChecksumSlot(0, at, (at,), 4, "big"),) if at is not None else ()
    literals = Literals(OutputFile("file", SIZE, texts, {}, slots), block)
    made = {}
    for number in range(len(literals)):
        offset, data = literals[number]
        assert offset // block == (offset + len(data) - 1) // block
        made.update({offset + i: value for i, value in enumerate(data)})
    assert made == {place: content[place] for place in held - slot}
    begin, end = sorted((begin, end))
    assert literals.bytes_in(begin, end) == len((held - slot) & {*range(begin, end)})
    before = literals.bytes_before(np.arange(SIZE + 1)).tolist()
    assert before == [literals.bytes_in(0, place) for place in range(SIZE + 1)]
    assert [literals[number][0] for number in literals.numbers(begin, end)] == [
        offset for offset, _ in map(literals.__getitem__, range(len(literals))) if begin <= offset < end
    ]
    head = [literals[number] for number in literals.head()]
    assert b"".join(map(bytes, (data for _, data in head))) == content[: sum(len(data) for _, data in head)]
