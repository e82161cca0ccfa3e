"""Results are read back by several threads, past the page cache: the first difference is named all the same."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import streamconv
from streamconv.checks import against_manifest, against_source, open_results
from streamconv.engine.budget import MIN_REGION, WORKER_OVERHEAD, Budget, divide
from streamconv.errors import BudgetError, VerificationError
from streamconv.storage import disk, limits
from streamconv.storage.access import Access
from streamconv.storage.device import open_direct
from streamconv.storage.regions import Region
from streamconv.units import BLOCK, CHUNK
from support.running import flip

MIB = 1 << 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source, and a result of two files: of four blocks and of two."""
    folder = tmp_path_factory.mktemp("read_back")
    source, dest = folder / "source.safetensors", folder / "dest"
    random = np.random.default_rng(0)
    sizes = {"a": 40 * MIB, "b": 20 * MIB, "c": 24 * MIB + 4}
    save_file({name: np.frombuffer(random.bytes(size), np.float32) for name, size in sizes.items()}, source)
    streamconv.convert(source, dest, model="raw", max_shard_size="61MiB")
    return source, dest


@pytest.fixture(params=Access)
def _access(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Access:
    """Results are read so."""
    for module in (against_manifest, against_source):
        monkeypatch.setattr(module, "access_to", lambda io, paths: request.param)
    return request.param


class Reads:
    """Watches all reads, and delays those of the first bytes of one block, so that later blocks are ready first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow: int = -1) -> None:
        self.threads: set[int] = set()
        self.direct = self.through_cache = 0
        self._read, self._slow = disk.read_into, slow
        monkeypatch.setattr(disk, "read_into", self)

    def __call__(self, descriptor: int, target: memoryview, offset: int) -> int:
        self.threads.add(threading.get_ident())
        count = self._read(descriptor, target, offset)
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            self.direct += count
        else:
            self.through_cache += count
        if offset // BLOCK == self._slow:
            time.sleep(0.1)
        return count


def files(dest: Path) -> list[Path]:
    return sorted(dest.glob("*.safetensors"))


def takes_direct(path: Path) -> bool:
    descriptor = disk.open_file(path, os.O_RDONLY)
    direct = open_direct(descriptor, os.O_RDONLY)
    for one in filter(None, (descriptor, direct)):
        disk.close(one)
    return direct is not None


def test_blocks_are_read_by_threads(made: tuple[Path, Path], _access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, seen = Reads(monkeypatch), []
    found = streamconv.verify(made[1], progress=seen.append)
    assert found.bytes_read == found.total == reads.direct + reads.through_cache
    assert len(reads.threads - {threading.get_ident()}) > 1
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    if _access is Access.READ:
        assert not reads.direct
    elif takes_direct(files(made[1])[0]):
        assert reads.through_cache < 2 * disk.ALIGNMENT + MIB


@pytest.mark.parametrize("slow", [1, 3])
def test_the_first_block_that_differs_is_named(
    slow: int, made: tuple[Path, Path], _access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = files(made[1])
    places = [(first, BLOCK + 5), (first, 2 * BLOCK + 5), (second, 900)]
    for path, at in places:
        flip(path, at)
    Reads(monkeypatch, slow)
    try:
        for number, (path, at) in enumerate(places):
            where = f"{path.name} differs from its manifest between byte {at // BLOCK * BLOCK} and"
            with pytest.raises(VerificationError, match=where):
                streamconv.verify(made[1])
            flip(*places[number])
            places[number] = (path, at)
        assert streamconv.verify(made[1])
    finally:
        monkeypatch.undo()
        if not intact(made[1]):
            pytest.fail("the result was not put back")


def intact(dest: Path) -> bool:
    return streamconv.verify(dest).files == 3


def test_a_difference_before_a_missing_file_is_named_and_the_other_way_round(
    made: tuple[Path, Path], _access: Access
) -> None:
    first, second = files(made[1])
    aside = second.with_name("aside")
    second.rename(aside)
    flip(first, 3 * BLOCK + 5)
    try:
        with pytest.raises(VerificationError, match=f"{first.name} differs"):
            streamconv.verify(made[1])
        flip(first, 3 * BLOCK + 5)
        with pytest.raises(VerificationError, match=f"{second.name} is missing, but the manifest lists it"):
            streamconv.verify(made[1])
    finally:
        aside.rename(second)
    assert streamconv.verify(made[1])


def test_a_file_that_is_truncated_in_the_meantime(
    made: tuple[Path, Path], _access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, end = disk.read_into, 3 * BLOCK - 100

    def shorter(descriptor: int, target: memoryview, offset: int) -> int:
        return min(read(descriptor, target, offset), max(0, end - offset))

    monkeypatch.setattr(disk, "read_into", shorter)
    with pytest.raises(VerificationError, match="was truncated while it was read"):
        streamconv.verify(made[1])


def test_workers_read_the_result_back_in_large_requests(
    made: tuple[Path, Path], _access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    source, dest = made
    streamconv.verify(dest, source=source, max_mem="4G", io="read")
    if _access.is_direct and takes_direct(files(dest)[0]):
        assert reads.direct > 0.9 * sum(path.stat().st_size for path in files(dest))
    else:
        assert not reads.direct


def memory_of(budget: Budget, nbytes: int) -> int:
    """What the workers of a comparison may hold; a chunk to read back is part of the overhead."""
    held = 2 * budget.region_bytes + WORKER_OVERHEAD + (nbytes if nbytes > CHUNK else 0)
    return budget.base + budget.workers * held


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("limit", [40, 60, 100, 333, 1 << 10, 2 << 10, 9 << 10])
def test_what_is_read_back_is_in_the_budget(limit: int, workers: int) -> None:
    try:
        budget = divide(limit * MIB, workers, 100, resident=10 * MIB)
    except BudgetError:
        pytest.skip("refused")
    for one in (budget, against_source.with_more_workers(budget)):
        shared, way = against_source.sharing_memory(one, "auto")
        assert memory_of(shared, way.nbytes) <= limit * MIB
        assert shared.region_bytes >= MIN_REGION
        assert shared.workers >= workers


def test_large_limits_give_more_workers_and_large_requests() -> None:
    few = divide(2 << 30, 1, 100, resident=10 * MIB)
    more, way = against_source.sharing_memory(against_source.with_more_workers(few), "auto")
    assert (more.workers, way.nbytes) == (4, 8 * MIB)
    small = divide(60 * MIB, 1, 100, resident=10 * MIB)
    assert against_source.with_more_workers(small) == small


@pytest.mark.parametrize("at", [0, 9, 300, MIB, 40 * MIB, 59 * MIB])
def test_a_flipped_byte_is_found_by_the_source(at: int, made: tuple[Path, Path], _access: Access) -> None:
    source, dest = made
    path = files(dest)[0]
    flip(path, at)
    try:
        with pytest.raises(VerificationError, match=rf"{path.name} differs .* at byte {at} of the file"):
            streamconv.verify(dest, source=source, max_mem="4G")
    finally:
        flip(path, at)


@pytest.mark.parametrize("nbytes", [1, 7, 4096, MIB])
def test_open_results_read_any_range(nbytes: int, tmp_path: Path) -> None:
    path, content = tmp_path / "file", np.random.default_rng(1).bytes(3 * MIB + 5)
    path.write_bytes(content)
    region = Region(MIB)
    for access in Access:
        opened = open_results.OpenResults(access)
        for offset in (0, 1, 4095, MIB - 3, 2 * MIB, 3 * MIB, 3 * MIB + 5, 4 * MIB):
            assert opened.read(path, offset, nbytes, region) == content[offset : offset + nbytes]
        opened.close()


def test_no_more_files_stay_open_than_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "open_files", lambda: 64)
    opened, region = open_results.OpenResults(Access.READ), Region(MIB)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in range(40):
        path = tmp_path / str(number)
        path.write_bytes(b"x")
        opened.read(path, 0, 1, region)
        assert len(os.listdir("/proc/self/fd")) <= before + 4  # noqa: PTH208
    opened.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
