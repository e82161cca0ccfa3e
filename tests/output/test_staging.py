"""The place where a destination is built: whose it is, who holds it, and how it gets its final name."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import streamconv
from streamconv.errors import DestinationError, StorageError
from streamconv.output import fingerprint, journal, lock, recorder, staging
from streamconv.storage import disk, whole_files
from support import running
from support.running import stopped, tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return running.tiny(tmp_path / "source")


NAMES = pytest.mark.parametrize("name", ["dest", "dest.ckpt"])


def beside(root: Path) -> set[str]:
    return set(os.listdir(root)) - {"source"}  # noqa: PTH208


# -- whose it is -------------------------------------------------------------------------------------------------------


def put_file(partial: Path) -> None:
    partial.write_text("x")


def put_directory(partial: Path) -> None:
    partial.mkdir()
    (partial / "theirs").write_text("x")


def put_link(partial: Path) -> None:
    (partial.parent / "elsewhere").mkdir(exist_ok=True)
    partial.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("name", "put"),
    [
        *(("dest", put) for put in (put_file, put_directory, put_link, os.mkfifo)),
        *(("dest.ckpt", put) for put in (put_file, put_directory, Path.mkdir, put_link, os.mkfifo)),
    ],
)
def test_a_foreign_partial_is_left_alone(name: str, put, source: Path, tmp_path: Path) -> None:
    put(tmp_path / f"{name}.partial")
    before = tree(tmp_path)
    for restart in (False, True):
        with pytest.raises(
            DestinationError, match=f"{name}.partial exists, but not its journal, {name}.partial.streamconv: "
        ):
            streamconv.convert(source, tmp_path / name, restart=restart)
    assert tree(tmp_path) == before


@NAMES
def test_a_journal_of_what_was_removed_is_in_nobody_s_way(name: str, source: Path, tmp_path: Path) -> None:
    """Nothing can be lost."""
    for arguments in ({"dtype": "fp16"}, {}):
        stopped(source, tmp_path / name)
        partial = tmp_path / f"{name}.partial"
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        report = streamconv.convert(source, tmp_path / name, **arguments)
        assert report.tally.resumed == 0
        assert beside(tmp_path) == ({"dest"} if name == "dest" else {name, f"{name}.streamconv.json"})
        streamconv.convert(source, tmp_path / name, overwrite=True)
        shutil.rmtree(tmp_path / name) if name == "dest" else (tmp_path / name).unlink()


@NAMES
def test_what_has_lost_its_journal_is_left_to_the_user(name: str, source: Path, tmp_path: Path) -> None:
    journal = stopped(source, tmp_path / name)
    journal.unlink()
    before = tree(tmp_path)
    with pytest.raises(DestinationError, match="cannot be resumed") as caught:
        streamconv.convert(source, tmp_path / name)
    assert caught.value.hint.startswith(f"remove {tmp_path / name}.partial, or move it")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("put", [Path.mkdir, put_link, os.mkfifo])
def test_what_is_in_the_journal_s_place_is_left_alone(put, source: Path, tmp_path: Path) -> None:
    put(tmp_path / "dest.partial.streamconv")
    before = tree(tmp_path)
    with pytest.raises((DestinationError, StorageError), match=r"dest\.partial\.streamconv"):
        streamconv.convert(source, tmp_path / "dest")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("linked", ["dest.partial", "dest.partial/ms-model-00001-of-00001.safetensors"])
def test_nothing_is_removed_through_a_link(linked: str, restart: bool, source: Path, tmp_path: Path) -> None:
    """Who moved what was built to another disk, and linked to it, keeps it."""
    stopped(source, tmp_path / "dest")
    (tmp_path / linked).rename(tmp_path / "moved")
    (tmp_path / linked).symlink_to(tmp_path / "moved")
    if linked == "dest.partial":
        (tmp_path / "moved" / "thesis.pdf").write_text("precious")
    before = tree(tmp_path)
    if restart and linked != "dest.partial":
        streamconv.convert(source, tmp_path / "dest", restart=True)
        assert tree(tmp_path)["moved"] == before["moved"]
        return
    with pytest.raises(DestinationError, match=f"{linked} is a link"):
        streamconv.convert(source, tmp_path / "dest", restart=restart)
    assert tree(tmp_path) == before


def test_a_file_is_not_built_through_a_link(source: Path, tmp_path: Path) -> None:
    stopped(source, tmp_path / "dest.ckpt")
    (tmp_path / "dest.ckpt.partial").rename(tmp_path / "moved")
    (tmp_path / "dest.ckpt.partial").symlink_to("moved")
    before = tree(tmp_path)
    with pytest.raises(DestinationError, match="is a link"):
        streamconv.convert(source, tmp_path / "dest.ckpt")
    assert tree(tmp_path) == before


def test_an_empty_directory_in_its_place_is_used(source: Path, tmp_path: Path) -> None:
    (tmp_path / "dest.partial").mkdir()
    streamconv.convert(source, tmp_path / "dest")
    assert beside(tmp_path) == {"dest"}


@NAMES
def test_what_does_not_belong_in_it_is_removed(name: str, source: Path, tmp_path: Path) -> None:
    stopped(source, tmp_path / name)
    if name == "dest":
        (tmp_path / "dest.partial" / "sub").mkdir()
        (tmp_path / "dest.partial" / "tokenizer.json").write_text("of an earlier run")
    streamconv.convert(source, tmp_path / name)
    streamconv.convert(source, tmp_path / f"other{Path(name).suffix}")
    assert tree(tmp_path / name) == tree(tmp_path / f"other{Path(name).suffix}")
    assert not list(tmp_path.glob("*partial*"))


@NAMES
def test_a_journal_without_its_first_line_is_begun_again(name: str, source: Path, tmp_path: Path) -> None:
    """What else it says shows that it is ours."""
    path = stopped(source, tmp_path / name)
    path.write_bytes(path.read_bytes().split(b"\n", 2)[2])
    report = streamconv.convert(source, tmp_path / name)
    assert report.tally.resumed == 0
    assert streamconv.verify(tmp_path / name, source=source)
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.slow
@NAMES
@pytest.mark.parametrize("content", [b"", b"\n", b"garbage", b"0" * 70_000_000])
def test_what_the_journal_does_not_speak_of_is_left_alone(name: str, content, source: Path, tmp_path: Path) -> None:
    """An empty file of that name makes nothing ours; where nothing is built, it is in nobody's way."""
    path, partial = tmp_path / f"{name}.partial.streamconv", tmp_path / f"{name}.partial"
    path.write_bytes(content)
    (put_directory if name == "dest" else put_file)(partial)
    before = tree(tmp_path)
    for restart in (False, True):
        with pytest.raises(DestinationError, match=r"its journal, .*\.partial\.streamconv, says nothing of it"):
            streamconv.convert(source, tmp_path / name, restart=restart)
    assert tree(tmp_path) == before
    partial.rename(tmp_path / "mine")
    streamconv.convert(source, tmp_path / name)
    assert not list(tmp_path.glob("*partial*"))


