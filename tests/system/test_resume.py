"""Resume: whatever stopped a run, and however the next one differs, the result is that of an undisturbed one."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import streamconv
from streamconv import conversion
from streamconv.errors import DestinationError
from streamconv.output import blocks, fingerprint, journal
from streamconv.storage import disk, whole_files
from support import running
from support.running import run, stopped, tree, with_large_values
from system import sweep_faults


@pytest.fixture
def small_units():
    with sweep_faults.small_units():
        yield


#: What makes a destination of that name one whose files have checksums, where its format has any.
FORMATS: dict[str, dict[str, object]] = {"dest": {}, "dest.ckpt": {"crc": True}, "dest.bin": {"model": "raw"}}


@pytest.mark.parametrize("dest", ["dest", "dest.ckpt", "dest.bin"])
@pytest.mark.parametrize("seed", range(12))
def test_runs_of_other_budgets_and_workers_resume(seed: int, dest: str, tmp_path: Path, small_units) -> None:
    """Overflow is counted once: the manifest is the same too."""
    chance, source = random.Random(seed), with_large_values(running.tiny(tmp_path / "source", 4000))
    arguments = {"dtype": "fp16", **FORMATS[dest]}
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    streamconv.convert(source, tmp_path / "one" / dest, **arguments)
    manifest = next((tmp_path / "one").rglob("*streamconv.json")).read_text()
    assert '"overflowed": {}' not in manifest
    for _ in range(chance.randint(1, 4)):
        region, workers = chance.choice([200, 1000, 5000, 100_000]), chance.randint(1, 3)
        if running.converted(source, tmp_path / "other" / dest, chance.randint(0, 60), region, workers, **arguments):
            break
    else:
        assert running.converted(source, tmp_path / "other" / dest, None, 3000, 2, **arguments)
    assert tree(tmp_path / "other") == tree(tmp_path / "one")


def damage(data: bytes, chance: random.Random) -> bytes:
    """The journal, with bytes changed, lines gone, or its end cut off."""
    how = chance.choice(["flip", "cut", "line", "zeros", "garbage"])
    at = chance.randrange(len(data))
    if how == "flip":
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if how == "cut":
        return data[:at]
    if how == "line":
        lines = data.split(b"\n")
        del lines[chance.randrange(len(lines))]
        return b"\n".join(lines)
    if how == "zeros":
        return data[:at] + bytes(min(100, len(data) - at)) + data[at + 100 :]
    return data + chance.randbytes(chance.randint(1, 300))


def test_overflow_is_counted_once_whichever_record_is_lost(tmp_path: Path, small_units) -> None:
    """Of a tensor that the edges of a block cut, each record counts its own part."""
    source = with_large_values(running.tiny(tmp_path / "source", 4000))
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    dest, arguments = tmp_path / "other" / "dest.ckpt", {"dtype": "fp16"}
    streamconv.convert(source, tmp_path / "one" / "dest.ckpt", **arguments)
    found = stopped(source, dest, **arguments).read_bytes().split(b"\n")
    lost = [line for line in found if b'["box"' in line]
    assert len(lost) > 10
    for line in lost:
        path = stopped(source, dest, **arguments)
        path.write_bytes(path.read_bytes().replace(line, b""))
        streamconv.convert(source, dest, **arguments)
        assert tree(tmp_path / "other") == tree(tmp_path / "one"), line
        shutil.rmtree(tmp_path / "other")
        (tmp_path / "other").mkdir()


@pytest.mark.parametrize(("dest", "after"), [("dest.ckpt", 18), ("dest.ckpt", 20), ("dest.bin", 36), ("dest.bin", 38)])
def test_finished_blocks_are_not_written_again(dest: str, after: int, tmp_path: Path, small_units, monkeypatch) -> None:
    """Checksums too are put together from what is on record."""
    source = running.tiny(tmp_path / "source", 4000)
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    streamconv.convert(source, tmp_path / "one" / dest, **FORMATS[dest])
    assert not running.converted(source, tmp_path / "other" / dest, after, 1000, 1, **FORMATS[dest])
    partial, write = tmp_path / "other" / f"{dest}.partial", disk.write
    inode, size = partial.stat().st_ino, partial.stat().st_size
    records = partial.with_name(f"{dest}.partial.streamconv").read_bytes()
    finished = {int(number) for number in re.findall(rb'\["block",0,(\d+),', records)}
    assert finished
    written = []

    def counted(descriptor: int, data: memoryview, offset: int) -> int:
        if os.fstat(descriptor).st_ino == inode:
            written.append((offset, len(data)))
        return write(descriptor, data, offset)

    monkeypatch.setattr(disk, "write", counted)
    streamconv.convert(source, tmp_path / "other" / dest, **FORMATS[dest])
    block = blocks.BLOCK
    touched = {number for at, length in written for number in range(at // block, (at + length - 1) // block + 1)}
    assert not touched & finished
    assert sum(length for _, length in written) <= size - block * (len(finished) - 1)
    assert tree(tmp_path / "other") == tree(tmp_path / "one")


@pytest.mark.parametrize("dest", ["dest", "dest.ckpt", "dest.bin"])
def test_a_damaged_journal_is_never_trusted(dest: str, tmp_path: Path, small_units) -> None:
    chance, source = random.Random(5), running.tiny(tmp_path / "source", 4000)
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    streamconv.convert(source, tmp_path / "one" / dest, **FORMATS[dest])
    for _ in range(60):
        path = stopped(source, tmp_path / "other" / dest, **FORMATS[dest])
        for _ in range(chance.randint(1, 3)):
            path.write_bytes(damage(path.read_bytes() or b"-", chance))
        try:
            streamconv.convert(source, tmp_path / "other" / dest, **FORMATS[dest])
        except DestinationError as error:
            # Nothing in it shows that what lies next to it is ours to remove.
            assert "says nothing of it" in error.message
            whole_files.remove_any(tmp_path / "other" / f"{dest}.partial")
            streamconv.convert(source, tmp_path / "other" / dest, **FORMATS[dest])
        assert tree(tmp_path / "other") == tree(tmp_path / "one")
        shutil.rmtree(tmp_path / "other")
        (tmp_path / "other").mkdir()


def test_the_block_of_a_damaged_record_is_written_again(tmp_path: Path, small_units) -> None:
    """One record is spoilt, and so is what it spoke of: both are made again, and nothing else is."""
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    streamconv.convert(source, tmp_path / "undisturbed")
    path = stopped(source, dest)
    lines = path.read_bytes().split(b"\n")
    (spoilt,) = (n for n, line in enumerate(lines) if b'["outputs",0,3' in line)
    lines = [line.replace(b'"outputs",0', b'"outputs",1') if n == spoilt else line for n, line in enumerate(lines)]
    path.write_bytes(b"\n".join(line for line in lines if b'["block"' not in line))
    report = streamconv.convert(source, dest)
    first = report.prepared.mapping.outputs[:3]
    assert report.tally.total - report.tally.resumed == sum(output.spec.nbytes for output in first)
    assert tree(dest) == tree(tmp_path / "undisturbed")


@pytest.mark.parametrize("how", ["gone", "shorter", "longer", "a link"])
def test_a_file_that_is_not_as_it_was_made_is_made_again(how: str, tmp_path: Path, small_units) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    streamconv.convert(source, tmp_path / "undisturbed", max_shard_size=3000)
    stopped(source, dest, max_shard_size=3000)
    shard = sorted((tmp_path / "dest.partial").glob("*.safetensors"))[0]
    size = shard.stat().st_size
    if how in ("gone", "a link"):
        shard.unlink()
        if how == "a link":
            shard.symlink_to(tmp_path / "precious")
            (tmp_path / "precious").write_bytes(bytes(size))
    else:
        os.truncate(shard, size + (1 if how == "longer" else -1))
    if how == "a link":
        with pytest.raises(streamconv.StreamconvError, match=shard.name):
            streamconv.convert(source, dest, max_shard_size=3000)
        assert (tmp_path / "precious").read_bytes() == bytes(size)
        streamconv.convert(source, dest, max_shard_size=3000, restart=True)
    else:
        report = streamconv.convert(source, dest, max_shard_size=3000)
        assert 0 < report.tally.resumed < report.tally.total
    assert tree(dest) == tree(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "bf16"}, "dtype was not given, is bf16"),
        ({"max_shard_size": 3000}, "max_shard_size was 5000000000, is 3000"),
        ({"options": {"qkv_concat": "blocks"}}, r'options\["qkv_concat"\] was false, is blocks'),
        ({"model": "raw"}, "model was llama, is raw"),
        ({"format": "hf", "model": "raw"}, "format was safetensors, is hf"),
        ({"bytes_version": 99}, "the version of what streamconv writes was 99, is 1"),
        ({"shard": 1 << 30}, "another source: it was model-00001-of-00003.* now it is model.safetensors\n"),
        ({"shard": 9000}, "another source: it was model-00001-of-0000"),
    ],
)
def test_another_conversion_is_refused_with_what_differs(change, words: str, tmp_path: Path, monkeypatch) -> None:
    source, dest = running.tiny(tmp_path / "source", 5000), tmp_path / "dest"
    with monkeypatch.context() as patch:
        if version := change.pop("bytes_version", None):
            patch.setattr(fingerprint, "BYTES_VERSION", version)
        stopped(source, dest)
    if size := change.pop("shard", None):
        shutil.move(source, tmp_path / "old")
        running.tiny(source, size)
    before = tree(tmp_path)
    with pytest.raises(streamconv.StreamconvError, match=words) as refused:
        streamconv.convert(source, dest, **change)
    assert refused.value.exit_code == 8
    assert "hint: to resume it, repeat its source and options; to discard it, add restart=True" in str(refused.value)
    assert tree(tmp_path) == before
    streamconv.convert(source, dest, restart=True, **change)
    assert streamconv.verify(dest, source=source)


def replaced(path: Path) -> None:
    """Another file comes in its place."""
    other = path.with_name("new")
    other.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    other.rename(path)


def written(path: Path) -> None:
    """Other bytes come into it."""
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\0" * 8)


CHANGES = {
    "replaced": (replaced, r"was replaced \(same size and modification time, another file\)"),
    "written": (
        written,
        r"was written, renamed, or given other permissions or links at .* \(same size and modification time\)",
    ),
    "permissions": (lambda path: path.chmod(0o640), "was written, renamed, or given other permissions or links at "),
    "another link": (
        lambda path: os.link(path, path.with_name("a link")),
        "was written, renamed, or given other permissions or links at ",
    ),
}


@pytest.mark.parametrize("name", ["dest", "dest.ckpt"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_only_looks_the_same_is_not_resumed_from(change: str, name: str, tmp_path: Path) -> None:
    """As after `rsync -a`, which sets the times of what it writes."""
    source, dest = running.tiny(tmp_path / "source", 5000), tmp_path / name
    stopped(source, dest)
    shard = sorted(source.glob("*.safetensors"))[1]
    before, (make, words) = shard.stat(), CHANGES[change]
    make(shard)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(streamconv.DestinationError, match=f"the source's {shard.name} {words}") as refused:
        streamconv.convert(source, dest)
    assert "to resume it, repeat its source and options; to discard it, add restart=True" in refused.value.hint
    streamconv.convert(source, dest, restart=True)
    assert streamconv.verify(dest, source=source)


def test_a_source_that_was_moved_or_is_behind_a_link_is_resumed_from(tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source", 5000), tmp_path / "dest"
    stopped(source, dest)
    (tmp_path / "elsewhere").mkdir()
    source.rename(tmp_path / "elsewhere" / "moved")
    (tmp_path / "link").symlink_to("elsewhere/moved")
    assert streamconv.convert(tmp_path / "link", dest).tally.resumed


def test_a_copy_of_the_source_is_another(tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    stopped(source, dest)
    shutil.copytree(source, tmp_path / "copy")
    with pytest.raises(streamconv.DestinationError, match="was replaced"):
        streamconv.convert(tmp_path / "copy", dest)


def test_what_decides_no_byte_may_differ(tmp_path: Path) -> None:
    """Budget, workers, I/O, and where the source lies."""
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    stopped(source, dest, max_mem="8G", workers=1)
    source.rename(tmp_path / "moved")
    report = streamconv.convert(tmp_path / "moved", dest, max_mem="9G", workers=2, io="read")
    assert report.tally.resumed == report.tally.total


def test_another_version_that_writes_the_same_bytes_resumes(tmp_path: Path, monkeypatch) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "VERSION", "0.0.9")
        stopped(source, dest)
    report = streamconv.convert(source, dest)
    assert report.tally.resumed == report.tally.total
    assert streamconv.verify(dest, source=source)


# -- media -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_device(tmp_path: Path):
    folder = tmp_path / "device"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("another device needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_source_on_another_device(other_device: Path, tmp_path: Path) -> None:
    source, dest = running.tiny(other_device / "source"), tmp_path / "dest"
    subprocess.run(["mount", "-o", "remount,ro", str(other_device)], check=True)
    streamconv.convert(source, dest)
    assert streamconv.verify(dest, source=source)
    ended = run("convert", source, other_device / "dest", "--model", "raw", "--quiet")
    assert ended.code == 5
    assert "Read-only file system\nhint: choose a destination on a writable file system" in ended.err


def test_a_destination_on_another_device(other_device: Path, tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source"), other_device / "dest"
    stopped(source, dest)
    streamconv.convert(source, dest)
    assert streamconv.verify(dest, source=source)
    streamconv.convert(source, dest, dtype="fp16", overwrite=True)
    assert os.listdir(other_device) == ["dest"]  # noqa: PTH208


def test_the_journal_takes_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        path = stopped(running.tiny(tmp_path / "source"), tmp_path / "dest")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    descriptor = disk.open_file(path, os.O_RDONLY)
    records = list(journal.Journal(path, descriptor).records())
    disk.close_quietly(descriptor)
    assert records[1][0] == "held"


def test_a_file_that_is_lost_and_begun_again_is_not_taken_for_the_first(tmp_path: Path, small_units) -> None:
    """Its records are of the file that is gone, also for the run after the one that made it again."""
    source, dest = running.tiny(tmp_path / "source", 4000), tmp_path / "other" / "dest.ckpt"
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    streamconv.convert(source, tmp_path / "one" / "dest.ckpt")
    assert not running.converted(source, dest, 20, 1000, 1)
    dest.with_name("dest.ckpt.partial").unlink()
    assert not running.converted(source, dest, 2, 1000, 1)
    assert running.converted(source, dest, None, 1000, 1)
    assert tree(tmp_path / "other") == tree(tmp_path / "one")
