"""Shared by all tests."""

import difflib
import os
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache

import pytest
from hypothesis import settings

from streamconv.engine import budget
from streamconv.families import registry
from streamconv.storage import access, memory

#: On a busy machine an example may take any time.
settings.register_profile("streamconv", deadline=None)
settings.load_profile("streamconv")


@pytest.fixture(scope="session", autouse=True)
def cheap_conversions() -> Iterator[None]:
    """Spare each conversion in this process what only costs time here; commands that tests start do it all.

    A process that has loaded torch and MindSpore has thousands of mappings: to count what is resident exactly takes
    20 ms, eight times a conversion. With Ray besides it is larger than the default limit on memory allows. To ask all
    that the test extra installs for families takes 5 ms. No power cut follows what is made durable here; tests that
    empty the page cache import `fsync` before. And the same names are compared with the same tables again and again.
    """
    asked, path = registry.entry_points, list(sys.path)
    offered = asked(group=registry.GROUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_MAPPINGS", os.devnull)
        patch.setattr(budget, "default_limit", lambda: 16 << 30)
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, _open)
        patch.setattr(difflib, "get_close_matches", _remembered(difflib.get_close_matches))
        patch.setattr(registry, "entry_points", lambda group: offered if sys.path == path else asked(group=group))
        yield


def _remembered(closest: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Compare no word twice with the same words."""
    known = lru_cache(4096)(closest)
    return lambda word, words, **limits: [*known(word, tuple(words), **limits)]


def _open(descriptor: int) -> None:
    """Fail as a sync does where nothing is open."""
    os.fstat(descriptor)


@pytest.fixture
def short_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and write past the page cache, where that is the way, tensors of any size."""
    monkeypatch.setattr(access, "DIRECT_LEAST", 1)
    monkeypatch.setattr(access, "DIRECT_LEAST_OF_PART", 1)