@NAMES
def test_a_run_stopped_while_it_discards_another_can_be_repeated(
    name: str, source: Path, tmp_path: Path, monkeypatch
) -> None:
    """What is built never lies there without a journal that says so."""
    stopped(source, tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "append", running.failing(ZeroDivisionError()))
        patch.setattr(staging.Staging, "__exit__", lambda self, *_: self._lock.release())
        with pytest.raises(ZeroDivisionError):
            streamconv.convert(source, tmp_path / name, restart=True)
    assert not (tmp_path / f"{name}.partial").exists()
    streamconv.convert(source, tmp_path / name)
    assert not list(tmp_path.glob("*partial*"))


# -- who holds it ------------------------------------------------------------------------------------------------------

HOLD = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@NAMES
def test_a_lock_held_by_another_process(name: str, source: Path, tmp_path: Path) -> None:
    held = tmp_path / f"{name}.partial.streamconv"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(held)], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        before = tree(tmp_path)
        for restart in (False, True):
            with pytest.raises(
                DestinationError, match="is being written by another process\nhint: wait for it to finish, or stop it"
            ):
                streamconv.convert(source, tmp_path / name, restart=restart)
        assert tree(tmp_path) == before
        holder.stdin.close()
    streamconv.convert(source, tmp_path / name)


