"""Regions: memory that is given back, and lies as the device wants it."""

from __future__ import annotations

import numpy as np
import pytest

from streamconv.storage.disk import ALIGNMENT
from streamconv.storage.regions import SLACK, Region, page_offset

U8 = np.dtype("<u1")


@pytest.mark.parametrize("size", [1, 4096, (1 << 20) + 1, 5 << 20])
def test_a_region_has_room_for_its_size_in_any_phase(size: int) -> None:
    region = Region(size)
    for offset in (0, 1, ALIGNMENT - 1):
        data = region.array(size, U8, offset)
        assert page_offset(data) == page_offset(data.data) == offset
        data[-1] = 7
    assert len(region.array(-(-(size + ALIGNMENT - 1) // ALIGNMENT) * ALIGNMENT, U8)) <= size + SLACK
