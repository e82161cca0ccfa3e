"""Regions: memory that lies as the device wants it, in huge pages where these fit."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from streamconv.engine.budget import MAX_REGION, MIN_REGION
from streamconv.storage import pages, regions
from streamconv.storage.regions import SLACK, UNIT, Region, placement_of

U8 = np.dtype("<u1")


@pytest.mark.parametrize("size", [1, 4096, (1 << 20) + 1, 5 << 20])
def test_a_region_has_room_for_its_size_at_any_placement(size: int) -> None:
    region = Region(size)
    for offset in (0, 1, mmap.PAGESIZE, UNIT - 1):
        data = region.array(size, U8, offset)
        assert placement_of(data) == placement_of(data.data) == offset
        data[-1] = 7
    whole = -(-(size + UNIT - 1) // UNIT) * UNIT
    assert len(region.memory(whole)) == whole <= size + SLACK


def test_a_region_has_room_wherever_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel places it at a page, of 4 KiB or more."""
    for start in range(0, UNIT, 4 << 10):
        monkeypatch.setattr(regions, "_address", lambda data, start=start: start)
        region, size = Region(UNIT + 2), UNIT + 2
        assert len(region.memory(-(-(size + UNIT - 1) // UNIT) * UNIT)) == 3 * UNIT
        assert len(region.array_behind(2, UNIT, U8)) == UNIT


@pytest.mark.parametrize(
    ("huge", "asks"),
    [(2 << 20, {MIN_REGION, MAX_REGION}), (32 << 20, {MAX_REGION}), (512 << 20, set()), (None, set())],
)
def test_huge_pages_are_asked_for_where_a_region_holds_one(
    huge: int | None, asks: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "huge_page_bytes", lambda: huge)
    assert {size for size in (4096, MIN_REGION, MAX_REGION) if regions.takes_huge_pages(size)} == asks


def is_advised(region: Region) -> bool:
    """Whether the kernel was asked for huge pages: the flag `hg` of the mapping that the region lies in."""
    address = region.array(1, U8).__array_interface__["data"][0]
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            found = low <= address < high
        elif found and first == "VmFlags:":
            return "hg" in rest.split()
    raise AssertionError("no such mapping")


def test_the_kernel_is_asked_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    if pages.huge_page_bytes() is None:
        pytest.skip("the kernel has no huge pages")
    monkeypatch.setattr(pages, "huge_page_bytes", lambda: 2 << 20)
    assert is_advised(Region(MIN_REGION))
    monkeypatch.setattr(pages, "huge_page_bytes", lambda: 512 << 20)
    assert not is_advised(Region(MIN_REGION))
