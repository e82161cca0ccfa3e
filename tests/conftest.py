"""Shared by all tests."""

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from streamconv.families import registry
from streamconv.storage import access, memory

#: On a busy machine an example may take any time.
settings.register_profile("streamconv", deadline=None)
settings.load_profile("streamconv")


@pytest.fixture(scope="session", autouse=True)
def cheap_conversions() -> Iterator[None]:
    """Spare each conversion in this process what only costs time here; commands that tests start do it all.

    A process that has loaded torch and MindSpore has thousands of mappings: to count what is resident exactly takes
    20 ms, eight times a conversion. To ask all that the test extra installs for families takes 5 ms.
    """
    asked, path = registry.entry_points, list(sys.path)
    offered = asked(group=registry.GROUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_MAPPINGS", os.devnull)
        patch.setattr(registry, "entry_points", lambda group: offered if sys.path == path else asked(group=group))
        yield


@pytest.fixture
def short_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and write past the page cache, where that is the way, tensors of any size."""
    monkeypatch.setattr(access, "DIRECT_LEAST", 1)
    monkeypatch.setattr(access, "DIRECT_LEAST_OF_PART", 1)
