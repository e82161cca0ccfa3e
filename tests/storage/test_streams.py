"""Several requests at once: the same bytes and errors as one after the other, and really at once."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from streamconv.storage import mounts, streams
from streamconv.storage.streams import AT_ONCE, PIECE, read_pieces, write_pieces

SIZE = 5 * PIECE + 77


@pytest.fixture
def data() -> bytes:
    return os.urandom(SIZE)


@pytest.mark.parametrize("length", [1, PIECE, PIECE + 1, SIZE])
def test_pieces_are_read_to_their_places(data: bytes, length: int) -> None:
    target = bytearray(length)

    def read(at: int, piece: memoryview) -> int:
        piece[:] = data[at : at + len(piece)]
        return len(piece)

    assert read_pieces(read, 0, memoryview(target)) == length
    assert target == data[:length]


def test_what_lies_before_the_end_of_a_file_is_read(data: bytes) -> None:
    def read(at: int, piece: memoryview) -> int:
        found = data[7 + at : 7 + at + len(piece)]
        piece[: len(found)] = found
        return len(found)

    target = bytearray(SIZE)
    assert read_pieces(read, 0, memoryview(target)) == SIZE - 7
    assert target[: SIZE - 7] == data[7:]


@pytest.mark.parametrize("broken", [0, 1, 3])
def test_the_first_error_stands_for_all(broken: int) -> None:
    def refuse(at: int, piece: memoryview) -> int:
        if at // PIECE >= broken:
            raise OSError(errno.EIO, f"piece {at // PIECE}")
        return len(piece)

    if broken:
        assert read_pieces(refuse, 0, memoryview(bytearray(SIZE))) == broken * PIECE
    else:
        with pytest.raises(OSError, match="piece 0"):
            read_pieces(refuse, 0, memoryview(bytearray(SIZE)))
    with pytest.raises(OSError, match=f"piece {broken}"):
        write_pieces(lambda at, piece: [refuse(at, piece)][:0] or None, 0, memoryview(bytearray(SIZE)))


def test_so_many_are_on_their_way_at_once() -> None:
    """Each waits for all others: one after the other, none would end."""
    together = threading.Barrier(AT_ONCE)

    def read(at: int, piece: memoryview) -> int:
        together.wait(timeout=30)
        return len(piece)

    assert read_pieces(read, 0, memoryview(bytearray(AT_ONCE * PIECE))) == AT_ONCE * PIECE


def test_without_threads_they_come_one_after_the_other(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    streams._threads.cache_clear()
    written = bytearray(SIZE)

    def write(at: int, piece: memoryview) -> None:
        written[at : at + len(piece)] = piece

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        write_pieces(write, 0, memoryview(data))
    streams._threads.cache_clear()
    assert written == data


@pytest.mark.parametrize(("kind", "count"), [("ext4", 1), ("nfs4", streams.AT_ONCE)])
def test_several_questions_at_once_where_files_lie_far(
    kind: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "mount_of", lambda path: mounts.Mount(kind, "somewhere", "0:1"))
    assert streams.at_once(tmp_path) == count
