"""Leases: one owner at a time, what earlier owners recorded counts up to a byte, and late records change nothing."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamconv.errors import DestinationError, StorageError
from streamconv.output.journal import Journal
from streamconv.parts import leases
from streamconv.storage import disk

FIRST, SECOND, LATE = (["box", 0, [[low, low + 1]], 0] for low in range(3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "dest.partial.parts"
    place.mkdir()
    return place


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    descriptor = disk.open_file(tmp_path / "journal", os.O_RDWR | os.O_CREAT)
    yield Journal(tmp_path / "journal", descriptor)
    disk.close_quietly(descriptor)


def absorbed(folder: Path, journal: Journal) -> list[object]:
    leases.absorb(folder, journal)
    return list(journal.records())


def test_the_next_lease_knows_what_the_one_before_recorded(folder: Path, journal: Journal) -> None:
    with leases.taken(folder, 7) as one:
        assert not one.records
        one.journal.append([FIRST])
    with leases.taken(folder, 7) as other:
        assert FIRST in other.records and not leases.is_done(folder, 7, compared=False)
        other.journal.append([SECOND, ["done", False]])
    assert leases.is_done(folder, 7, compared=False) and not leases.is_done(folder, 7, compared=True)
    assert not leases.is_done(folder, 8, compared=False)
    with leases.taken(folder, 7) as third:
        assert ["done", False] in third.records and leases.is_done(folder, 7, compared=False)
    assert absorbed(folder, journal) == [FIRST, SECOND]
    assert not folder.exists()


def test_a_lost_lease_takes_no_more_records(folder: Path, journal: Journal) -> None:
    with leases.taken(folder, 1) as dead:
        dead.journal.append([FIRST])
        with leases.taken(folder, 1) as alive:
            with pytest.raises(
                DestinationError, match=r"what this process converts for dest\.partial was given to another process"
            ):
                dead.journal.append([LATE])
            alive.journal.append([SECOND])
    assert absorbed(folder, journal) == [FIRST, SECOND]


def test_a_record_that_slips_through_does_not_count(folder: Path, journal: Journal, monkeypatch) -> None:
    """Between its check and its write another host may take the part: what it wrote then is converted again."""
    with leases.taken(folder, 1) as dead:
        dead.journal.append([FIRST])
        with leases.taken(folder, 1) as alive:
            monkeypatch.setattr(leases.LeaseJournal, "_check", lambda self: None)
            dead.journal.append([LATE])
            alive.journal.append([SECOND])
        with leases.taken(folder, 1) as third:
            assert LATE not in third.records
    assert absorbed(folder, journal) == [FIRST, SECOND]


def test_an_owner_that_died_before_its_first_record_is_as_if_it_had_not_been(folder: Path, journal: Journal) -> None:
    with leases.taken(folder, 1) as one:
        one.journal.append([FIRST])
    (folder / "00001" / "2").touch()
    assert not leases.is_done(folder, 1, compared=False)
    with leases.taken(folder, 1) as third:
        assert FIRST in third.records
    assert absorbed(folder, journal) == [FIRST]


def test_a_journal_that_was_put_together_is_lost(folder: Path, journal: Journal) -> None:
    """Also where the part was begun again since, with the same number of the lease."""
    with leases.taken(folder, 1) as dead:
        leases.absorb(folder, journal)
        with pytest.raises(DestinationError, match="given to another"):
            dead.journal.append([LATE])
        folder.mkdir()
        with leases.taken(folder, 1) as alive:
            with pytest.raises(DestinationError, match="given to another"):
                dead.journal.append([LATE])
            alive.journal.append([SECOND])
    assert absorbed(folder, journal) == [SECOND]


def test_nobody_makes_the_place_again_that_is_gone(folder: Path) -> None:
    folder.rmdir()
    with pytest.raises(StorageError), leases.taken(folder, 1):
        pass


def _take(place: Path) -> list[int]:
    return [int(leases._next(place)[0].name) for _ in range(20)]


def test_processes_never_have_the_same_lease(folder: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map_async(_take, [folder] * 4).get(timeout=30)
    assert sorted(number for numbers in found for number in numbers) == list(range(1, 81))


def test_a_crash_while_they_are_put_together_loses_nothing(folder: Path, journal: Journal, monkeypatch) -> None:
    for part in (1, 2):
        with leases.taken(folder, part) as lease:
            lease.journal.append([["box", part, [[0, 1]], 0], ["done", False]])
    with monkeypatch.context() as patch:
        patch.setattr(leases.whole_files, "remove_tree", lambda path: (_ for _ in ()).throw(OSError(5, "EIO")))
        with pytest.raises(StorageError):
            leases.absorb(folder, journal)
    again = absorbed(folder, journal)
    assert [record for record in again if record == ["box", 2, [[0, 1]], 0]] and not folder.exists()
