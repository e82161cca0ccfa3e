"""Shared by all tests."""

import pytest
from hypothesis import settings

from streamconv.storage import access

#: On a busy machine an example may take any time.
settings.register_profile("streamconv", deadline=None)
settings.load_profile("streamconv")


@pytest.fixture
def short_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and write past the page cache, where that is the way, tensors of any size."""
    monkeypatch.setattr(access, "DIRECT_LEAST", 1)
    monkeypatch.setattr(access, "DIRECT_LEAST_OF_PART", 1)
