"""The recorder: data before records, and never more than the window that is not on record."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from streamconv.errors import StorageError
from streamconv.output import recorder
from streamconv.output.journal import DoneBoxes, Journal
from streamconv.output.recorder import BATCH, MAX_UNRECORDED, Recorder, most_unrecorded
from streamconv.planning.outputs import Finished
from streamconv.storage import disk
from support import running
from support.small_outputs import FILES, OUTPUTS

MIB = 1 << 20


@pytest.fixture
def made(tmp_path: Path):
    descriptor = disk.open_file(tmp_path / "journal", os.O_RDWR | os.O_CREAT)
    journal = Journal(tmp_path / "journal", descriptor)
    yield journal, Recorder(journal, DoneBoxes(OUTPUTS, FILES), {"a.ckpt": 0})
    disk.close_quietly(descriptor)


def test_the_promise() -> None:
    assert [most_unrecorded(workers) for workers in (1, 2, 4)] == [96 * MIB, 128 * MIB, 192 * MIB]
    assert 0 < BATCH < MAX_UNRECORDED
    assert 0 < recorder.PAUSE <= 1


def test_data_is_synced_before_it_is_on_record(made) -> None:
    journal, one = made
    synced: list[int] = []
    with one.recording(lambda: synced.append(len(list(journal.records())))):
        with one.writing([Finished(0, 1, ((0, 6), (0, 8)))], 96):
            pass
        one.note_block("a.ckpt", 0, b"\1" * 16, 5)
    assert synced[0] == 0
    assert list(journal.records()) == [["box", 0, [[0, 6], [0, 8]], 0], ["block", 0, 0, "01" * 16, 5]]
    assert one.durable_bytes == 96


def test_what_was_not_written_is_not_on_record(made) -> None:
    journal, one = made
    with (
        pytest.raises(ZeroDivisionError),
        one.recording(lambda: None),
        one.writing([Finished(0, 1, ((0, 6), (0, 8)))], 96),
    ):
        raise ZeroDivisionError
    assert list(journal.records()) == []
    assert one.durable_bytes == 0


def test_it_does_not_wait_for_long_with_little(made) -> None:
    journal, one = made
    with one.recording(lambda: None):
        with one.writing([Finished(1, 2, ((0, 5),))], 10):
            pass
        while not list(journal.records()):
            time.sleep(0.01)


@pytest.mark.parametrize("count", [5 * MIB, 30 * MIB, 100 * MIB])
def test_workers_are_held_back(made, count: int) -> None:
    """Each writes 200 MiB: as long as nothing is synced, no more than the window, or one box, is begun."""
    _, one = made
    begun, most, lock, may_sync = 0, 0, threading.Lock(), threading.Semaphore(0)

    def sync() -> None:
        may_sync.acquire()

    def work() -> None:
        nonlocal begun, most
        for _ in range(200 * MIB // count):
            with one.writing([Finished(0, 1, ((0, 6), (0, 8)))], count), lock:
                begun += count
                most = max(most, begun - one.durable_bytes)

    with one.recording(sync, 3):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            may_sync.release()
            time.sleep(0.001)
        may_sync.release(100)
    assert 0 < most <= max(most_unrecorded(3), count)
    assert one.durable_bytes == 3 * (200 * MIB // count) * count


def test_a_failure_reaches_whoever_waits(made) -> None:
    _, one = made

    def fail() -> None:
        raise StorageError("no more")

    with pytest.raises(StorageError, match="no more"), one.recording(fail):
        for _ in range(100):
            with one.writing([Finished(0, 1, ((0, 6), (0, 8)))], 10 * MIB):
                pass
    assert one.durable_bytes == 0


def test_without_a_thread_of_its_own_the_writers_record(made, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, one = made
    monkeypatch.setattr(threading.Thread, "start", running.failing(RuntimeError("can't start new thread")))
    synced: list[int] = []
    with one.recording(lambda: synced.append(len(list(journal.records())))):
        for _ in range(3):
            with one.writing([Finished(0, 1, ((0, 6), (0, 8)))], BATCH):
                pass
        assert one.durable_bytes == 3 * BATCH
        monkeypatch.setattr(recorder, "PAUSE", 0)
        with one.writing([Finished(1, 2, ((0, 5),))], 10):
            pass
        assert one.durable_bytes == 3 * BATCH + 10, "soon, too"
    assert synced == [0, 1, 2, 3]


def test_without_a_thread_a_failure_reaches_the_writer(made, monkeypatch: pytest.MonkeyPatch) -> None:
    _, one = made
    monkeypatch.setattr(threading.Thread, "start", running.failing(RuntimeError("can't start new thread")))
    with pytest.raises(StorageError), one.recording(running.failing(StorageError("no room"))):
        for _ in range(3):
            with one.writing([Finished(0, 1, ((0, 6), (0, 8)))], BATCH):
                pass