@NAMES
def test_the_holder_ends_between_open_and_lock(name: str, source: Path, tmp_path: Path, monkeypatch) -> None:
    """Its journal is gone then, and what is locked is no name's file."""
    stopped(source, tmp_path / name)
    take, path, calls = disk.lock, tmp_path / f"{name}.partial.streamconv", []

    def finish_first(descriptor: int, shared: bool = False) -> bool | None:
        calls.append(descriptor)
        if len(calls) == 1:
            whole_files.remove_any(tmp_path / f"{name}.partial")
            path.unlink()
        return take(descriptor)

    monkeypatch.setattr(disk, "lock", finish_first)
    streamconv.convert(source, tmp_path / name)
    assert len(calls) == 2
    assert beside(tmp_path) - {f"{name}.streamconv.json"} == {name}


class TestWithoutLocks:
    """The owner on record decides."""

    @pytest.fixture(autouse=True)
    def _no_locks(self, monkeypatch) -> None:
        monkeypatch.setattr(disk, "lock", lambda descriptor, shared=False: None)

    def left_by(self, source: Path, dest: Path, owner: list[object]) -> Path:
        """A conversion that this owner began."""
        stopped(source, dest)
        path = dest.with_name(f"{dest.name}.partial.streamconv")
        with path.open("ab") as file:
            file.write(journal._line(journal._text(["held", *owner])))
        return path

    def test_a_run(self, source: Path, tmp_path: Path) -> None:
        streamconv.convert(source, tmp_path / "dest")
        assert streamconv.verify(tmp_path / "dest")

    def test_a_living_owner_on_this_host(self, source: Path, tmp_path: Path) -> None:
        parent = psutil.Process().parent()
        owner = [parent.pid, lock.socket.gethostname(), time.time()]
        self.left_by(source, tmp_path / "dest", owner)
        with pytest.raises(DestinationError, match=rf"is being written by process {parent.pid} on .* \(since 20"):
            streamconv.convert(source, tmp_path / "dest")

    @pytest.mark.parametrize("since", [1, None])
    def test_a_dead_owner_or_its_number_given_out_again(self, since, source: Path, tmp_path: Path) -> None:
        number = os.getppid() if since else 1 << 22
        self.left_by(source, tmp_path / "dest", [number, lock.socket.gethostname(), since or time.time()])
        assert streamconv.convert(source, tmp_path / "dest").tally.resumed > 0

    def test_an_owner_on_another_host(self, source: Path, tmp_path: Path) -> None:
        path = self.left_by(source, tmp_path / "dest", [1, "elsewhere", time.time()])
        with pytest.raises(DestinationError, match="is being written by process 1 on elsewhere"):
            streamconv.convert(source, tmp_path / "dest")
        os.utime(path, (time.time() - 700,) * 2)
        assert streamconv.convert(source, tmp_path / "dest").tally.resumed > 0


def test_times_that_no_calendar_has_are_said_as_numbers(source: Path, tmp_path: Path, monkeypatch) -> None:
    path = stopped(source, tmp_path / "dest")
    shard = next(source.glob("*.safetensors"))
    identity = fingerprint._identity
    monkeypatch.setattr(fingerprint, "_identity", lambda file: (identity(file)[0], 10**21, *identity(file)[2:]))
    with pytest.raises(
        DestinationError, match=f"{shard.name} was last modified .*, now at 1000000000000 seconds after"
    ):
        streamconv.convert(source, tmp_path / "dest")
    monkeypatch.setattr(disk, "lock", lambda descriptor, shared=False: False)
    with path.open("ab") as file:
        file.write(journal._line(journal._text(["held", 1, "elsewhere", 1e12])))
    with pytest.raises(DestinationError, match=r"process 1 on elsewhere \(since 1000000000000 seconds after 1970\)"):
        streamconv.convert(source, tmp_path / "dest")


# -- what is left ------------------------------------------------------------------------------------------------------


@NAMES
def test_what_comes_to_the_destination_meanwhile_stays(name: str, source: Path, tmp_path: Path) -> None:
    dest = tmp_path / name

    def meanwhile(progress: streamconv.Progress) -> None:
        dest.mkdir(exist_ok=True)
        (dest / "theirs.safetensors").write_text("precious")

    with pytest.raises(DestinationError, match="exists"):
        streamconv.convert(source, dest, progress=meanwhile)
    assert tree(dest) == {"theirs.safetensors": b"precious"}
    dest.rename(tmp_path / "theirs")
    report = streamconv.convert(source, dest)
    assert report.tally.resumed == report.tally.total
    assert streamconv.verify(dest, source=source)


