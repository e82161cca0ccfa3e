"""Shared by all tests."""

import sys
from pathlib import Path

import pytest

from streamconv.storage import access

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent))  # the benchmarks, which are not installed


@pytest.fixture
def short_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and write past the page cache, where that is the way, tensors of any size."""
    monkeypatch.setattr(access, "DIRECT_LEAST", 1)
    monkeypatch.setattr(access, "DIRECT_LEAST_OF_PART", 1)
