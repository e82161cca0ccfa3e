"""What goes past the page cache begins and ends at the device's blocks, however large they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from streamconv.storage import device, disk
from streamconv.storage.access import Access
from streamconv.storage.device import InputFile, ResultFile, direct_unit, placement_to_write
from streamconv.storage.regions import UNIT, Region

U8 = np.dtype("<u1")
SIZE = 3_000_001
#: Blocks of nearly every disk, and the largest that a kernel takes.
UNITS = (4 << 10, 16 << 10, 64 << 10)


def as_on_disks_of(unit: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Make the disk one that refuses all but whole blocks of this size; its requests: offset, bytes, address."""
    requests: list[tuple[int, int, int]] = []
    direct: set[int] = set()
    read_into, write = disk.read_into, disk.write

    def opened(descriptor: int, flags: int) -> int:
        direct.add(found := os.open(f"/proc/self/fd/{descriptor}", flags))
        return found

    def check(descriptor: int, data: memoryview, offset: int) -> None:
        if descriptor in direct:
            address = np.frombuffer(data, U8).__array_interface__["data"][0]
            requests.append((offset, len(data), address))
            if offset % unit or len(data) % unit or address % unit:
                raise OSError(22, "Invalid argument")

    def checked_read(descriptor: int, target: memoryview, offset: int) -> int:
        check(descriptor, target, offset)
        return read_into(descriptor, target, offset)

    def checked_write(descriptor: int, data: memoryview, offset: int) -> int:
        check(descriptor, data, offset)
        return write(descriptor, data, offset)

    monkeypatch.setattr(device, "direct_unit", lambda number: unit)
    monkeypatch.setattr(device, "open_direct", opened)
    monkeypatch.setattr(disk, "read_into", checked_read)
    monkeypatch.setattr(disk, "write", checked_write)
    return requests


def misplaced(requests: list[tuple[int, int, int]], unit: int) -> list[tuple[int, int, int]]:
    return [request for request in requests if any(number % unit for number in request)]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("offset", [0, 1, 4096, 70_000, 131_072])
def test_what_is_read_begins_and_ends_at_blocks(
    unit: int, offset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(content)
    requests = as_on_disks_of(unit, monkeypatch)
    file, region, length = InputFile(tmp_path / "file", Access.DIRECT), Region(2 << 20), 2 << 20
    placement, done = file.read_direct(region, offset, length)
    file.close()
    assert done == length
    assert bytes(region.array(length, U8, placement)) == content[offset : offset + length]
    assert requests and not misplaced(requests, unit)
    assert sum(count for _, count, _ in requests) < length + 2 * unit, "no more than the blocks that it touches"


@pytest.mark.parametrize("unit", UNITS)
def test_the_end_of_a_file_is_read(unit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(content)
    as_on_disks_of(unit, monkeypatch)
    file, region = InputFile(tmp_path / "file", Access.DIRECT), Region(2 << 20)
    placement, done = file.read_direct(region, SIZE - 1_500_000, 1_500_000)
    assert bytes(region.array(done, U8, placement)) == content[SIZE - 1_500_000 :][:done]
    assert done == 1_500_000
    file.close()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("offset", [0, 1, 4096, 70_000, 131_072])
def test_what_is_written_begins_and_ends_at_blocks(
    unit: int, offset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = as_on_disks_of(unit, monkeypatch)
    content, region, length = os.urandom(2 << 20), Region(2 << 20), 2 << 20
    data = region.array(length, U8, placement_to_write(offset, length))
    data[...] = np.frombuffer(content, U8)
    file = ResultFile(tmp_path / "file", Access.DIRECT)
    file.write(offset, data.data)
    file.close()
    assert (tmp_path / "file").read_bytes() == bytes(offset) + content
    assert requests and not misplaced(requests, unit)
    assert sum(count for _, count, _ in requests) > length - 2 * unit, "all but the edges"


def test_larger_blocks_than_regions_are_made_for_are_left_to_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(SIZE))
    requests = as_on_disks_of(2 * UNIT, monkeypatch)
    file = InputFile(tmp_path / "file", Access.DIRECT)
    assert file.read_direct(Region(2 << 20), 5, 2 << 20) == (5, 0)
    file.close()
    assert not requests


@pytest.mark.parametrize(
    ("whole", "part", "unit"),
    [
        ("512", None, 4096),
        ("4096", None, 4096),
        (None, "16384", 16384),
        ("65536", "512", 65536),
        (None, None, 4096),
        ("?", None, 4096),
    ],
)
def test_the_kernel_says_how_large_blocks_are(
    whole: str | None, part: str | None, unit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a disk and of a partition; where it says nothing, as of a network, 4,096 will be tried."""
    places = [str(tmp_path / f"{{}}:{{}}-{name}") for name in ("whole", "part")]
    for place, text in zip(places, (whole, part), strict=True):
        if text is not None:
            Path(place.format(8, 17)).write_text(f"{text}\n")
    monkeypatch.setattr(device, "_BLOCK_SIZES", places)
    assert direct_unit(os.makedev(8, 17)) == unit


def test_the_blocks_of_this_disk_are_found(tmp_path: Path) -> None:
    number = tmp_path.stat().st_dev
    if not Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").exists():
        pytest.skip("the folder lies on no disk")
    assert 4096 <= direct_unit(number) <= UNIT


def test_a_file_whose_disk_is_unknown_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> os.stat_result:
        raise OSError(12, "Cannot allocate memory")

    (tmp_path / "file").write_bytes(b"abc")
    monkeypatch.setattr(disk, "fstat", failing)
    file, target = InputFile(tmp_path / "file", Access.DIRECT), bytearray(3)
    assert file.read(0, memoryview(target)) == 3
    assert target == b"abc"
    file.close()