@NAMES
def test_a_run_resumes_after_an_error_of_the_caller(name: str, source: Path, tmp_path: Path) -> None:
    stopped(source, tmp_path / name)
    assert beside(tmp_path) == {f"{name}.partial", f"{name}.partial.streamconv"}
    with pytest.raises(DestinationError, match="holds a different unfinished conversion: dtype was not given, is fp16"):
        streamconv.convert(source, tmp_path / name, dtype="fp16")
    assert streamconv.convert(source, tmp_path / name, dtype="fp16", restart=True).tally.resumed == 0
    assert not list(tmp_path.glob("*partial*"))


@NAMES
def test_nothing_is_left_where_nothing_was_on_record(name: str, source: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync_data", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            streamconv.convert(source, tmp_path / name)
    assert tree(tmp_path) == before


# -- putting in place --------------------------------------------------------------------------------------------------


class NoExchange:
    """A C library whose renameat2 the file system does not support."""

    def __init__(self, *arguments: object, **more: object) -> None:
        pass

    def renameat2(self, *arguments: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1


def test_replacing_without_an_exchange(source: Path, tmp_path: Path, monkeypatch) -> None:
    streamconv.convert(source, tmp_path / "dest", dtype="fp32")
    monkeypatch.setattr(ctypes, "CDLL", NoExchange)
    streamconv.convert(source, tmp_path / "dest", overwrite=True)
    assert streamconv.verify(tmp_path / "dest", source=source)
    assert beside(tmp_path) == {"dest"}


def test_what_lies_where_the_old_one_would_go_is_left_alone(source: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", NoExchange)
    streamconv.convert(source, tmp_path / "dest", dtype="fp32")
    put_directory(tmp_path / "dest.partial.old")
    before = tree(tmp_path)
    for restart in (False, True):
        with pytest.raises(DestinationError, match=r"dest.partial.old exists, where the old destination may be put"):
            streamconv.convert(source, tmp_path / "dest", overwrite=True, restart=restart)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("failing", [False, True])
def test_an_old_one_that_is_not_aside_any_more_is_not_taken_for_it(
    failing: bool, source: Path, tmp_path: Path, monkeypatch
) -> None:
    """After a second rename that failed, or a crash before the first one."""
    streamconv.convert(source, tmp_path / "dest", dtype="fp32")
    rename = disk.rename

    def second_fails(one: Path, other: Path) -> None:
        if not failing and other.name == "dest.partial.old":
            raise KeyboardInterrupt
        if one.name == "dest.partial":
            raise OSError(errno.EIO, "Input/output error")
        rename(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", NoExchange)
        patch.setattr(disk, "rename", second_fails)
        with pytest.raises(StorageError if failing else KeyboardInterrupt):
            streamconv.convert(source, tmp_path / "dest", overwrite=True)
    stopped(source, tmp_path / "dest", overwrite=True)
    put_directory(tmp_path / "dest.partial.old")
    with pytest.raises(DestinationError, match=r"dest.partial.old exists"):
        streamconv.convert(source, tmp_path / "dest", overwrite=True)
    assert tree(tmp_path / "dest.partial.old") == {"theirs": b"x"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_rename_that_fails(number: int, source: Path, tmp_path: Path, monkeypatch) -> None:
    """The old one is where it was, or, where the file system cannot swap, at least aside; then all goes on."""
    streamconv.convert(source, tmp_path / "dest", dtype="fp32")
    before = tree(tmp_path / "dest")
    renames, rename = [], disk.rename

    def failing(one: Path, other: Path) -> None:
        if ".trial" not in other.name:
            renames.append(one)
        # The third is the one that puts the old one back, where the second has failed.
        if len(renames) == number or (number == 3 and len(renames) == 2):
            raise OSError(errno.EIO, "Input/output error")
        rename(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", NoExchange)
        patch.setattr(disk, "rename", failing)
        with pytest.raises(
            StorageError,
            match=r"(?s)cannot put in place .*Input/output error.*hint: the device reports",
        ):
            streamconv.convert(source, tmp_path / "dest", overwrite=True)
    assert tree(tmp_path / ("dest.partial.old" if number == 3 else "dest")) == before
    assert streamconv.convert(source, tmp_path / "dest", overwrite=True).tally.resumed > 0
    assert streamconv.verify(tmp_path / "dest", source=source)
    assert beside(tmp_path) == {"dest"}


@NAMES
@pytest.mark.parametrize("old", [False, True])
def test_the_end_of_a_run_that_was_stopped_after_the_rename(
    name: str, old: bool, source: Path, tmp_path: Path, monkeypatch
) -> None:
    """The same command then has nothing left to do but to tidy up, and says so with success."""
    dest = tmp_path / name
    if old:
        streamconv.convert(source, dest, dtype="fp32")
    with monkeypatch.context() as patch:
        patch.setattr(staging.Staging, "_clean_up", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            streamconv.convert(source, dest, overwrite=old)
    content = tree(tmp_path / name) if name == "dest" else dest.read_bytes()
    assert list(tmp_path.glob("*partial*"))
    report = streamconv.convert(source, dest)
    assert report.tally.resumed == report.tally.total
    assert not list(tmp_path.glob("*partial*"))
    assert (tree(dest) if name == "dest" else dest.read_bytes()) == content
    assert streamconv.verify(dest, source=source)
    with pytest.raises(DestinationError, match="exists"):
        streamconv.convert(source, dest)


def test_the_same_manifest_at_another_inode_is_not_our_result(source: Path, tmp_path: Path, monkeypatch) -> None:
    """Who converts again because the result was damaged does not get the damaged one for done."""
    dest = tmp_path / "dest"
    streamconv.convert(source, dest)
    running.flip(dest / "ms-model-00001-of-00001.safetensors", 9000)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "exchange", lambda one, other: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            streamconv.convert(source, dest, overwrite=True)
    assert json.loads((dest / "streamconv.json").read_bytes())
    streamconv.convert(source, dest, overwrite=True)
    assert streamconv.verify(dest, source=source)
    assert beside(tmp_path) == {"dest"}


@NAMES
def test_a_run_that_fails_before_it_writes_keeps_what_was_there(
    name: str, source: Path, tmp_path: Path, monkeypatch
) -> None:
    stopped(source, tmp_path / name)

    def fail(self: object, records: object, is_there: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(journal.DoneBoxes, "load", fail)
        with pytest.raises(StorageError, match=r"cannot read .*Input/output error"):
            streamconv.convert(source, tmp_path / name)
    report = streamconv.convert(source, tmp_path / name)
    assert report.tally.resumed == report.tally.total


def crashed_between_two_renames(source: Path, dest: Path, monkeypatch) -> None:
    """The old result is aside, the new one is not in its place."""
    streamconv.convert(source, dest, dtype="fp32")
    renames, rename = [], disk.rename

    def failing(one: Path, other: Path) -> None:
        if ".trial" not in other.name:
            renames.append(one)
        if len(renames) > 1:
            raise OSError(errno.EIO, "Input/output error")
        rename(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", NoExchange)
        patch.setattr(disk, "rename", failing)
        with pytest.raises(StorageError):
            streamconv.convert(source, dest, overwrite=True)
    assert not dest.exists()


def test_the_old_one_that_is_aside_goes_when_another_new_one_comes(source: Path, tmp_path: Path, monkeypatch) -> None:
    crashed_between_two_renames(source, tmp_path / "dest", monkeypatch)
    with pytest.raises(DestinationError, match="dtype was not given, is fp16"):
        streamconv.convert(source, tmp_path / "dest", dtype="fp16")
    streamconv.convert(source, tmp_path / "dest", dtype="fp16", restart=True)
    assert streamconv.verify(tmp_path / "dest", source=source)
    assert beside(tmp_path) == {"dest"}


def test_the_old_one_that_is_aside_comes_back_when_no_new_one_comes(source: Path, tmp_path: Path, monkeypatch) -> None:
    streamconv.convert(source, tmp_path / "old", dtype="fp32")
    crashed_between_two_renames(source, tmp_path / "dest", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "_flush", lambda self: None)
        patch.setattr("streamconv.output.writer.FileSink.finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            streamconv.convert(source, tmp_path / "dest", restart=True)
    assert tree(tmp_path / "dest") == tree(tmp_path / "old")
    assert beside(tmp_path) == {"dest", "old"}
