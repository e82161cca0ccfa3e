"""The journal: lines that are as they were written, and what they say is durable."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.errors import StorageError
from streamconv.output import journal
from streamconv.output.journal import DoneBoxes, Journal, Owner, Sealed, heading
from streamconv.storage import disk
from streamconv.tensors.grids import Box
from support.small_outputs import FILES, OUTPUTS, SHAPES


@pytest.fixture
def open_journal(tmp_path: Path) -> Iterator[Journal]:
    path = tmp_path / "dest.partial.streamconv"
    descriptor = disk.open_file(path, os.O_RDWR | os.O_CREAT)
    yield Journal(path, descriptor)
    disk.close_quietly(descriptor)


def again(tmp_path: Path) -> Journal:
    """The same file, as the next run opens it."""
    path = tmp_path / "dest.partial.streamconv"
    return Journal(path, disk.open_file(path, os.O_RDWR))


def test_what_is_appended_is_read_in_order(open_journal: Journal, tmp_path: Path) -> None:
    records = [{"journal": 1}, ["held", 1, "größe\u2028", 0.5], ["box", 0, [[0, 3]], 0], ["box", 1, [], 2]]
    open_journal.append(records[:1])
    open_journal.append(records[1:])
    assert list(open_journal.records()) == list(again(tmp_path).records()) == records
    open_journal.clear()
    assert list(open_journal.records()) == []


@pytest.mark.parametrize("cut", range(1, 39))
def test_a_line_that_was_cut_off_takes_no_other_with_it(cut: int, open_journal: Journal, tmp_path: Path) -> None:
    open_journal.append([["first"], ["box", 7, [[0, 3]], 0]])
    path = tmp_path / "dest.partial.streamconv"
    os.truncate(path, path.stat().st_size - cut)
    later = again(tmp_path)
    later.append([["later"]])
    assert list(later.records()) in ([["first"], ["later"]], [["first"], ["box", 7, [[0, 3]], 0], ["later"]])


def test_an_append_that_fails_is_as_if_it_had_not_been(open_journal: Journal, tmp_path: Path, monkeypatch) -> None:
    open_journal.append([["first"]])
    write = disk.write

    def half(descriptor: int, data: memoryview, offset: int) -> int:
        write(descriptor, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", half)
        with pytest.raises(StorageError, match=r"cannot write .*dest\.partial\.streamconv: No space left"):
            open_journal.append([["lost", "x" * 200]])
    open_journal.append([["second"]])
    assert list(again(tmp_path).records()) == [["first"], ["second"]]


def test_the_heading() -> None:
    records: list[object] = [
        {"journal": 1, "plan": "a"},
        ["held", 1, "here", 5],
        {"journal": 1, "plan": "b"},
        ["held", 2, "there", 6.5],
        ["aside"],
        ["sealed", "digest", 3, 4],
    ]
    found = heading(records)
    assert found.conversion == records[0]
    assert found.owner == Owner(2, "there", 6.5)
    assert found.sealed == Sealed("digest", 3, 4)
    assert found.is_aside
    assert not found.has_records
    assert heading([*records, ["box", 0, [], 0]]).has_records
    assert heading([5, None, ["held"], "text"]) == journal.Heading()


def cut(shape: tuple[int, ...], chance: random.Random) -> list[Box]:
    """A tensor in boxes, cut a few times along some axis."""
    found: list[Box] = [tuple((0, size) for size in shape)]
    for _ in range(chance.randint(0, 5)):
        box = found.pop(chance.randrange(len(found)))
        axes = [axis for axis, (low, high) in enumerate(box) if high - low > 1]
        if not axes:
            found.append(box)
            continue
        axis = chance.choice(axes)
        at = chance.randint(box[axis][0] + 1, box[axis][1] - 1)
        found += [(*box[:axis], part, *box[axis + 1 :]) for part in ((box[axis][0], at), (at, box[axis][1]))]
    return found


def elements(box: Box, shape: tuple[int, ...]) -> set[int]:
    flat = [0]
    for (low, high), size in zip(box, shape, strict=True):
        flat = [one * size + i for one in flat for i in range(low, high)]
    return set(flat)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 32))
def test_what_is_left_and_what_is_held_are_all_there_is(seed: int) -> None:
    chance = random.Random(seed)
    boxes = [(number, box) for number, shape in enumerate(SHAPES) for box in cut(shape, chance)]
    chance.shuffle(boxes)
    on_record = boxes[: chance.randint(0, len(boxes))]
    done = DoneBoxes(OUTPUTS, FILES)
    done.load((["box", number, [list(pair) for pair in box], 0] for number, box in on_record), lambda file: True)
    for number, shape in enumerate(SHAPES):
        every: Box = tuple((0, size) for size in shape)
        held = set().union(*(elements(box, shape) for n, box in on_record if n == number))
        left = [elements(box, shape) for box in done.left(number, every)]
        assert sum(map(len, left)) == len(set().union(*left)) == len(elements(every, shape)) - len(held)
        assert all(held.isdisjoint(one) for one in left)
        bytes_held = {at for part in done.parts(f"t{number}") for offset, count in part.runs
                      for at in range(offset, offset + count)}  # fmt: skip
        assert bytes_held == {2 * one + half for one in held for half in (0, 1)}
    assert done.nbytes == 2 * sum(len(elements(box, SHAPES[number])) for number, box in on_record)


def test_a_part_says_where_it_begins_and_ends() -> None:
    done = DoneBoxes(OUTPUTS, FILES)
    done.load([["box", 0, [[1, 3], [2, 5]], 0]], lambda file: True)
    (part,) = done.parts("t0")
    assert (part.begin, part.end, list(part.runs)) == (20, 42, [(20, 6), (36, 6)])


def test_overflow_is_summed_and_files_that_are_gone_are_not_believed() -> None:
    records: list[object] = [["box", 1, [[0, 2]], 3], ["box", 1, [[2, 5]], 4], ["block", 0, 0, "00" * 16, 7]]
    there, gone = DoneBoxes(OUTPUTS, FILES), DoneBoxes(OUTPUTS, FILES)
    there.load(records, lambda file: True)
    gone.load(records, lambda file: False)
    assert (there.overflowed, gone.overflowed) == ({"t1": 7}, {})
    assert 0 in there.blocks("a.ckpt") and there.blocks("a.ckpt").crc(0) == 7
    assert 0 not in gone.blocks("a.ckpt")
    assert gone.nbytes == 0
    assert gone.left(1, ((0, 5),)) == [((0, 5),)]


def test_what_is_on_record_of_a_file_that_was_lost_holds_no_more_when_it_is_made_again() -> None:
    records: list[object] = [["box", 1, [[0, 2]], 3], ["block", 0, 0, "00" * 16, 7]]
    done = DoneBoxes(OUTPUTS, FILES)
    assert done.load(records, lambda file: False) == [0]
    records += [["lost", 0], ["box", 1, [[2, 5]], 4]]
    again = DoneBoxes(OUTPUTS, FILES)
    assert again.load(records, lambda file: True) == []
    assert 0 not in again.blocks("a.ckpt")
    assert again.left(1, ((0, 5),)) == [((0, 2),)]
    assert again.overflowed == {"t1": 4}


def test_files_that_nothing_is_on_record_of_are_not_lost() -> None:
    assert DoneBoxes(OUTPUTS, FILES).load([], lambda file: False) == []
