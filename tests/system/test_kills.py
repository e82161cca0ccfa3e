"""kill -9 at random moments, in short; the histogram is printed (`pytest -s`)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from system import sweep_kills


@pytest.mark.parametrize("what", sweep_kills.FIELDS)
def test_what_a_kill_leaves_is_resumed(what: str, tmp_path: Path) -> None:
    """10 kills each: the same bytes in the end, and at most 128 MiB written twice for each."""
    seen = sweep_kills.sweep(sweep_kills.Field(tmp_path, *sweep_kills.FIELDS[what]), 10, random.Random(1))
    print(f"\n{seen.histogram()}\nwritten twice at the most: {max(seen.twice) / 2**20:.1f} MiB")
    assert len(seen.shares) == 10
    assert seen.inside >= 0.9
    assert max(seen.twice) <= sweep_kills.MOST
