"""What tests share, and no test: makers of checkpoints, oracles, and ways to run the program."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
#: Files that MindSpore 2.10 wrote, described by samples.json.
FIXTURES = TESTS / "fixtures" / "mindspore"


@cache
def _nowhere() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="streamconv-tests-")


def nowhere() -> Path:
    """An empty directory to start Python in: it looks there first, and would find the tree, not what is installed."""
    return Path(_nowhere().name)


@contextmanager
def found_in_the_tree() -> Iterator[None]:
    """In the block the tree is on the path, behind all that is installed: for the benchmarks, which are not."""
    before = list(sys.path)
    sys.path.append(str(ROOT))
    try:
        yield
    finally:
        sys.path[:] = before
